"""The safetensors files of a folder: one, or several with an index. Tensors are read one at a time."""

import json
import threading
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import ForeignFileError, UnsupportedModelError, listed, short
from .paths import read_json

WHOLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
DTYPES: Mapping[str, torch.dtype] = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""The dtypes that weights may have."""
CURE = "download the model again"


def weight_files(folder: Path, files: Mapping[str, Path]) -> dict[str, Path]:
    """Return the safetensors files that hold the weights, by name.

    Args:
        folder: The folder, for messages.
        files: Its files by name, links resolved.

    Raises:
        ForeignFileError: There are none, the index names a file that is missing, or only pickles are there.
    """
    if INDEX in files:
        shards = sorted(set(_weight_map(files[INDEX]).values()))
        missing = [name for name in shards if name not in files]
        if missing:
            raise ForeignFileError(
                f"{folder / INDEX} names {len(shards)} files, of which {listed(missing)} are missing; {CURE}"
            )
        return {name: files[name] for name in shards}
    present = sorted(name for name in files if name.endswith(".safetensors"))
    if WHOLE in present or len(present) == 1:
        name = WHOLE if WHOLE in present else present[0]
        return {name: files[name]}
    if present:
        raise ForeignFileError(
            f"{folder} has {len(present)} safetensors files and no {INDEX}, which says what is in which; {CURE} with it"
        )
    pickles = sorted(name for name in files if name.endswith((".bin", ".pt", ".pth", ".ckpt", ".pkl")))
    if pickles:
        raise ForeignFileError(
            f"the weights in {folder} are a pickle ({listed(pickles)}), which can run any program when it is read; "
            "this program reads safetensors. Take the safetensors of the model, or convert them where you trust the "
            "file: AutoModelForCausalLM.from_pretrained(PATH).save_pretrained(PATH, safe_serialization=True)"
        )
    raise ForeignFileError(f"{folder} has no weights: expected {WHOLE}, or several with {INDEX}; {CURE}")


def _weight_map(index: Path) -> dict[str, str]:
    """Read tensor -> file from an index."""
    content = read_json(index)
    weights = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weights, dict) or not weights:
        raise ForeignFileError(f"{index} has no weight_map; {CURE}")
    for tensor, name in weights.items():
        plain = isinstance(name, str) and name == Path(name).name and "\\" not in name
        if not plain or not name.endswith(".safetensors"):
            raise ForeignFileError(
                f"{index} puts {short(tensor)} into {short(repr(name))}; expected the name of a .safetensors file "
                f"beside it; {CURE}"
            )
    return dict(weights)


class SafetensorsSource:
    """The tensors of safetensors files; a `TensorSource`. Headers are checked when it is made.

    Args:
        files: The files by name.
        index: The index, where there are several.

    Raises:
        ForeignFileError: A file is damaged, a tensor is in two files, or the index does not fit them.
    """

    def __init__(self, files: Mapping[str, Path], index: Path | None = None) -> None:
        self._places: dict[str, Path] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._dtypes: dict[str, str] = {}
        self._open: tuple[Path, Any] | None = None
        self._lock = threading.Lock()
        for path in files.values():
            self._read_header(path)
        if index is not None:
            self._compare(_weight_map(index), files, index)

    def _read_header(self, path: Path) -> None:
        refuse_repeated_names(path)
        with damaged(path):
            file: Any = safe_open(path, framework="pt")
            for name in file.keys():  # noqa: SIM118 - it is no mapping
                if name in self._places:
                    raise ForeignFileError(f"{short(name)} is in {self._places[name]} and in {path}; {CURE}")
                part = file.get_slice(name)
                self._places[name], self._shapes[name] = path, tuple(part.get_shape())
                self._dtypes[name] = part.get_dtype()

    def _compare(self, weight_map: Mapping[str, str], files: Mapping[str, Path], index: Path) -> None:
        wrong = [name for name, file in weight_map.items() if self._places.get(name) != files[file]]
        if wrong:
            raise ForeignFileError(
                f"{index} puts {listed(wrong)} into files that do not hold them: the files are of two models; {CURE}"
            )
        left = sorted(self._places.keys() - weight_map.keys())
        if left:
            raise ForeignFileError(f"{listed(left)} is in the files, but not in {index}; {CURE}")

    def names(self) -> AbstractSet[str]:
        """Return the names of all tensors."""
        return self._places.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor."""
        return self._shapes[name]

    def dtype(self, name: str) -> torch.dtype:
        """Return the dtype of a tensor.

        Raises:
            UnsupportedModelError: It is one that weights cannot have.
        """
        dtype = self._dtypes[name]
        if dtype not in DTYPES:
            raise UnsupportedModelError(
                f"{short(name)} in {self._places[name]} is stored as {dtype}, expected {', '.join(DTYPES)}: this "
                "program has no weights that are stored quantised; import the model that it was made from, and "
                "quantise it by adaptive export --quantize"
            )
        return DTYPES[dtype]

    def read(self, name: str) -> Tensor:
        """Read one tensor, which is a copy: the file may change later without a change of it."""
        path = self._places[name]
        with self._lock, damaged(path):
            if self._open is None or self._open[0] != path:
                self._open = path, safe_open(path, framework="pt")  # the mapping of one file at a time
            tensor: Tensor = self._open[1].get_tensor(name)
            return tensor.clone()


class damaged:  # noqa: N801 - used as a function
    """Turn the errors of the library into ours, with the name of the file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if isinstance(error, SafetensorError | OSError | OverflowError | RuntimeError | MemoryError | TypeError):
            raise ForeignFileError(
                f"{self.path} is damaged or no safetensors file: {short(error, 200)}; {CURE}"
            ) from error


def refuse_repeated_names(path: Path) -> None:
    """Check that a header names each tensor once; the library would keep the last.

    Raises:
        ForeignFileError: A name is there twice, or the header is no JSON.
    """
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            if size > LARGEST_HEADER:
                raise ForeignFileError(
                    f"{path} is damaged or no safetensors file: its header takes {size} bytes, expected at most "
                    f"{LARGEST_HEADER}; {CURE}"
                )
            json.loads(file.read(size), object_pairs_hook=_once)
    except ForeignFileError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise ForeignFileError(f"{path} is damaged or no safetensors file: {short(error, 200)}; {CURE}") from error


LARGEST_HEADER = 100_000_000
"""Bytes; the limit of the format."""


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"its header has {short(repeated)} twice")
    return values
