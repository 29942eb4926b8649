"""`adaptive generate`: its output on stdout and stderr, and its errors for a user's mistakes."""

import json
import os
import re
import shutil
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner, Result
from support.graphs.rich_graph import CURVE
from support.graphs.tiny_graph import E, L, write_manifest

from adaptive_lm.runtime.execution.session import Session
from adaptive_lm.runtime.format.locate import find_model
from adaptive_lm.runtime.generation.generation import Generation
from adaptive_lm.serve.cli import group

TEMPLATE = "{% for m in messages %}{{ m.role | capitalize }}: {{ m.content }}\n{% endfor %}Assistant:"


@pytest.fixture
def generate(model: Path) -> Callable[..., Result]:
    def run(*args: str, folder: Path = model, input: str | bytes | None = None) -> Result:
        command = ["generate", *args, "--model", str(folder), "--device", "cpu", "--threads", "1"]
        return CliRunner().invoke(group, command, input=input)

    return run


def test_the_text_goes_to_stdout_and_the_summary_to_stderr(generate: Callable[..., Result]) -> None:
    result = generate("hello", "--seed", "3", "--max-new-tokens", "12")
    assert result.exit_code == 0
    text = json.loads(generate("hello", "--seed", "3", "--max-new-tokens", "12", "--json").stdout)["text"]
    assert result.stdout.rstrip("\n") == text.rstrip("\n")
    assert "12 tokens · " in result.stderr
    assert "tokens/s" in result.stderr
    assert f"of {E} experts" in result.stderr
    assert "% of dense FLOPs · seed 3" in result.stderr


def test_guessing_ahead_is_said_in_the_usage_and_refused_where_it_could_change_the_text(
    generate: Callable[..., Result],
) -> None:
    usage = json.loads(generate("hello", "--seed", "3", "--max-new-tokens", "4", "--json").stdout)["usage"]
    assert (usage["drafted"], usage["accepted"]) == (0, 0)
    assert generate("hello", "--max-new-tokens", "4", "--speculate", "off").exit_code == 0
    refused = generate("hello", "--speculate", "ngram")
    assert refused.exit_code == 1
    assert refused.stdout == ""
    assert "found speculate ngram, which needs the target cpu" in refused.stderr
    assert "leave out --speculate, or make that target with: adaptive export --target cpu" in refused.stderr


