"""Tokenizers rebuilt from GGUF metadata: the same ids as the tokenizer that the metadata were made from."""

import io
import json
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from support.foreign.gguf_models import write_random
from support.foreign.llama_cpp_logits import LlamaCpp
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from adaptive_lm.contract.errors import UserError
from adaptive_lm.train.importing.gguf.metadata import Metadata
from adaptive_lm.train.importing.gguf.pre_tokenizers import PRE_TOKENIZERS
from adaptive_lm.train.importing.gguf.reader import read_gguf
from adaptive_lm.train.importing.gguf.tokenizer import CONTROL, NORMAL, UNUSED, USER_DEFINED, tokenizer_of

SPECIAL, DEFINED = ("<|endoftext|>", "<|im_start|>", "<|im_end|>"), ("<think>", "    ")
LEARNED = [
    "The quick brown fox jumps over the lazy dog; it's 12.5 years old, isn't it? I'LL, WE'RE, they'VE.",
    "def f(x):\n\tif x > 1000:\n        return x ** 2 + 123456\n\n\n  print('naïve café déjà vu')\r\n",
    "Ünïcödé: 中文字符 日本語 한국어 العربية עברית हिन्दी ไทย Ελληνικά русский ℌ𝔢𝔩𝔩𝔬 ①②③ ٣٤٥ e\u0301 👩‍👩‍👧‍👦 🙂🙂",
] * 40
ODD = [
    *LEARNED[:3], "", " ", "  ", "   x", "x   ", "\n", " \n ", "\r\n\r\n", "\t\t", "a\u00a0b", "\u2028", "0", "00",
    "1234567890",
    "1,234.5", "x1y22z333", "I'm you'RE He'Ll", "'s't", "''", "CamelCaseHTTPServer", "snake_case_123", "https://a.b/c?d=e&f=1",
    "<|im_start|>user\nhi<|im_end|>", "<think>", "< think >", "e\u0301\u0301", "ﬁ ½ Å", "\u200b\u200d", "🙂a🙂",
    "\x00\x01\x7f",
    "…“quoted”—dash", "a\u0085b", "Ǆ ǅ ǆ ʰ ʹ", "ßẞ İı", "a/b/c", "{{x}}", "$1 €2 ₹3", "@user #tag",
]  # fmt: skip


def texts() -> list[str]:
    generator = random.Random(0)
    pieces = [*ODD, *"aZé中🙂 \n\t0'’.,-_/", "  ", "the", "123"]
    return ODD + ["".join(generator.choices(pieces, k=generator.randrange(1, 12))) for _ in range(400)]


def metadata(values: Mapping[str, Any]) -> Metadata:
    return Metadata({"general.architecture": "llama", **values}, Path("model.gguf"))


def byte_level(
    pre: pre_tokenizers.PreTokenizer, normalizer: normalizers.Normalizer | None = None, **options: Any
) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        LEARNED, trainers.BpeTrainer(vocab_size=700, initial_alphabet=alphabet, show_progress=False)
    )
    if options:
        content = json.loads(tokenizer.to_str())
        content["model"].update(options)
        tokenizer = Tokenizer.from_str(json.dumps(content))
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in SPECIAL])
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in DEFINED])
    return tokenizer


def as_metadata(tokenizer: Tokenizer, pre: str) -> Metadata:
    vocab = tokenizer.get_vocab(with_added_tokens=True)
    tokens = sorted(vocab, key=vocab.__getitem__)
    kinds = [CONTROL if token in SPECIAL else USER_DEFINED if token in DEFINED else NORMAL for token in tokens]
    merges = [" ".join(merge) for merge in json.loads(tokenizer.to_str())["model"]["merges"]]
    return metadata(
        {
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": pre,
            "tokenizer.ggml.tokens": [*tokens, "[PAD0]", "[PAD1]"],
            "tokenizer.ggml.token_type": np.array([*kinds, UNUSED, UNUSED], np.int32),
            "tokenizer.ggml.merges": merges,
        }
    )


def split(pattern: str) -> pre_tokenizers.PreTokenizer:
    parts = [
        pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
        pre_tokenizers.ByteLevel(False, use_regex=False),
    ]
    return pre_tokenizers.Sequence(parts)


