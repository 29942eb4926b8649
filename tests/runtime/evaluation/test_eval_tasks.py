"""`adaptive eval --tasks`: tasks of the lm-evaluation-harness from local files, on a model at points of its dial."""

import json
import math
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from support.graphs.rich_graph import CURVE, STORY, expected, sections
from support.graphs.tiny_graph import EOS, TOKENS, write_manifest

from adaptive_lm.runtime import Dial, Engine, UserError, load
from adaptive_lm.runtime.dial import Thresholds, resolve
from adaptive_lm.serve.cli import group

lm_eval = pytest.importorskip("lm_eval", reason="the extra `eval` is not installed")
# The harness and what it imports; none of them is called by us.
pytestmark = [pytest.mark.filterwarnings(f"ignore::{kind}Warning") for kind in ("Deprecation", "Future")]

from adaptive_lm.runtime.evaluation.harness.continuations import Continuation, ContinuationScorer  # noqa: E402
from adaptive_lm.runtime.evaluation.harness.model import HarnessModel  # noqa: E402

EVERYTHING = (1.0, 0.0, 1.0, 1.0)
TEMPLATE = (
    "{% for message in messages %}[{{ message.role }}]{{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write tasks and the text of their documents: a folder of tasks, and a model with a curve and a template."""
    place = tmp_path_factory.mktemp("tasks")
    random_order = random.Random(3)
    documents = []
    for number in range(24):
        begin = random_order.randrange(60)
        answer = STORY[begin + 25 : begin + 31]
        others = ["".join(random_order.sample(STORY, len(answer) - number % 2)) for _ in range(3)]
        label = random_order.randrange(4)
        choices = [*others[:label], answer, *others[label:]]
        documents.append({"question": STORY[begin : begin + 25], "choices": choices, "label": label, "answer": answer})
    (place / "documents.jsonl").write_text("\n".join(map(json.dumps, documents)))
    files = (
        f"dataset_path: json\ndataset_kwargs:\n  data_files: {{test: {place / 'documents.jsonl'}}}\n"
        f"  cache_dir: {place / 'cache'}\ntest_split: test\nfewshot_split: test\n"
        'doc_to_text: "{{question}}"\ntarget_delimiter: ""\n'
    )
    kinds = {
        "choose": 'output_type: multiple_choice\ndoc_to_choice: choices\ndoc_to_target: label\n'
                  "metric_list: [{metric: acc}, {metric: acc_norm}]\n",
        "write": 'output_type: generate_until\ndoc_to_target: answer\nmetric_list: [{metric: exact_match}]\n'
                 'generation_kwargs: {until: ["z"], max_gen_toks: 6, do_sample: false}\n',
        "roll": 'output_type: loglikelihood_rolling\ndoc_to_target: "{{question}}"\n'
                "metric_list: [{metric: bits_per_byte}]\n",
        "beams": 'output_type: generate_until\ndoc_to_target: answer\nmetric_list: [{metric: exact_match}]\n'
                 'generation_kwargs: {until: ["z"], num_beams: 4}\n',
    }  # fmt: skip
    for name, text in kinds.items():
        (place / f"{name}.yaml").write_text(f"task: tests_{name}\n{files}{text}")
    (place / "both.yaml").write_text("group: tests_both\ntask: [tests_choose, tests_write]\nmetadata: {version: 1}\n")
    (place / "hub.yaml").write_text(
        f"task: tests_hub\n{files}{kinds['choose']}".replace("dataset_path: json", "dataset_path: nobody/has-this")
        .replace(f"  data_files: {{test: {place / 'documents.jsonl'}}}\n", "")
    )  # fmt: skip
    return place


@pytest.fixture(scope="module")
def dialled(rich: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copy the rich model with a curve and a chat template."""
    folder = Path(shutil.copytree(rich, tmp_path_factory.mktemp("dialled") / "model"))
    return write_manifest(folder, **sections(), curve=CURVE, chat_template=TEMPLATE)


@pytest.fixture(scope="module")
def dialled_engine(dialled: Path) -> Engine:
    return load(dialled, device="cpu", threads=1)


@pytest.fixture
def evaluate(dialled: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("TQDM_DISABLE", "1")

    def run(*args: str) -> Result:
        command = ["eval", "--model", str(dialled), "--device", "cpu", "--threads", "1"]
        return CliRunner().invoke(group, [*command, "--include-path", str(place), *args])

    return run


def log_probs(ids: list[int], levels: tuple[float, float, float, float] = EVERYTHING) -> np.ndarray:
    logits = expected(ids, *levels).logits[:, :TOKENS].astype(np.float64)
    return logits - np.log(np.exp(logits).sum(1, keepdims=True))


def likelihood(context: list[int], targets: list[int]) -> tuple[float, bool]:
    """Return the log-probability of a continuation by the formula of the graph, and whether it is the greedy one."""
    rows = log_probs([*context, *targets[:-1]])[-len(targets) :]
    return float(rows[np.arange(len(targets)), targets].sum()), bool((rows.argmax(1) == targets).all())


def documents(place: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (place / "documents.jsonl").read_text().splitlines()]


def test_continuations_have_the_likelihood_of_the_model_in_any_order(rich_engine: Engine) -> None:
    numbers = np.random.default_rng(4)
    prefix = list(STORY.encode()[:40])
    wanted = []
    for _ in range(40):
        context = prefix[: numbers.integers(1, 40)] + list(numbers.integers(0, TOKENS, numbers.integers(0, 4)))
        targets = list(numbers.integers(0, TOKENS, numbers.integers(1, 5)))
        wanted.append(Continuation(tuple(map(int, context)), tuple(map(int, targets))))
    wanted += wanted[:3]
    greedy = prefix[:10]
    for _ in range(3):
        greedy.append(int(log_probs(greedy)[-1].argmax()))
    wanted.append(Continuation(tuple(greedy[:10]), tuple(greedy[10:])))
    found = ContinuationScorer(rich_engine, Thresholds.everything(3)).score(wanted)
    for one, result in zip(wanted, found, strict=True):
        logprob, is_greedy = likelihood(list(one.context), list(one.targets))
        assert result.logprob == pytest.approx(logprob, abs=1e-4)
        assert result.greedy == is_greedy
    assert found[-1].greedy


def test_what_readings_share_is_read_once(rich_engine: Engine) -> None:
    question = tuple(STORY.encode()[:60])
    answers = [(65,), (66,), (67, 68), (67, 69, 70)]
    scorer = ContinuationScorer(rich_engine, Thresholds.everything(3))
    counts: list[int] = []
    scorer.score([Continuation(question, one) for one in answers], counts.append)
    assert sum(counts) == 4
    # The question, with two answers of one token; and of the others all but their last, after the question's last.
    assert scorer.tokens_read == 60 + 2 + 3


def test_long_continuations_are_scored_in_passes(rich_engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = STORY.encode()[:90]
    wanted = [Continuation(tuple(ids[:20]), tuple(ids[20:])), Continuation(tuple(ids[:60]), tuple(ids[60:]))]
    whole = ContinuationScorer(rich_engine, Thresholds.everything(3)).score(wanted)
    monkeypatch.setattr("adaptive_lm.runtime.measuring.quality.perplexity.LOGITS_BYTES", 4 * 260 * 7)
    parts = ContinuationScorer(rich_engine, Thresholds.everything(3)).score(wanted)
    for one, part in zip(whole, parts, strict=True):
        assert part.logprob == pytest.approx(one.logprob, abs=1e-5)
    assert whole[1].logprob == pytest.approx(likelihood(list(ids[:60]), list(ids[60:]))[0], abs=1e-4)


def test_a_context_that_does_not_fit_loses_its_beginning(rich_engine: Engine) -> None:
    ids = (STORY * 6).encode()[:600]
    scorer = ContinuationScorer(rich_engine, Thresholds.everything(3))
    result = scorer.score([Continuation(tuple(ids[:595]), tuple(ids[595:]))])[0]
    assert result.logprob == pytest.approx(likelihood(list(ids[600 - 513 : 595]), list(ids[595:]))[0], abs=1e-4)
    assert scorer.truncated == 1
    with pytest.raises(UserError, match="found a continuation of 513 tokens, this model scores 1 to 512"):
        scorer.score([Continuation((1,), tuple(ids[:513]))])
    with pytest.raises(UserError, match="found a continuation of 0 tokens"):
        scorer.score([Continuation((1,), ())])


def test_json_has_the_results_of_the_harness_under_tasks(evaluate: Callable[..., Result], place: Path) -> None:
    result = evaluate("--tasks", "tests_choose,tests_write", "--json", "--compute", "1")
    assert result.exit_code == 0, result.output
    content = json.loads(result.stdout)
    right = right_norm = 0
    for document in documents(place):
        scores = [likelihood(list(document["question"].encode()), list(one.encode()))[0] for one in document["choices"]]
        right += int(np.argmax(scores)) == document["label"]
        lengths = [len(one) for one in document["choices"]]
        right_norm += int(np.argmax(np.array(scores) / lengths)) == document["label"]
    choose = content["tasks"]["tests_choose"]
    assert choose["acc,none"] == pytest.approx(right / 24)
    assert choose["acc_norm,none"] == pytest.approx(right_norm / 24)
    share = right / 24
    assert choose["acc_stderr,none"] == pytest.approx(math.sqrt(share * (1 - share) / 23))
    assert "exact_match,none" in content["tasks"]["tests_write"]
    assert content["harness"]["version"] == lm_eval.__version__
    assert content["harness"]["samples"]["tests_choose"] == {"original": 24, "effective": 24}
    assert "loss" not in content
    assert content["points"][0]["tasks"] == content["tasks"]


def test_results_are_those_of_the_harness_own_entry(
    evaluate: Callable[..., Result], place: Path, dialled_engine: Engine
) -> None:
    """`lm_eval.simple_evaluate` with the same model; ours leaves out its report on torch, which takes seconds."""
    from lm_eval.tasks import TaskManager

    options = ["--tasks", "tests_choose,tests_write,tests_roll", "--num-fewshot", "2", "--limit", "10"]
    ours = json.loads(evaluate(*options, "--json", "--compute", "0.5").stdout)
    manager = TaskManager(include_path=str(place), include_defaults=False)
    theirs = lm_eval.simple_evaluate(
        HarnessModel(dialled_engine, Dial(compute=0.5)), tasks=["tests_choose", "tests_write", "tests_roll"],
        num_fewshot=2, limit=10, task_manager=manager, bootstrap_iters=1000, log_samples=False,
    )  # fmt: skip
    assert set(ours["tasks"]) == {"tests_choose", "tests_write", "tests_roll"}
    for task, metrics in theirs["results"].items():
        for name, value in metrics.items():
            if isinstance(value, float):
                assert ours["tasks"][task][name] == pytest.approx(value, nan_ok=True), (task, name)
    assert ours["harness"]["num_fewshot"] == {"tests_choose": 2, "tests_write": 2, "tests_roll": 2}


def test_whole_texts_are_scored_as_the_harness_says(evaluate: Callable[..., Result], place: Path) -> None:
    content = json.loads(evaluate("--tasks", "tests_roll", "--json", "--compute", "1").stdout)
    nats = count = 0.0
    for document in documents(place):
        ids = list(document["question"].encode())
        nats -= likelihood([EOS], ids)[0]
        count += len(ids)
    assert content["tasks"]["tests_roll"]["bits_per_byte,none"] == pytest.approx(nats / count / math.log(2), rel=1e-5)


def test_answers_are_the_greedy_texts_of_generate(dialled_engine: Engine, place: Path) -> None:
    from lm_eval.api.instance import Instance

    settings = {"until": [" "], "max_gen_toks": 9}
    requests = [
        Instance("generate_until", {}, (document["question"], settings), 0) for document in documents(place)[:5]
    ]
    found = HarnessModel(dialled_engine, Dial()).generate_until(requests)
    from adaptive_lm.runtime import Params

    for request, text in zip(requests, found, strict=True):
        params = Params(temperature=0, max_new_tokens=9, stop=(" ",))
        assert text == "".join(one.text for one in dialled_engine.generate(request.args[0], params))


def test_settings_of_a_task_that_sample_are_those_of_our_sampler(dialled_engine: Engine) -> None:
    from lm_eval.api.instance import Instance

    from adaptive_lm.runtime import Params

    settings = {"until": [], "max_gen_toks": 12, "do_sample": True, "temperature": 0.9, "top_p": 0.8, "seed": 7}
    found = HarnessModel(dialled_engine, Dial()).generate_until([Instance("generate_until", {}, ("Wind", settings), 0)])
    params = Params(temperature=0.9, top_p=0.8, seed=7, max_new_tokens=12)
    assert found == ["".join(one.text for one in dialled_engine.generate("Wind", params))]


def test_a_conversation_has_the_ids_of_a_chat(dialled_engine: Engine) -> None:
    model = HarnessModel(dialled_engine, Dial())
    messages = [{"role": "user", "content": "What is <|endoftext|>?"}]
    prompt = model.apply_chat_template(messages)
    ids = dialled_engine.chat(messages)  # type: ignore[arg-type]
    assert model.tok_encode(prompt) == ids
    assert EOS not in ids, "what a task says is no special token"
    begun = model.apply_chat_template([*messages, {"role": "assistant", "content": "It "}], add_generation_prompt=False)
    assert model.tok_encode(begun) == [*ids, *b"It "]
    assert model._encode_pair(begun, "is") == ([*ids, *b"It "], list(b"is"))


def test_the_token_that_begins_a_text_stays_where_a_prompt_loses_its_beginning(dialled: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(dialled, tmp_path / "model"))
    write_manifest(folder, **sections(), generation={"bos_id": EOS, "add_bos": True})
    engine = load(folder, device="cpu", threads=1)
    model = HarnessModel(engine, Dial())
    assert model.prefix_token_id == EOS
    assert model.tok_encode("Wind") == [EOS, *b"Wind"]
    assert model.tok_encode("Wind", add_special_tokens=False) == [*b"Wind"]
    assert model._encode_pair("Wind", " and") == ([EOS, *b"Wind"], [*b" and"])
    long = (EOS, *(STORY * 6).encode()[:600])
    scorer = ContinuationScorer(engine, Thresholds.everything(3))
    assert scorer.fitted(long, 100) == (EOS, *long[-99:])
    assert scorer.fitted(long[1:], 100) == long[-100:]
    assert scorer.truncated == 2


def test_tasks_as_conversations_at_several_points_in_one_table_and_plot(
    evaluate: Callable[..., Result], tmp_path: Path
) -> None:
    options = ["--tasks", "tests_both", "--limit", "6", "--apply-chat-template", "--system-instruction", "Be brief."]
    plot = tmp_path / "tasks.svg"
    result = evaluate(*options, "--compute", "1,0.5,0.3", "--repeats", "2", "--new-tokens", "8", "--plot", str(plot))
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert "tests_choose acc" in lines[0]
    assert "tests_write exact_match" in lines[0]
    assert [line.split("  ")[0] for line in lines[1:4]] == ["compute 1", "compute 0.5", "compute 0.3"]
    assert lines[1].count("±") == 2
    assert plot.read_text().startswith("<?xml")


def test_accuracy_at_each_point_is_that_of_the_model_there(evaluate: Callable[..., Result], dialled_engine: Engine,
                                                           place: Path) -> None:  # fmt: skip
    content = json.loads(evaluate("--tasks", "tests_choose", "--compute", "1,0.3", "--repeats", "0", "--json").stdout)
    accuracies = []
    for compute in (1.0, 0.3):
        point = resolve(dialled_engine.manifest, Dial(compute=compute))
        right = 0
        for document in documents(place):
            wanted = [Continuation(tuple(document["question"].encode()), tuple(one.encode()))
                      for one in document["choices"]]  # fmt: skip
            scores = [one.logprob for one in ContinuationScorer(dialled_engine, point).score(wanted)]
            right += int(np.argmax(scores)) == document["label"]
        accuracies.append(right / 24)
    assert [one["tasks"]["tests_choose"]["acc,none"] for one in content["points"]] == pytest.approx(accuracies)
    assert accuracies[0] > accuracies[1]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--tasks", "tests_hub"], "task tests_hub cannot be loaded: .*connect to the hub once, so that its data is"),
        (["--tasks", "tests_both,tests_choose"], "found a task twice"),
        (["--tasks", "tests_beams"], "a task sets num_beams in generation_kwargs, which this program does not have"),
        (["--tasks", "tests_choose", "--include-path", "/nowhere"], "found no folder /nowhere, expected one with"),
    ],
)  # fmt: skip
def test_a_task_that_cannot_run_is_one_clear_error(
    evaluate: Callable[..., Result], args: list[str], message: str
) -> None:
    result = evaluate(*args)
    assert result.exit_code == 1
    assert re.search(message, result.stderr)
    assert result.stdout == ""
    assert "Traceback" not in result.stderr


@pytest.mark.slow  # the harness reads the files of all its tasks
def test_a_mistyped_task_suggests_the_nearest(evaluate: Callable[..., Result]) -> None:
    result = evaluate("--tasks", "tests_chose")
    assert result.exit_code == 1
    assert re.search(r"found no task 'tests_chose' among the \d{4,} .*did you mean tests_choose", result.stderr)


def test_a_model_without_a_template_refuses_conversations(evaluate: Callable[..., Result], rich: Path) -> None:
    result = evaluate("--tasks", "tests_choose", "--apply-chat-template", "--model", str(rich))
    assert result.exit_code == 1
    assert "this model has no chat template" in result.stderr