def test_generate_and_bench_say_why_a_faster_graph_does_not_run(
    generate: Callable[..., Result], model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    note = "running the portable graph: there was no C++ compiler"
    monkeypatch.setattr(Session, "note", property(lambda session: note))
    assert f"note: {note}\n" in generate("hello", "--max-new-tokens", "1").stderr
    short = ["--prompt-tokens", "2", "--new-tokens", "2", "--repeats", "1"]
    result = CliRunner().invoke(group, ["bench", "--model", str(model), "--device", "cpu", "--threads", "1", *short])
    assert f"note: {note}\n" in result.stderr


def test_json_is_one_object_with_the_keys_that_others_rely_on(generate: Callable[..., Result]) -> None:
    result = generate("hello", "--seed", "3", "--max-new-tokens", "9", "--json", "--exit-threshold", "0.5")
    content = json.loads(result.stdout)
    assert result.stderr == ""
    assert content["text"] == "".join(token["text"] for token in content["tokens"])
    for token in content["tokens"]:
        assert {"id", "text", "experts", "layers_run", "exit_layer", "seconds"} <= token.keys()
        assert len(token["experts"]) == L
        assert [layer for layer, used in enumerate(token["experts"]) if used] == token["layers_run"]
        assert token["exit_layer"] in (None, 0)
    assert {token["exit_layer"] for token in content["tokens"]} == {None, 0}
    usage = content["usage"]
    assert usage["prompt_tokens"] == 5
    assert usage["new_tokens"] == len(content["tokens"]) == 9
    assert usage["milliseconds_per_token"].keys() == {"p50", "p95"}
    assert usage["layers_per_token"] == pytest.approx(
        sum(len(t["layers_run"]) for t in content["tokens"]) / 9, abs=1e-4
    )
    executed = sum(token["executed_flops"] for token in content["tokens"])
    dense = sum(token["dense_flops"] for token in content["tokens"])
    assert usage["executed_flops_share"] == pytest.approx(executed / dense, abs=1e-5)
    assert usage["tokens_per_second"] > 0


def test_json_has_log_probabilities_where_requested(generate: Callable[..., Result]) -> None:
    plain = json.loads(generate("hello", "--temperature", "0", "--max-new-tokens", "5", "--json").stdout)["tokens"]
    result = generate("hello", "--temperature", "0", "--max-new-tokens", "5", "--json", "--logprobs", "2")
    tokens = json.loads(result.stdout)["tokens"]
    assert [token["id"] for token in tokens] == [token["id"] for token in plain]
    assert all("logprob" not in token and "top_logprobs" not in token for token in plain)
    for token in tokens:
        first, second = token["top_logprobs"]
        assert first == {"id": token["id"], "logprob": token["logprob"]}
        assert second["logprob"] <= first["logprob"] < 0


def test_a_text_matches_the_rule_that_an_option_names(generate: Callable[..., Result], tmp_path: Path) -> None:
    pytest.importorskip("llguidance")
    schema = tmp_path / "schema.json"
    schema.write_text('{"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"], '
                      '"additionalProperties": false}')  # fmt: skip
    result = generate("hello", "--json-schema", str(schema), "--temperature", "1.5", "--max-new-tokens", "90")
    assert json.loads(result.stdout)["a"] in (1, 2)
    assert "stop" in result.stderr
    grammar = tmp_path / "g.lark"
    grammar.write_text('start: "yes" | "no"')
    assert generate("hello", "--grammar", str(grammar)).stdout in ("yes\n", "no\n")
    cut = generate("hello", "--regex", "[ab]{9}", "--max-new-tokens", "4")
    assert re.fullmatch("[ab]{4}\n", cut.stdout)
    assert "note: the text ends at its last token before it matched; raise --max-new-tokens" in cut.stderr
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "hello", "logit_bias": {"121": 100}}\n{"prompt": "moon"}\n')
    lines = generate("--prompts", str(prompts), "--grammar", str(grammar), "--json").stdout.splitlines()
    assert [json.loads(line)["text"] in ("yes", "no") for line in lines] == [True, True]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "found a JSON schema that is no JSON: "),
        ("[1]", "found the JSON schema [1], expected an object"),
        ('{"type": "strnig"}', "found a JSON schema that cannot be used: Invalid type: strnig"),
    ],
)
def test_a_rule_that_cannot_be_used_is_answered_with_one_line(
    generate: Callable[..., Result], tmp_path: Path, content: str, message: str
) -> None:
    pytest.importorskip("llguidance")
    (tmp_path / "schema.json").write_text(content)
    result = generate("hello", "--json-schema", str(tmp_path / "schema.json"))
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith(f"error: {message}")
    assert len(result.stderr.splitlines()) == 1


