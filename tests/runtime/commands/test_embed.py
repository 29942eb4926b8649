"""Embeddings of the engine and of `adaptive embed`, on the tiny graph."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from support.graphs.tiny_graph import CONTEXT, expected_embedding, graph, write_embedder, write_model

from adaptive_lm.contract.errors import UserError
from adaptive_lm.runtime import Dial, Engine, Params, load
from adaptive_lm.runtime.execution.binding import Pass
from adaptive_lm.serve.cli import group

TEXTS = ["hello", "m", "the moon turns over a stone", "x" * CONTEXT]


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_embedder(tmp_path_factory.mktemp("embedder") / "demo" / "model")


@pytest.fixture
def own(embedder: Path) -> Engine:
    return load(embedder, device="cpu", threads=1)


@pytest.fixture
def embed(embedder: Path) -> Callable[..., Result]:
    def run(*args: str, model: Path = embedder, input: str | None = None) -> Result:
        options = ["--model", str(model), "--device", "cpu", "--threads", "1"]
        return CliRunner().invoke(group, ["embed", *args, *options], input=input)

    return run


def test_an_embedding_is_the_mean_over_all_tokens(own: Engine) -> None:
    for text, vector in zip(TEXTS, own.embed(TEXTS), strict=True):
        np.testing.assert_array_equal(vector, expected_embedding(list(text.encode())))
    np.testing.assert_array_equal(own.embed([[104, 105]])[0], expected_embedding([104, 105]))


def test_no_texts_have_no_embeddings(own: Engine) -> None:
    assert own.embed([]) == []


def test_the_engine_generates_as_before_beside_embeddings(own: Engine) -> None:
    params = Params(temperature=0, max_new_tokens=12)
    before = [token.id for token in own.generate("hello", params)]
    own.embed(["hello", "hell"])
    assert [token.id for token in own.generate("hello", params)] == before


def test_a_text_is_computed_in_parts_and_no_logits_are_kept(own: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    passes: list[tuple[int, int]] = []
    execute = Pass.execute
    monkeypatch.setattr(Pass, "execute", lambda self: (passes.append((self.rows, len(self.logits))), execute(self)))
    own.embed(["x" * CONTEXT])
    assert sum(rows for rows, _ in passes) == CONTEXT
    assert {logits for _, logits in passes} == {1}, "a graph gives the logits of at least one token"


def test_hidden_states_that_are_not_numbers_fail_alone(tmp_path: Path) -> None:
    proto = graph(hidden=True)
    states = next(one for one in proto.graph.initializer if one.name == "states")
    values = np.frombuffer(states.raw_data, np.float32).reshape(-1, 8).copy()
    values[ord("!")] = np.nan
    states.raw_data = values.tobytes()
    engine = load(write_model(tmp_path / "model", proto, model={"hidden_states": True}), device="cpu", threads=1)
    with pytest.raises(ArithmeticError, match="hidden states that are not finite numbers"):
        engine.embed(["good", "bad!"])
    np.testing.assert_array_equal(engine.embed(["good"])[0], expected_embedding(list(b"good")))


@pytest.mark.parametrize(
    ("texts", "dial", "message"),
    [
        (["a", ""], None, "found a text of 0 tokens, expected 1 to 96"),
        (["x" * 97], None, "found a text of 97 tokens, expected 1 to 96; shorten it or split it"),
        ([[257]], None, "found token 257 in the prompt"),
        (["a"], Dial(heads=2), "the number of heads is fixed in this model"),
    ],
)
def test_what_cannot_be_embedded_is_refused(
    own: Engine, texts: list[str | list[int]], dial: Dial | None, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        own.embed(texts, dial)


def test_a_manifest_that_promises_hidden_states_does_not_fit_a_graph_without(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", model={"hidden_states": True})
    with pytest.raises(UserError, match="does not fit its manifest: hidden; export the model again"):
        load(folder, device="cpu")


def test_the_command_prints_numbers_that_read_back_exactly(embed: Callable[..., Result]) -> None:
    result = embed("hello")
    assert (result.exit_code, result.stderr) == (0, "")
    vector = np.array(result.stdout.split(), np.float32)
    np.testing.assert_array_equal(vector, expected_embedding(list(b"hello")))


def test_json_lines_hold_embedding_and_tokens_in_the_order_of_the_file(
    embed: Callable[..., Result], tmp_path: Path
) -> None:
    texts = [f"text number {number}" for number in range(70)]
    (tmp_path / "texts").write_text("\n".join(texts) + "\n")
    result = embed("--texts", str(tmp_path / "texts"), "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    objects = [json.loads(line) for line in result.stdout.splitlines()]
    assert [one["tokens"] for one in objects] == [len(text) for text in texts]
    for one, text in zip(objects, texts, strict=True):
        np.testing.assert_array_equal(np.float32(one["embedding"]), expected_embedding(list(text.encode())))


def test_a_text_that_fails_is_named_and_the_others_go_on(embed: Callable[..., Result]) -> None:
    lines = "\n".join(json.dumps(one) for one in ({"prompt": "a"}, {"prompt": ""}, {"prompt": "b", "seed": 1}))
    result = embed("--texts", "-", "--json", input=lines + "\n" + json.dumps({"prompt": "x" * 97}) + "\n")
    assert result.exit_code == 1
    objects = [json.loads(line) for line in result.stdout.splitlines()]
    assert objects[0]["tokens"] == 1
    assert [one["line"] for one in objects[1:]] == [2, 3, 4]
    assert "line 2: the prompt is empty" in result.stderr
    assert "line 3: found the setting 'seed', expected only `prompt`; leave it out" in result.stderr
    assert "line 4: found a text of 97 tokens, expected 1 to 96" in result.stderr


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "found none of TEXT and --texts FILE"),
        (["a", "--texts", "b"], "found both of TEXT and --texts FILE"),
        (["a", "--compute", "2"], "found --compute 2.0, expected above 0"),
        (["a", "--compute", "0.5"], "this model is not calibrated"),
        (["x" * 97], "error: found a text of 97 tokens"),
    ],
)
def test_a_wrong_call_says_what_to_do(embed: Callable[..., Result], args: list[str], message: str) -> None:
    result = embed(*args)
    assert result.exit_code
    assert message in result.output
    assert not result.stdout


def test_a_model_without_hidden_states_says_how_to_export_it(embed: Callable[..., Result], tmp_path: Path) -> None:
    result = embed("a", model=write_model(tmp_path / "model"))
    assert result.exit_code == 1
    assert "export it again with: adaptive export RUN --onnx --embeddings" in result.output
