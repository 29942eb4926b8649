"""The files of a model: each form is written once, when a benchmark first asks for it.

Those of peers depend on the code of this package alone and are kept; our exports are written anew in every run.
"""

import hashlib
import importlib.util
from collections.abc import Callable
from pathlib import Path

from adaptive_lm.contract.file_names import HELDOUT
from adaptive_lm.train.data.tokenizers.tokenizers import byte_tokenizer
from adaptive_lm.train.model import Transformer
from models import gguf_file, hf_folder, random_weights
from models.random_weights import SIZES, SKIPPING, Precision, build, export, write_run


class Files:
    """The files of one model, under a folder whose name changes with the code that writes them."""

    def __init__(self, work: Path, model: str) -> None:
        sources = (random_weights, gguf_file, hf_folder)
        code = b"".join(Path(module.__file__ or "").read_bytes() for module in sources)
        self.name, self.size = model, SIZES[model]
        self.folder = work / hashlib.sha256(code).hexdigest()[:12] / model
        self.folder.mkdir(parents=True, exist_ok=True)
        self._model: Transformer | None = None

    @property
    def model(self) -> Transformer:
        """The model in torch."""
        if self._model is None:
            self._model = build(self.size)
        return self._model

    def export(self, precision: Precision, skipping: bool = False) -> Path:
        """Return the folder of our exported model."""
        return self.folder / f"ours-{precision}{'-skipping' if skipping else ''}"

    def write_exports(self, precision: Precision) -> None:
        """Write our exported models anew."""
        for skipping, size in ((False, self.size), (True, SKIPPING.get(self.name))):
            if size is None:
                continue
            run = self.folder / f"run{'-skipping' if skipping else ''}"
            if not (run / HELDOUT).exists():
                write_run(run, size)
            export(run, self.export(precision, skipping), precision)

    def gguf(self, precision: Precision) -> Path:
        """Return the file for llama.cpp."""
        whole = self._once("f32.gguf", lambda path: gguf_file.write_gguf(path, self.model))
        if precision == "fp32":
            return whole
        kind = gguf_file.NAMES[precision]
        return self._once(f"{kind}.gguf", lambda path: gguf_file.quantize(whole, path, kind))

    def hf(self) -> Path:
        """Return the folder for transformers."""
        return self._once("hf", lambda path: hf_folder.write_hf(path, self.model, byte_tokenizer().to_str()))

    def genai(self, precision: Precision) -> Path | None:
        """Return the folder for GenAI; None where it is not built yet and transformers, needed for that, is missing."""
        name = f"genai-{precision}"
        if not (self.folder / name).exists() and importlib.util.find_spec("transformers") is None:
            return None
        return self._once(name, lambda path: hf_folder.build_genai(self._genai_source(), path, precision))

    def _genai_source(self) -> Path:
        if self.size.experts == 1:
            return self.hf()
        return self._once("lfm2", lambda path: hf_folder.write_lfm2(path, self.model, byte_tokenizer().to_str()))

    def _once(self, name: str, write: Callable[[Path], None]) -> Path:
        path = self.folder / name
        if not path.exists():
            write(path)
        return path
