"""Several tasks in one corpus: their shares, tokens and held-out texts, and what is refused."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from support.texts import PAIRS, decoded, jsonl

from adaptive_lm.contract.errors import UserError
from adaptive_lm.contract.messages import EOS
from adaptive_lm.runtime.generation.text.tokenizer import Tokenizer
from adaptive_lm.train.config.run_config import make_config, parse_setting
from adaptive_lm.train.data import Corpus, DataConfig, TokenizerConfig, prepare
from adaptive_lm.train.data.windows.order import MovingMixture

CODE = "<|code|>"


@pytest.fixture
def tasks_of(said: list[str]) -> Callable[..., Corpus]:
    """`tasks_of(task, ..., tokenizer="bytes", **data)` prepares a corpus of tasks, each a mapping."""

    def tasks_of(*tasks: dict[str, Any], tokenizer: str = "bytes", **data: Any) -> Corpus:
        config = DataConfig(tasks=tasks, **data)
        return prepare(config, TokenizerConfig(kind=tokenizer), seed=0, log=said.append)

    return tasks_of


def shares_seen(corpus: Corpus, windows: int = 800) -> list[float]:
    numbers = np.concatenate([corpus.tasks_of(first, 8, 16) for first in range(0, windows, 8)])
    return [float((numbers == task).mean()) for task in range(len(corpus.tasks))]


@pytest.mark.parametrize(
    ("temperature", "expected"), [(1.0, 0.9), (2.0, 0.75), (1e6, 0.5)], ids=["by size", "square root", "even"]
)
def test_temperature_divides_windows_in_proportion_to_the_root_of_the_tokens(write, tasks_of, temperature, expected):
    corpus = tasks_of(
        {"name": "a", "sources": [write("a.txt", "a" * 18_000)]},
        {"name": "b", "sources": [write("b.txt", "b" * 2_000)]},
        sampling={"temperature": temperature},
    )
    assert corpus.shares() == pytest.approx([expected, 1 - expected], abs=1e-3)
    assert shares_seen(corpus) == pytest.approx([expected, 1 - expected], abs=2e-3)


def test_a_given_share_stays_and_the_others_divide_the_rest(write, tasks_of):
    corpus = tasks_of(
        {"name": "a", "sources": [write("a.txt", "a" * 9_000)], "share": 0.5},
        {"name": "b", "sources": [write("b.txt", "b" * 6_000)]},
        {"name": "c", "sources": [write("c.txt", "c" * 3_000)]},
    )
    assert corpus.shares() == pytest.approx([0.5, 1 / 3, 1 / 6], abs=1e-3)


def test_the_weight_of_a_source_is_a_share_of_its_task(write, tasks_of):
    corpus = tasks_of(
        {"name": "a", "sources": [f"{write('a.txt', 'a' * 3_000)}@1", f"{write('x.txt', 'x' * 3_000)}@3"], "share": 1},
        {"name": "b", "sources": [write("b.txt", "b" * 3_000)], "share": 1},
    )
    letters = Counter(decoded(corpus, row).replace(EOS, "")[0] for row in corpus.batch(0, 400, 16).ids)
    assert letters["a"] == pytest.approx(50, abs=2)
    assert letters["x"] == pytest.approx(150, abs=2)


def test_a_task_of_share_zero_is_held_out_and_never_trained_on(write, tasks_of):
    corpus = tasks_of(
        {"name": "a", "sources": [write("a.txt", "a" * 3_000)], "share": 0},
        {"name": "b", "sources": [write("b.txt", "b" * 3_000)]},
    )
    assert shares_seen(corpus) == [0, 1]
    assert "a" in corpus.heldout_text(10**6)


def test_each_task_has_its_own_held_out_text(write, tasks_of):
    corpus = tasks_of(
        {"name": "a", "sources": [write("a.txt", "a" * 3_000)]},
        {"name": "b", "sources": [write("b.txt", "b" * 3_000)], "val": write("v.txt", "v" * 500)},
    )
    one, other = corpus.tasks
    assert set(corpus.heldout_text(10**6, one)) == {"a"}
    assert corpus.heldout_text(10**6, other) == "v" * 500
    assert other.val_tokens == 501
    assert other.val_bytes_per_token == pytest.approx(500 / 501)
    targets = [t for batch in corpus.val_windows(64, 4, None, other) for t in batch.targets[batch.loss_mask]]
    assert decoded(corpus, targets) == "v" * 500 + EOS
    every = [t for batch in corpus.val_windows(64, 4) for t in batch.targets[batch.loss_mask]]
    assert len(every) == corpus.val_tokens == one.val_tokens + other.val_tokens


@pytest.mark.parametrize("tokenizer", ["bytes", "chars", "bpe"])
@pytest.mark.parametrize("pack", ["stream", "documents"])
def test_a_task_token_begins_each_text_and_each_window_and_is_never_scored(write, tasks_of, pack, tokenizer):
    corpus = tasks_of(
        {"name": "a", "sources": [write("a.jsonl", jsonl([{"text": f"number {n} " * n} for n in range(40)]))],
         "token": CODE},
        {"name": "b", "sources": [write("b.txt", "some words of prose " * 400)]},
        pack=pack, tokenizer=tokenizer,
    )  # fmt: skip
    lead = corpus.tasks[0].lead
    assert lead is not None
    assert lead == corpus.tokenizer.token_to_id(CODE) == corpus.vocab_size - 1
    windows = [corpus.batch(number, 1, 24) for number in range(200)]
    of = corpus.tasks_of(0, 200, 24)
    mine = [one for one, task in zip(windows, of, strict=True) if task == 0]
    assert mine
    first = [one.ids[0, :2].tolist() for one in mine if one.loss_mask.any()]
    assert all(lead in (one if one[0] == corpus.eos_id else one[:1]) for one in first)
    assert not any(one.loss_mask[one.targets == lead].any() for one in windows)
    assert not any((one.ids == lead).any() for one, task in zip(windows, of, strict=True) if task == 1)
    for one in mine if pack == "stream" else ():
        ends = np.flatnonzero(one.ids[0, 1:-1] == corpus.eos_id) + 1
        assert (one.ids[0, ends + 1] == lead).all(), "the next text begins with it"
    held = [batch for batch in corpus.val_windows(24, 4, None, corpus.tasks[0]) if batch.loss_mask.any()]
    assert all(row[0] == lead or row[1] == lead for batch in held for row in batch.ids[batch.loss_mask.any(1)])
    assert not any(batch.loss_mask[batch.targets == lead].any() for batch in held)
    assert corpus.heldout_text(10**6, corpus.tasks[0]).startswith(f"{CODE}number")


@pytest.mark.parametrize("pack", ["stream", "documents"])
def test_scored_tokens_and_bits_per_byte_are_those_without_a_task_token(write, tasks_of, pack):
    task = {"name": "a", "sources": [write("a.jsonl", jsonl([{"text": f"number {n} " * n} for n in range(40)]))]}
    plain, led = tasks_of(task, pack=pack), tasks_of(task | {"token": CODE}, pack=pack)
    if pack == "stream":
        assert led.tasks[0].val_scored == plain.tasks[0].val_scored
        assert led.tasks[0].val_bytes_per_token == plain.tasks[0].val_bytes_per_token
        texts = [
            decoded(one, [t for batch in one.val_windows(64, 4) for t in batch.targets[batch.loss_mask]])
            for one in (plain, led)
        ]
        assert texts[0] == texts[1]
    assert led.digest != plain.digest


@pytest.mark.parametrize("tokenizer", ["bytes", "chars", "words", "bpe"])
def test_a_prompt_that_spells_a_task_token_is_encoded_as_in_training(write, tasks_of, tokenizer):
    corpus = tasks_of(
        {"name": "a", "sources": [write("a.txt", "some words of prose\n" * 200)], "token": CODE}, tokenizer=tokenizer
    )
    corpus.tokenizer.encode_special_tokens = True
    ids = corpus.tokenizer.encode(f"{CODE}some words", add_special_tokens=False).ids
    assert ids == [corpus.tasks[0].lead, *corpus.tokenizer.encode("some words", add_special_tokens=False).ids]


@pytest.mark.parametrize("tokenizer", ["bytes", "chars", "words", "bpe"])
def test_the_exported_model_reads_a_task_token_in_a_prompt_and_shows_it(write, tasks_of, tokenizer, tmp_path):
    corpus = tasks_of(
        {"name": "a", "sources": [write("a.txt", "some words of prose\n" * 200)], "token": CODE}, tokenizer=tokenizer
    )
    path = tmp_path / "tokenizer.json"
    path.write_text(corpus.tokenizer_json(), encoding="utf-8")
    exported = Tokenizer(path, size=corpus.vocab_size, eos_id=corpus.eos_id)
    ids = exported.encode_prompt(f"{CODE}some words")
    assert ids[0] == corpus.tasks[0].lead
    assert ids[1:] == exported.encode("some words")
    assert exported.decode(ids) == f"{CODE}some words"
    rendered = exported.encode_rendered(f"{CODE}some words", {})
    assert rendered == ids, "a chat template that begins with it"


def test_answers_of_one_task_are_scored_and_all_of_another(write, tasks_of):
    corpus = tasks_of(
        {"name": "chat", "sources": [write("a.jsonl", jsonl(PAIRS))], "loss_on": "answers", "token": "<|chat|>"},
        {"name": "prose", "sources": [write("b.txt", "some words of prose " * 400)]},
    )
    of = corpus.tasks_of(0, 64, 32)
    batch = corpus.batch(0, 64, 32)
    assert batch.loss_mask[of == 1].all()
    scored = decoded(corpus, batch.targets[of == 0][batch.loss_mask[of == 0]])
    assert "It is" in scored
    assert "What" not in scored
    assert corpus.chat_template is not None
    assert corpus.chat_template.startswith("<|chat|>"), "a chat with the model asks for the task"


def test_a_run_without_tasks_has_one_without_a_name(write, corpus_of):
    corpus = corpus_of(write("a.txt", "a" * 3_000))
    assert not corpus.has_tasks
    assert [task.name for task in corpus.tasks] == [""]
    assert set(corpus.tasks_of(0, 8, 16).tolist()) == {0}


@pytest.mark.parametrize("length", [16, 32])
def test_a_mixture_whose_weights_change_repeats_no_window_and_leaves_none_out(length):
    mixture = MovingMixture([0.5, 0.3, 0.2])
    seen: dict[int, list[int]] = {0: [], 1: [], 2: []}
    state = None
    for number in range(300):
        if number in (70, 71, 190):
            mixture.change([[0.1, 0.1, 0.8], [0.0, 1.0, 0.0], [0.4, 0.0, 0.6]][number % 3], {length: number, 8: 3})
            state = mixture.state()
        source, place = mixture.deal(number, length)
        seen[source].append(place)
    assert all(places == list(range(len(places))) for places in seen.values())
    assert state is not None
    again = MovingMixture([1.0, 1.0, 1.0])
    again.restore(state)
    assert [again.deal(number, length) for number in range(200, 260)] == [
        mixture.deal(number, length) for number in range(200, 260)
    ]


def test_shares_that_change_are_those_of_the_windows_from_there_on(write, tasks_of):
    corpus = tasks_of(
        {"name": "a", "sources": [write("a.txt", "a" * 3_000)]},
        {"name": "b", "sources": [write("b.txt", "b" * 3_000)]},
        sampling={"by": "progress"},
    )
    corpus.set_shares([0.9, 0.1], {16: 80})
    assert corpus.shares() == pytest.approx([0.9, 0.1])
    assert corpus.tasks_of(80, 200, 16).tolist().count(0) == 180


TASK = {"name": "a", "sources": ["a.txt"]}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"tasks": [{"name": "a", "sources": []}]}, r"data.tasks.0.sources: .*a task without text; expected at least"),
        ({"tasks": [TASK, TASK]}, "two tasks have the name 'a'; give each its own"),
        ({"tasks": [TASK | {"token": "<x>"}, TASK | {"name": "b", "token": "<x>"}]}, "two tasks have the token '<x>'"),
        ({"tasks": [TASK | {"name": "a/b"}]}, "data.tasks.0.name"),
        ({"tasks": [TASK | {"token": "a b"}]}, "data.tasks.0.token"),
        ({"tasks": [TASK], "sources": ["b.txt"]}, "sources and tasks are both given; .*leave data.sources out"),
        ({"tasks": [TASK], "val": "b.txt"}, "val and tasks are both given"),
        ({"tasks": [TASK | {"loss_weight": 0}]}, "the loss weights of the tasks are all 0, so nothing is learned"),
        ({"tasks": [TASK | {"share": 0}]}, "the shares of the tasks are all 0"),
        ({"tasks": [TASK | {"loss_weight": -1}]}, "data.tasks.0.loss_weight: found -1"),
        ({"tasks": [TASK | {"sources": [{"path": "a.txt", "epochs": 2}]}]}, "source of the task a has epochs"),
        ({"tasks": [TASK], "sampling": {"by": "progress"}}, "sampling by progress needs at least two tasks"),
        (
            {"tasks": [TASK, TASK | {"name": "b", "share": 0.2}], "sampling": {"by": "progress"}},
            "the task b has a share, but sampling by progress sets",
        ),
        ({"sampling": {"temperature": 3}}, "sampling divides windows among tasks, but there are none"),
        ({"tasks": [TASK], "sampling": {"temperature": 0.5}}, "data.sampling.temperature: found 0.5"),
    ],
)
def test_tasks_that_break_a_rule_are_refused(data, message):
    with pytest.raises(UserError, match=message):
        make_config({"data": data})


def test_naming_tasks_takes_the_place_of_the_sources_of_a_recipe_and_the_other_way_round():
    tasks = parse_setting("data.tasks=[{name: a, sources: [a.txt]}]")
    config = make_config({"data": {"sources": ["p.txt"], "val": "v.txt"}}, [tasks])
    assert (config.data.sources, config.data.val) == ((), None)
    assert config.data.paths == ["a.txt"]
    back = make_config(config.model_dump(mode="json"), [{"data": {"sources": ["b.txt"]}}])
    assert back.data.tasks == ()


@pytest.mark.parametrize("tokenizer", ["chars", "bpe", "words"])
def test_a_task_token_that_is_in_the_tokenizer_is_refused(write, tasks_of, tokenizer):
    text = "a b c some words <s> of prose\n" * 200
    with pytest.raises(UserError, match=r"the task token 'a' is already in the tokenizer .*choose a token that is not"):
        tasks_of({"name": "a", "sources": [write("a.txt", text)], "token": "a"}, tokenizer=tokenizer)


def test_a_task_token_may_not_be_the_end_of_text(write, tasks_of):
    with pytest.raises(UserError, match="already in the tokenizer"):
        tasks_of({"name": "a", "sources": [write("a.txt", "a" * 3_000)], "token": EOS})


def test_a_task_whose_file_is_empty_or_missing_is_named(write, tasks_of):
    with pytest.raises(UserError, match=r"a.txt is empty; expected text to train on"):
        tasks_of({"name": "a", "sources": [write("a.txt", "")]})
    with pytest.raises(UserError, match=r"missing\.txt"):
        tasks_of({"name": "a", "sources": ["missing.txt"]})


def test_a_task_without_answers_is_named(write, tasks_of):
    with pytest.raises(UserError, match=r"no record of the task a has an answer.*leave out the loss_on of the task a"):
        tasks_of({"name": "a", "sources": [write("a.txt", "a" * 3_000)], "loss_on": "answers"})


def test_shares_that_leave_nothing_are_refused(write, tasks_of):
    with pytest.raises(UserError, match=r"the given shares add up to 1.2, which leaves nothing for b; give every task"):
        tasks_of(
            {"name": "a", "sources": [write("a.txt", "a" * 3_000)], "share": 1.2},
            {"name": "b", "sources": [write("b.txt", "b" * 3_000)]},
        )