# Each as in the tokenizer.json of the family, written out once more here so that a slip in the table shows.
END = r"\s*[\r\n]+|\s+(?!\S)|\s+"
FAMILIES: dict[str, Callable[[], Tokenizer]] = {
    "gpt-2": lambda: byte_level(pre_tokenizers.ByteLevel(False)),
    "smollm": lambda: byte_level(
        pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)])
    ),
    "llama-bpe": lambda: byte_level(
        split(r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|" + END),
        ignore_merges=True,
    ),
    "dbrx": lambda: byte_level(
        split(r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|" + END)
    ),
    "qwen2": lambda: byte_level(
        split(r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|" + END),
        normalizers.NFC(),
    ),
    "tekken": lambda: byte_level(
        split(
            r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?"
            r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|" + END
        ),
        ignore_merges=True,
    ),
    "gpt-4o": lambda: byte_level(
        split(
            r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
            r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
            r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|" + END
        )
    ),
}


@pytest.mark.parametrize("pre", FAMILIES)
def test_a_byte_level_tokenizer_gives_the_same_ids(pre: str) -> None:
    original = FAMILIES[pre]()
    rebuilt = Tokenizer.from_str(tokenizer_of(as_metadata(original, pre)).text)
    for text in texts():
        ids = original.encode(text, add_special_tokens=False).ids
        assert rebuilt.encode(text, add_special_tokens=False).ids == ids, text
        assert rebuilt.decode(ids, skip_special_tokens=False) == original.decode(ids, skip_special_tokens=False)


@pytest.mark.parametrize("pre", ["gpt-2", "smollm", "llama-bpe", "dbrx", "tekken", "gpt-4o"])
def test_text_of_western_letters_gets_the_ids_of_llama_cpp(pre: str, tmp_path: Path) -> None:
    original = FAMILIES[pre]()
    values = as_metadata(original, pre)
    path = write_random(tmp_path / "model.gguf", "llama", vocabulary=values)
    llama = LlamaCpp(path, 64)
    rebuilt = Tokenizer.from_str(read_gguf(path, lambda *_: None).tokenizer)
    for text in (LEARNED[0], LEARNED[1], "I'm 12345 years old.\n\n  x = 3.14159  # ok\n", "CamelCase HTTPServer it's"):
        assert rebuilt.encode(text, add_special_tokens=False).ids == llama.encode(text), text
    llama.close()


@pytest.mark.parametrize("prefixed", [True, False])
def test_a_sentencepiece_tokenizer_gives_the_same_ids(prefixed: bool) -> None:
    sentencepiece = pytest.importorskip("sentencepiece", reason="sentencepiece is not installed")
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([line for text in LEARNED for line in text.splitlines()]), model_writer=model,
        model_type="bpe", vocab_size=600, byte_fallback=True, character_coverage=0.98,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False, add_dummy_prefix=prefixed, max_sentencepiece_length=16, minloglevel=2,
        user_defined_symbols=["<think>"],
    )  # fmt: skip
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    ids = range(processor.vocab_size())

    def kind(number: int) -> int:
        if processor.is_unknown(number):
            return gguf.TokenType.UNKNOWN
        if processor.is_control(number):
            return gguf.TokenType.CONTROL
        if processor.is_byte(number):
            return gguf.TokenType.BYTE
        return gguf.TokenType.USER_DEFINED if processor.id_to_piece(number) == "<think>" else gguf.TokenType.NORMAL

    rebuilt = tokenizer_of(
        metadata(
            {
                "tokenizer.ggml.model": "llama",
                "tokenizer.ggml.tokens": [processor.id_to_piece(number) for number in ids],
                "tokenizer.ggml.scores": np.array([processor.get_score(number) for number in ids], np.float32),
                "tokenizer.ggml.token_type": np.array([kind(number) for number in ids], np.int32),
                "tokenizer.ggml.add_space_prefix": prefixed,
            }
        )
    )
    assert rebuilt.pre.add_bos
    tokenizer = Tokenizer.from_str(rebuilt.text)
    # SentencePiece takes `▁` for a space and drops NUL, which `tokenizers` does not.
    for text in (text for text in texts() if "\x00" not in text and "<" not in text and text):
        assert tokenizer.encode(text, add_special_tokens=False).ids == processor.encode(text), text
        assert tokenizer.decode(processor.encode(text)) == processor.decode(processor.encode(text))
    assert tokenizer.encode("<think>", add_special_tokens=False).ids[-1] == processor.piece_to_id("<think>")


def test_digits_of_smollm_are_cut_one_by_one() -> None:
    tokenizer = Tokenizer.from_str(tokenizer_of(as_metadata(FAMILIES["smollm"](), "smollm")).text)
    assert tokenizer.encode("x 2026").tokens[-4:] == ["2", "0", "2", "6"]


def test_unused_tokens_are_never_written() -> None:
    tokenizer = Tokenizer.from_str(tokenizer_of(as_metadata(FAMILIES["llama-bpe"](), "llama-bpe")).text)
    assert tokenizer.token_to_id("[PAD0]") is None


@pytest.mark.parametrize("pre", ["", "default", "chameleon"])
def test_an_unknown_pre_tokenizer_is_refused_with_the_cure(pre: str, tmp_path: Path) -> None:
    path = write_random(tmp_path / "model.gguf", "llama", pre=pre)
    with pytest.raises(UserError, match=r"put the tokenizer\.json of the same model beside the file") as refusal:
        read_gguf(path, lambda *_: None)
    assert "smollm" in str(refusal.value)
    whole = write_random(tmp_path / "other" / "model.gguf", "llama")
    (tmp_path / "tokenizer.json").write_text(read_gguf(whole, lambda *_: None).tokenizer, encoding="utf-8")
    model = read_gguf(path, lambda *_: None)
    assert model.tokenizer == (tmp_path / "tokenizer.json").read_text(encoding="utf-8")
    assert "beside the file" in model.notes[0]


def test_a_tokenizer_of_another_model_beside_the_file_is_refused(tmp_path: Path) -> None:
    path = write_random(tmp_path / "model.gguf", "llama")
    FAMILIES["gpt-2"]().save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UserError, match=r"tokenizer.json is of another model: \d+ of the 265 tokens"):
        read_gguf(path, lambda *_: None)
    (tmp_path / "tokenizer.json").write_text("{}", encoding="utf-8")
    with pytest.raises(UserError, match=r"is not a tokenizer\.json"):
        read_gguf(path, lambda *_: None)


