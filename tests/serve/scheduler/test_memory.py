"""How many slots of how many tokens fit a memory."""

import pytest
from support.cases import each
from support.graphs.tiny_graph import CONTEXT, manifest_content

from adaptive_lm.runtime import UserError
from adaptive_lm.runtime.execution.memory.budget import states_of_slot
from adaptive_lm.runtime.execution.memory.kv_cache import cache_bytes
from adaptive_lm.runtime.format.manifest import Model
from adaptive_lm.serve.scheduler.memory import Room, fit, share_of_memory

MODEL = Model.model_validate(manifest_content()["model"])
ONE = cache_bytes(MODEL, CONTEXT)


@each(
    ("budget", "slots", "capacity"),
    [
        (100 * ONE, 8, CONTEXT),
        (8 * ONE, 8, CONTEXT),
        (8 * ONE - 1, 7, CONTEXT),
        (ONE, 1, CONTEXT),
        (ONE - 1, 1, 64),
        (cache_bytes(MODEL, 64), 1, 64),
        (cache_bytes(MODEL, 32), 1, 32),
    ],
)
def test_the_most_that_fits_is_taken_slots_before_tokens(budget: int, slots: int, capacity: int) -> None:
    assert fit(MODEL, "fp32", budget, 8) == Room(slots, capacity, cache_bytes(MODEL, capacity, "fp32", slots))


def test_a_memory_for_less_than_the_smallest_slot_is_refused_with_the_numbers() -> None:
    with pytest.raises(UserError, match=r"found 0\.\d+ MiB .*, expected at least 0\.\d+ MiB, .*; raise --kv-memory"):
        fit(MODEL, "fp32", cache_bytes(MODEL, 32) - 1, 8)


def test_states_take_slots_but_no_tokens() -> None:
    """What a slot of states needs, its copies among it, does not depend on the context."""
    recurrent = {"mixer": "mamba2", "positions": "none", "states": {"state": [2, 4, 4], "conv": [6, 3]}}
    content = manifest_content()["model"]
    model = Model.model_validate(content | {"layers": [layer | recurrent for layer in content["layers"]]})
    one = states_of_slot(model)
    assert one == 10 * 3 * 4 * (2 * 4 * 4 + 6 * 3)
    assert fit(model, "fp32", 3 * one, 8) == Room(3, CONTEXT, 3 * one)
    with pytest.raises(UserError, match=r"found .* MiB for keys, values and states of this model"):
        fit(model, "fp32", one - 1, 8)


def test_models_share_the_memory_and_by_default_half_of_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    assert share_of_memory(1000, 2) == 500
    monkeypatch.setattr("adaptive_lm.serve.scheduler.memory.available_memory", lambda: 8000)
    assert share_of_memory(None, 4) == 1000
