"""The file of moe-57m for the server of llama.cpp: the same weights as ours, with the tokenizer."""

from pathlib import Path

from adaptive_lm.contract.generation_settings import GenerationSettings
from adaptive_lm.export.outgoing.gguf import write_gguf
from adaptive_lm.export.outgoing.gguf_vocabulary import vocabulary_of
from adaptive_lm.train.data.tokenizers.ids import eos_id
from adaptive_lm.train.data.tokenizers.tokenizers import byte_tokenizer
from models import gguf_file
from models.files import Files
from models.random_weights import VOCABULARY


def server_file(files: Files) -> Path:
    """Return the file in q8_0; a server needs the tokenizer, which the file of the decode benchmark leaves out."""
    path = files.folder / "server-q8_0.gguf"
    if not path.exists():
        tokenizer = byte_tokenizer()
        settings = GenerationSettings(eos_ids=(eos_id(tokenizer),))
        vocabulary = vocabulary_of(tokenizer.to_str(), VOCABULARY, settings, None)
        whole = path.with_name("server-f32.gguf")
        write_gguf(whole, gguf_file.as_top_k(files.model.config), files.model.state_dict(), vocabulary)
        gguf_file.quantize(whole, path, "q8_0")
        whole.unlink()
    return path