def test_a_tokenizer_json_inside_the_file_comes_first() -> None:
    original = FAMILIES["gpt-2"]()
    values = as_metadata(original, "no such one")
    inside = Metadata({**values.values, "tokenizer.huggingface.json": original.to_str()}, Path("model.gguf"))
    assert tokenizer_of(inside).text == original.to_str()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokenizer.ggml.model": "bert"}, "has a tokenizer of type 'bert'; known are gpt2 and llama; put the"),
        ({"tokenizer.ggml.merges": ["i n", "the"]}, "the merge 'the' is not one of two tokens into one"),
        ({"tokenizer.ggml.merges": ["t \U0001f600"]}, "the merge 't .*' is not one of two tokens"),
        ({"tokenizer.ggml.token_type": np.ones(3, np.int32)}, "token_type is array.*expected an array of 5"),
        ({"tokenizer.ggml.tokens": []}, "token_type is"),
    ],
)
def test_a_vocabulary_that_does_not_fit_is_refused(change: dict[str, Any], message: str) -> None:
    values = as_metadata(FAMILIES["gpt-2"](), "gpt-2").values
    with pytest.raises(UserError, match=message):
        tokenizer_of(Metadata({**values, **change}, Path("model.gguf")))


def test_two_tokens_of_one_spelling_are_refused() -> None:
    values = dict(as_metadata(FAMILIES["gpt-2"](), "gpt-2").values)
    tokens = list(values["tokenizer.ggml.tokens"])  # type: ignore[arg-type,call-overload]  # texts
    tokens[5] = tokens[9]
    with pytest.raises(UserError, match="spells the tokens 5 and 9 alike"):
        tokenizer_of(Metadata({**values, "tokenizer.ggml.tokens": tokens}, Path("model.gguf")))


def test_every_pre_tokenizer_can_be_built() -> None:
    for pre in set(PRE_TOKENIZERS.values()):
        assert "".join(piece for piece, _ in pre.build().pre_tokenize_str("it's 12\n")) == "it'sĠ12Ċ"


def test_ends_templates_and_sampling_come_from_the_metadata(tmp_path: Path) -> None:
    path = write_random(
        tmp_path / "model.gguf", "llama",
        more={
            "tokenizer.chat_templates": ["tool_use", "bad name!"], "tokenizer.chat_template.tool_use": "{{ tools }}",
            "tokenizer.chat_template.bad name!": "x", "tokenizer.ggml.add_bos_token": True,
            "general.sampling.temp": 0.5,
            "general.sampling.top_k": 40, "general.license": "apache-2.0",
        },
    )  # fmt: skip
    model = read_gguf(path, lambda *_: None)
    assert model.generation.eos_ids == (2, 0)  # eos_token_id, and <|endoftext|> wherever it occurs
    assert (model.generation.bos_id, model.generation.add_bos) == (1, True)
    assert model.generation.special_tokens == {"bos": "<|im_start|>", "eos": "<|im_end|>"}
    assert model.generation.sampling == {"temperature": 0.5, "top_k": 40}
    assert model.templates["tool_use"] == "{{ tools }}"
    assert set(model.templates) == {"default", "tool_use"}
    assert "bad name!" in model.notes[0]
    assert (model.provenance.licence, model.provenance.family, model.provenance.format) == (
        "apache-2.0",
        "llama",
        "gguf",
    )
    assert set(model.provenance.files) == {"model.gguf"}


def test_an_end_outside_the_vocabulary_is_refused(tmp_path: Path) -> None:
    path = write_random(tmp_path / "model.gguf", "llama", more={"tokenizer.ggml.eot_token_id": 999})
    with pytest.raises(UserError, match="eot_token_id is 999, but there are 272 tokens"):
        read_gguf(path, lambda *_: None)
