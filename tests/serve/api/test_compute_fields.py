"""Our fields: the dial of a request, and the compute that its answer reports."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest
from starlette.testclient import TestClient
from support.graphs.tiny_graph import write_model
from support.serving.served import events, served

from adaptive_lm.runtime import Params, load
from adaptive_lm.runtime.generation.summary import token_json

BODY = {"prompt": "hello there", "max_tokens": 24, "seed": 4}
USAGE = {
    "share", "experts_per_token", "heads_per_token", "layers_per_token", "milliseconds_per_token", "dial", "drafted",
    "accepted",
}  # fmt: skip


def ask(client: TestClient, **fields: Any) -> dict[str, Any]:
    response = client.post("/v1/completions", json={**BODY, **fields})
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def test_every_answer_reports_its_compute(client: TestClient) -> None:
    compute = ask(client)["usage"]["compute"]
    assert set(compute) == USAGE
    assert 0 < compute["share"] <= 1
    assert "compute" not in ask(client)["choices"][0]


def summed(records: list[dict[str, Any]]) -> dict[str, float]:
    """Sum up records as the usage does."""
    layers = sum(len(one["layers_run"]) for one in records)
    later = records[1:] or records
    return {
        "share": sum(one["executed_flops"] for one in records) / sum(one["dense_flops"] for one in records),
        "experts_per_token": sum(len(used) for one in records for used in one["experts"]) / layers,
        "heads_per_token": sum(len(used) for one in records for used in one["heads"]) / layers,
        "layers_per_token": layers / len(records),
        "milliseconds_per_token": 1000 * sum(one["seconds"] for one in later) / len(later),
    }


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_the_records_of_all_tokens_add_up_to_the_usage_s20(client: TestClient, path: str, stream: bool) -> None:
    body = {**BODY, "messages": [{"role": "user", "content": "hello"}], "compute_details": True, "compute": 0.7}
    response = client.post(path, json={**body, "stream": stream, "stream_options": {"include_usage": True}})
    if stream:
        *chunks, last = events(response.text)
        records = [one for chunk in chunks for one in chunk["choices"][0].get("compute", [])]
        texts = [chunk for chunk in chunks if chunk["choices"][0].get("text") or
                 chunk["choices"][0].get("delta", {}).get("content")]  # fmt: skip
        assert all(chunk["choices"][0]["compute"] for chunk in texts)
        usage = last["usage"]
    else:
        answer = response.json()
        records, usage = answer["choices"][0]["compute"], answer["usage"]
    assert len(records) == usage["completion_tokens"]
    for name, value in summed(records).items():
        assert usage["compute"][name] == pytest.approx(value, abs=2e-4), name
    assert usage["compute"]["dial"] == 0.7


def test_the_records_are_those_of_generate_json_s60(client: TestClient, folder: Path) -> None:
    params = Params(max_new_tokens=24, seed=4, compute=0.7)
    tokens = [token_json(one) for one in load(folder, device="cpu", threads=1).generate("hello there", params)]
    records = ask(client, compute=0.7, compute_details=True)["choices"][0]["compute"]
    for one in (*tokens, *records):
        del one["seconds"]
    assert records == tokens


def test_each_of_many_answers_reports_its_own_compute_s63(client: TestClient) -> None:
    bodies = [
        {
            "prompt": f"hello {n}",
            "seed": n,
            "max_tokens": 8 + n,
            "compute_details": True,
            "compute": (0.5, 0.75, 1.0)[n % 3],
        }
        for n in range(6)
    ]

    def compute_of(body: dict[str, Any]) -> dict[str, Any]:
        answer = ask(client, **body)
        for one in answer["choices"][0]["compute"]:
            del one["seconds"]
        del answer["usage"]["compute"]["milliseconds_per_token"]
        return {**answer["usage"], "records": answer["choices"][0]["compute"]}

    alone = [compute_of(body) for body in bodies]
    with ThreadPoolExecutor(len(bodies)) as pool:
        together = list(pool.map(compute_of, bodies))
    assert together == alone
    assert len({one["compute"]["share"] for one in alone}) > 1, "the answers cannot be told apart"


def test_a_number_a_name_and_the_extra_body_set_the_same_dial(client: TestClient) -> None:
    by_number, by_name = ask(client, compute=0.5), ask(client, model="demo@0.5")
    assert by_number["choices"] == by_name["choices"]
    assert by_name["model"] == "demo@0.5"
    assert by_number["usage"]["compute"]["dial"] == by_name["usage"]["compute"]["dial"] == 0.5
    official = openai.OpenAI(api_key="none", base_url="http://127.0.0.1/v1", http_client=client, max_retries=0)
    answer = official.completions.create(model="demo", **BODY, extra_body={"compute": 0.5, "compute_details": True})
    assert answer.choices[0].text == by_number["choices"][0]["text"]
    assert len(answer.choices[0].compute) == 24  # type: ignore[attr-defined]
    assert answer.usage.compute["dial"] == 0.5  # type: ignore[union-attr]


def test_the_requests_own_dial_counts_more_than_the_names(client: TestClient) -> None:
    assert ask(client, model="demo@0.5", compute=1.0)["choices"] == ask(client, compute=1.0)["choices"]


def test_more_compute_never_uses_fewer_layers_or_experts_s62(client: TestClient) -> None:
    shares = [
        ask(client, compute=dial, prompt=BODY["prompt"], max_tokens=1)["usage"]["compute"] for dial in (0.5, 0.75, 1.0)
    ]
    assert [one["share"] for one in shares] == sorted(one["share"] for one in shares)
    assert shares[-1]["share"] == pytest.approx(1, abs=0.02)
    assert shares[-1]["layers_per_token"] == 3


def test_explicit_thresholds_are_those_of_generate(client: TestClient) -> None:
    all_experts = ask(client, router_top_p=1, depth_threshold=0, exit_threshold=1)["usage"]["compute"]
    assert (all_experts["experts_per_token"], all_experts["layers_per_token"]) == (4, 3)
    assert all_experts["dial"] is None
    fewer = ask(client, experts=1)["usage"]["compute"]
    assert fewer["experts_per_token"] < 2


def test_auto_has_a_dial_of_its_own_and_a_least_one(client: TestClient) -> None:
    assert ask(client, compute="auto")["usage"]["compute"]["dial"] == 1.0
    assert ask(client, compute="auto", least_compute=0.6)["usage"]["compute"]["dial"] == 1.0


@pytest.mark.parametrize("fields", [{"compute": 0.5, "experts": 2}, {"compute": "auto", "target_ms": 5},
                                    {"experts": 2, "router_top_p": 0.5}, {"target_ms": 5}])  # fmt: skip
def test_contradicting_or_unmeasured_dials_are_refused_s12(client: TestClient, fields: dict[str, Any]) -> None:
    response = client.post("/v1/completions", json={**BODY, **fields})
    assert response.status_code == 400, response.text


def test_a_model_without_a_dial_says_so(tmp_path: Path) -> None:
    with served(write_model(tmp_path / "plain" / "model")) as client:
        for fields in ({"compute": 0.5}, {"compute": "auto"}):
            response = client.post("/v1/completions", json={**BODY, **fields})
            assert response.status_code == 400
            assert "not calibrated" in response.json()["error"]["message"]
        response = client.post("/v1/completions", json={**BODY, "model": "plain@0.5"})
        assert response.status_code == 404
        assert "not calibrated" in response.json()["error"]["message"]
        chat = client.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": "a"}]})
        assert chat.status_code == 400
        assert "no chat template" in chat.json()["error"]["message"]
        assert "--raw" not in chat.text


def test_models_and_their_dials_are_listed(client: TestClient) -> None:
    assert [one["id"] for one in client.get("/v1/models").json()["data"]] == ["demo", "demo@0.5", "demo@1"]
    assert client.get("/v1/models/demo@0.5").json()["max_model_len"] == 96


def test_props_describe_the_models_and_the_load(client: TestClient) -> None:
    props = client.get("/props").json()
    assert props["status"] == "ready"
    assert props["auto"] is True
    (model,) = props["models"]
    assert (model["name"], model["context"], model["layers"], model["experts"]) == ("demo", 96, 3, 4)
    assert (model["exit_layers"], model["chat"], model["calibrated"], model["dials"]) == ([0], True, True, [0.5, 1.0])
    assert props["load"]["max_queue"] == 64