def test_without_llguidance_the_extra_is_named(
    generate: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    result = generate("hello", "--regex", "a+")
    assert (result.exit_code, result.stdout) == (1, "")
    assert 'llguidance is not installed, structured output needs it; type: pip install "adaptive-lm[structured]"' in (
        result.stderr
    )


def test_usage_none_leaves_stderr_empty(generate: Callable[..., Result]) -> None:
    assert generate("hello", "--usage", "none").stderr == ""


def test_usage_tokens_has_a_row_per_token(generate: Callable[..., Result]) -> None:
    result = generate("hello", "--seed", "3", "--max-new-tokens", "7", "--usage", "tokens", "--exit-threshold", "0.5")
    lines = result.stderr.splitlines()
    assert lines[0].split() == [
        "token",
        "experts",
        "per",
        "layer,",
        "of",
        str(E),
        "layers",
        "of",
        str(L),
        "exit",
        "FLOPs",
        "ms",
    ]
    assert len(lines) == 1 + 7 + 2
    assert any(" - " in line for line in lines[1:8]), "a skipped layer shows"


def test_routed_heads_and_windows_show_where_the_model_has_them(generate: Callable[..., Result], rich: Path) -> None:
    asked = ("hello", "--seed", "3", "--max-new-tokens", "20", "--depth-threshold", "0.5", "--head-top-p", "0.5")
    result = generate(*asked, "--usage", "tokens", folder=rich)
    lines = result.stderr.splitlines()
    header = [cell for cell in lines[0].split("  ") if cell]
    assert [cell.strip() for cell in header] == [
        "token", f"experts per layer, of {E}", "heads per layer, of 4", "window per layer", f"layers of {L}", "exit",
        "FLOPs", "ms",
    ]  # fmt: skip
    assert max(map(len, lines)) <= 160
    assert "of 4 heads · " in lines[-1]
    tokens = json.loads(generate(*asked, "--json", folder=rich).stdout)["tokens"]
    for line, token in zip(lines[1:], tokens, strict=False):
        run = token["layers_run"]
        heads = " ".join(str(len(used)) if i in run else "-" for i, used in enumerate(token["heads"]))
        seen = " ".join(str(w or "all") if i in run else "-" for i, w in enumerate(token["windows"]))
        assert f"  {heads}  " in line
        assert f"  {seen}  " in line
        assert token["windows"][0] == 8
    assert any(token["windows"][1] == 0 and 1 in token["layers_run"] for token in tokens)
    assert any(" - " in line for line in lines[1:]), "a skipped layer shows"


def test_json_names_the_heads_of_each_layer(generate: Callable[..., Result], rich: Path) -> None:
    content = json.loads(
        generate("hello", "--json", "--head-top-p", "0.5", "--max-new-tokens", "9", folder=rich).stdout
    )
    used = [heads for token in content["tokens"] for heads in token["heads"] if heads]
    assert content["usage"]["heads_per_token"] == pytest.approx(sum(map(len, used)) / len(used), abs=1e-4)
    assert content["thresholds"]["head_top_p"] == [0.5] * L
    plain = json.loads(generate("hello", "--json", "--max-new-tokens", "9").stdout)
    assert all(heads in ([0, 1], []) for token in plain["tokens"] for heads in token["heads"])
    assert plain["usage"]["heads_per_token"] == 2


def test_a_compute_below_the_least_and_a_time_of_elsewhere_are_told(
    generate: Callable[..., Result], rich_copy: Path
) -> None:
    content = json.loads((rich_copy / "manifest.json").read_bytes()) | {"curve": CURVE}
    (rich_copy / "manifest.json").write_text(json.dumps(content))

    def told(*args: str) -> str:
        result = generate("hello", "--max-new-tokens", "5", *args, folder=rich_copy)
        assert result.exit_code == 0, result.stderr
        return result.stderr

    assert "note: the least compute that this model was calibrated for is 0.3" in told("--compute", "0.1")
    assert "note: the times were measured on another machine (cpu this one; here cpu " in told("--target-ms", "2")
    assert "note" not in told("--compute", "0.4")
    assert "note" not in told()


def test_colours_follow_the_share_of_flops_on_a_terminal(
    generate: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.delenv("NO_COLOR", raising=False)
    result = generate("hello", "--seed", "3", "--max-new-tokens", "7", "--usage", "tokens")
    assert "\x1b[" in result.stderr
    assert "share of dense FLOPs: " in result.stderr
    assert "\x1b[" not in result.stdout


def test_the_coloured_text_begins_at_its_first_word() -> None:
    from adaptive_lm.runtime.generation.render import coloured

    tokens: Any = [
        SimpleNamespace(text=text, usage=SimpleNamespace(flops_share=0.5)) for text in ("\n ", " Mo", "on", " a")
    ]
    assert coloured(tokens, 0.4, 0.6).plain == "Moon a"


def test_a_model_cannot_steer_the_terminal_from_the_table() -> None:
    from adaptive_lm.runtime.terminal.text import printable

    assert printable("a\x1b[2Jb\x07") == r"a\x1b[2Jb\x07"
    assert printable("a\nü", lines=True) == "a\nü"


def test_the_prompt_comes_from_stdin_without_the_shells_line_end(generate: Callable[..., Result]) -> None:
    asked = json.loads(generate("-", "--json", "--seed", "1", "--max-new-tokens", "3", input="hëllo\n").stdout)
    assert asked["usage"]["prompt_tokens"] == 6
    typed = json.loads(generate("hëllo", "--json", "--seed", "1", "--max-new-tokens", "3").stdout)
    assert asked["text"] == typed["text"]


def test_a_chat_template_is_used_unless_raw(generate: Callable[..., Result], changed: Callable[..., Path]) -> None:
    folder = changed(chat_template=TEMPLATE)

    def prompt_tokens(*args: str) -> Any:
        return json.loads(generate("Hi?", "--json", *args, folder=folder).stdout)["usage"]["prompt_tokens"]

    assert prompt_tokens() == prompt_tokens("--chat") == len("User: Hi?\nAssistant:")
    assert prompt_tokens("--raw") == len("Hi?")
    assert "no chat template" in generate("Hi?", "--chat").stderr


def test_the_newest_exported_model_is_the_default(copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for age, name in enumerate(("new", "aged", "older")):
        target = tmp_path / "runs" / name / "model"
        shutil.copytree(copy, target)
        os.utime(target / "manifest.json", (2_000_000_000 - age, 2_000_000_000 - age))
    monkeypatch.chdir(tmp_path)
    assert find_model(None) == Path("runs/new/model")
    assert CliRunner().invoke(group, ["generate", "a", "--max-new-tokens", "2"]).exit_code == 0
    result = CliRunner().invoke(group, ["generate", "a", "--max-new-tokens", "2", "--model", "runs/new"])
    assert result.exit_code == 0, "the folder of the run is as good"


def test_without_any_model_it_says_how_to_make_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(group, ["generate", "a"])
    assert result.exit_code == 1
    assert "error: no exported model under" in result.stderr
    assert "adaptive export" in result.stderr


def test_ctrl_c_ends_the_text_and_still_gives_the_summary(
    generate: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Generation.__next__
    given: Counter[Generation] = Counter()

    def interrupted(self: Generation) -> Any:
        if given[self] == 3:
            raise KeyboardInterrupt
        given[self] += 1
        return original(self)

    monkeypatch.setattr(Generation, "__next__", interrupted)
    result = generate("hello", "--seed", "3")
    assert result.exit_code == 130
    assert result.stdout.endswith("\n")
    assert "3 tokens · " in result.stderr
    assert "interrupted" in result.stderr
    as_json = generate("hello", "--seed", "3", "--json")
    assert json.loads(as_json.stdout)["usage"]["finish_reason"] == "interrupted"


def test_an_answer_begins_without_the_space_of_the_template() -> None:
    from adaptive_lm.runtime.commands.output import stream

    def shown(strip: bool) -> str:
        import click

        @click.command()
        def command() -> None:
            stream(iter([" ", " Mountains", " form"]), strip=strip)

        return CliRunner().invoke(command).stdout

    assert shown(True) == "Mountains form\n"
    assert shown(False) == "  Mountains form\n"


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["--temperature", "nan"], 2, "found --temperature nan"),
        (["--temperature", "-1"], 2, "found --temperature -1.0"),
        (["--top-p", "0"], 2, "found --top-p 0.0, expected a number above 0, up to 1;"),
        (["--top-k", "0"], 2, "found --top-k 0"),
        (["--router-top-p", "1.5"], 2, "found --router-top-p 1.5, expected 0 to 1"),
        (["--depth-threshold", "-0.1"], 2, "found --depth-threshold -0.1, expected 0 to 1"),
        (["--exit-threshold", "nan"], 2, "found --exit-threshold nan, expected 0 to 1"),
        (["--experts", "9"], 1, "found experts 9, this model has 4"),
        (["--experts", "2", "--router-top-p", "0.5"], 2, "give one of them"),
        (["--compute", "0"], 2, "found --compute 0.0, expected above 0 and at most 1"),
        (["--compute", "0.5", "--experts", "2"], 2, "found both compute and experts"),
        (["--compute", "0.5"], 1, "this model is not calibrated; type: adaptive calibrate --model"),
        (["--target-ms", "2"], 1, "this model is not calibrated"),
        (["--target-loss", "2"], 1, "this model is not calibrated"),
        (["--agreement", "0.99"], 1, "this model is not calibrated"),
        (["--heads", "2"], 1, "the number of heads is fixed"),
        (["--head-top-p", "1.5"], 2, "found --head-top-p 1.5, expected 0 to 1"),
        (["--max-new-tokens", "0"], 2, "found --max-new-tokens 0"),
        (["--max-new-tokens", "96"], 1, "this model's context is 96"),
        (["--stop", ""], 2, "empty stop string"),
        (["--seed", "-1"], 2, "found --seed -1"),
        (["--seed", str(2**64)], 2, f"found --seed {2**64}, expected a whole number, from 0 to {2**64 - 1}"),
        (["--repetition-penalty", "1e-40"], 2, "found --repetition-penalty 1e-40, expected a number from 0.01 to 100"),
        (["--repetition-penalty", "1e40"], 2, "found --repetition-penalty 1e+40, expected a number from 0.01 to 100"),
        (["--frequency-penalty", "2.5"], 2, "found --frequency-penalty 2.5, expected a number from -2 to 2"),
        (["--presence-penalty", "nan"], 2, "found --presence-penalty nan, expected a number from -2 to 2"),
        (["--logprobs", "2"], 2, "found --logprobs without --json, expected both; add --json"),
        (["--logprobs", "21", "--json"], 2, "found --logprobs 21, expected a whole number, from 0 to 20"),
        (["--regex", "a", "--grammar", "b"], 2, "found --regex and --grammar, expected one of them; leave one out"),
        (["--json-schema", "none.json"], 1, "none.json"),
        (["--temperature", "1e300"], 2, "found --temperature 1e+300, expected a number from 0 to 1,000,000"),
        (["--min-p", "1.5"], 2, "found --min-p 1.5, expected a number from 0 to 1"),
        (["--temperature", "warm"], 2, "is not a valid float"),
        (["--usage", "all"], 2, "is not one of"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_wrong_setting_is_answered_with_one_line(
    generate: Callable[..., Result], args: list[str], code: int, message: str
) -> None:
    result = generate("hello", *args)
    assert result.exit_code == code
    assert message in result.stderr
    assert result.stdout == ""
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("prompt", "input_bytes", "message"),
    [
        ("", None, "the prompt is empty"),
        ("-", b"", "the prompt is empty"),
        ("-", b"\n", "the prompt is empty"),
        ("-", b"ab\xffcd", "stdin, line 1: not UTF-8 (byte 0xff at offset 2)"),
        ("a\udcff", None, "not valid UTF-8"),
        ("x" * 200, None, "found 200 prompt tokens"),
    ],
    ids=["empty", "empty stdin", "only a line end", "latin-1", "surrogate", "too long"],
)
def test_a_wrong_prompt_is_answered_with_one_line(
    generate: Callable[..., Result], prompt: str, input_bytes: bytes | None, message: str
) -> None:
    result = generate(prompt, input=input_bytes)
    assert result.exit_code == 1
    assert message in result.stderr
    assert result.stderr.startswith("error: ")


def test_a_damaged_model_is_answered_with_one_line(generate: Callable[..., Result], copy: Path) -> None:
    (copy / "tokenizer.json").write_bytes((copy / "tokenizer.json").read_bytes().replace(b"version", b"verzion"))
    result = generate("hello", folder=copy)
    assert result.exit_code == 1
    assert "tokenizer.json is damaged: found sha256" in result.stderr


def test_characters_unknown_to_the_tokenizer_are_told(generate: Callable[..., Result], copy: Path) -> None:
    from tokenizers import Tokenizer, decoders, models

    vocab = {"<|endoftext|>": 256, "<unk>": 0} | {chr(64 + i): i for i in range(1, 256)}
    library = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>", fuse_unk=False))  # noqa: S106
    library.decoder = decoders.Fuse()
    library.add_special_tokens(["<|endoftext|>"])
    library.save(str(copy / "tokenizer.json"))
    result = generate("AB日C山", folder=write_manifest(copy))
    assert result.exit_code == 0, result.stderr
    assert "note: 2 tokens of the prompt are unknown" in result.stderr


@pytest.fixture(autouse=True)
def _no_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
