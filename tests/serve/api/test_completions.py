"""`/v1/completions`: prompts as text, ids and lists; echo."""

import openai
from starlette.testclient import TestClient
from support.serving.served import events


def test_ids_and_text_are_one_prompt(client: TestClient) -> None:
    ids = client.post("/tokenize", json={"content": "hello"}).json()["tokens"]
    body = {"max_tokens": 10, "seed": 3}
    texts = [client.post("/v1/completions", json={**body, "prompt": prompt}).json() for prompt in ("hello", ids)]
    assert texts[0]["choices"] == texts[1]["choices"]
    assert texts[0]["usage"]["prompt_tokens"] == len(ids)


def test_a_list_of_prompts_gives_n_texts_of_each_in_order(client: TestClient) -> None:
    body = {"max_tokens": 6, "seed": 3}
    many = client.post("/v1/completions", json={**body, "prompt": ["one", "two"], "n": 2}).json()
    assert [choice["index"] for choice in many["choices"]] == [0, 1, 2, 3]
    for place, (prompt, seed) in enumerate((("one", 3), ("one", 4), ("two", 3), ("two", 4))):
        alone = client.post("/v1/completions", json={"max_tokens": 6, "prompt": prompt, "seed": seed}).json()
        assert many["choices"][place]["text"] == alone["choices"][0]["text"]
    assert many["usage"]["prompt_tokens"] == 6
    ids = [[111, 110, 101], [116, 119, 111]]
    again = client.post("/v1/completions", json={**body, "prompt": ids, "n": 2}).json()
    assert [one["text"] for one in again["choices"]] == [one["text"] for one in many["choices"]]


def test_sixteen_new_tokens_are_the_default(client: TestClient) -> None:
    body = {"prompt": "hello", "temperature": 0, "logit_bias": {}}
    usage = client.post("/v1/completions", json=body).json()
    assert usage["usage"]["completion_tokens"] == 16 or usage["choices"][0]["finish_reason"] == "stop"


def test_echo_begins_with_the_prompt(client: TestClient) -> None:
    body = {"prompt": "hello", "max_tokens": 4, "seed": 1}
    plain = client.post("/v1/completions", json=body).json()["choices"][0]["text"]
    echoed = client.post("/v1/completions", json={**body, "echo": True}).json()["choices"][0]["text"]
    assert echoed == "hello" + plain
    stream = client.post("/v1/completions", json={**body, "echo": True, "stream": True})
    assert "".join(chunk["choices"][0]["text"] for chunk in events(stream.text)) == echoed


def test_no_new_tokens_with_echo_give_the_prompt_alone(client: TestClient) -> None:
    body = {"prompt": "hello", "max_tokens": 0, "echo": True}
    answer = client.post("/v1/completions", json=body).json()
    assert answer["choices"][0]["text"] == "hello"
    assert answer["usage"]["completion_tokens"] == 0
    refused = client.post("/v1/completions", json={"prompt": "hello", "max_tokens": 0})
    assert refused.status_code == 400


def test_the_official_client_streams_a_completion(client: TestClient) -> None:
    official = openai.OpenAI(api_key="none", base_url="http://127.0.0.1/v1", http_client=client, max_retries=0)
    stream = official.completions.create(model="demo", prompt="hello", max_tokens=5, stream=True, seed=2)
    whole = official.completions.create(model="demo", prompt="hello", max_tokens=5, seed=2)
    assert "".join(chunk.choices[0].text for chunk in stream) == whole.choices[0].text


def test_what_completions_cannot_do_is_refused(client: TestClient) -> None:
    for field, value in (("suffix", "end"), ("best_of", 4)):
        response = client.post("/v1/completions", json={"prompt": "a", field: value})
        assert response.status_code == 400
        assert f"found {field}" in response.json()["error"]["message"]


def test_tokens_and_text_convert_into_each_other(client: TestClient) -> None:
    text = "naïve 🙂 日本"
    answer = client.post("/tokenize", json={"content": text, "model": "demo"}).json()
    assert answer["count"] == len(text.encode())
    assert answer["max_model_len"] == 96
    assert client.post("/detokenize", json={"tokens": answer["tokens"]}).json() == {"content": text, "prompt": text}
    assert client.post("/detokenize", json={"tokens": [257]}).status_code == 400


def test_the_shape_of_vllm_reads_special_tokens_and_that_of_llama_cpp_does_not(client: TestClient) -> None:
    info = client.get("/tokenizer_info").json()
    assert (info["eos_token"], info["bos_token"], info["size"]) == ("<|endoftext|>", None, 257)
    eos = info["eos_token"]
    assert client.post("/tokenize", json={"prompt": eos}).json()["tokens"] == [256]
    assert client.post("/tokenize", json={"content": eos}).json()["tokens"] == list(eos.encode())
    for body in ({}, {"prompt": "a", "content": "a"}):
        answer = client.post("/tokenize", json=body)
        assert answer.status_code == 400
        assert "expected one of them" in answer.json()["error"]["message"]


def test_embeddings_are_refused_clearly_without_hidden_states(client: TestClient) -> None:
    response = client.post("/v1/embeddings", json={"input": "hello"})
    assert response.status_code == 501
    assert "without its hidden states" in response.json()["error"]["message"]
