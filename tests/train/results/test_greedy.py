"""The greedy answer to a prompt: its text is what the tokens add to that of the prompt."""

import pytest
import torch
from support.foreign.tokenizer_families import END, FAMILIES, family

from adaptive_lm.train.model import ModelConfig, Transformer
from adaptive_lm.train.results.greedy import greedy_answer


@pytest.mark.parametrize("name", [name for name in FAMILIES if "byte" not in name and name != "Llama 2"])
def test_the_answer_begins_with_the_space_that_its_first_token_has_after_the_prompt(name: str) -> None:
    tokenizer = family(name)
    torch.manual_seed(0)
    model = Transformer(ModelConfig(vocab_size=tokenizer.get_vocab_size(), dim=32, num_layers=1, context_length=32))
    ids = tokenizer.encode("the fox", add_special_tokens=False).ids
    begun, end = len(ids), tokenizer.token_to_id(END)
    with torch.no_grad():
        model.eval()
        while len(ids) < begun + 5:
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
            if ids[-1] == end:
                ids.pop()
                break
    prompt, whole = tokenizer.decode(ids[:begun], False), tokenizer.decode(ids, False)
    assert prompt + greedy_answer(model, tokenizer, "the fox", 5, "fp32") == whole
