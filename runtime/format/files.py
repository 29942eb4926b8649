"""Check the files of an exported model: inside their folder, complete, and unchanged since they were written.

The check comes before the files are opened. It protects from a damaged or crafted model, but not from someone who can
write into its folder while it loads.
"""

import hashlib
import stat
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from ...contract.errors import UserError
from ...contract.files import cannot_write, write_whole
from ...contract.text.compression import refuse_pointer
from .external_data import Reference, external_data


def digest(path: Path) -> str:
    """Return the SHA-256 of a file as hexadecimal text."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_files(folder: Path, files: Mapping[str, tuple[int, str]], graphs: Mapping[str, str], *, verify: bool) -> None:
    """Check the files that a manifest lists, then the places of the weights of each graph.

    A file must have a plain name and be a regular file without a second name: a symbolic or hard link could lead the
    loader to a file that does not belong to the model.

    Args:
        folder: The folder of the model.
        files: Name -> size in bytes and SHA-256.
        graphs: Name of each graph -> the only file that its weights may be in.
        verify: Whether to compare the digests too.

    Raises:
        UserError: a file is missing, changed, a link, a Git LFS pointer, or outside the folder.
    """
    for name, (size, sha256) in files.items():
        path = contained(folder, name)
        actual_size = path.stat().st_size
        if actual_size != size:
            refuse_pointer(path)
            raise UserError(
                f"{path} is damaged: found {actual_size} bytes, the manifest says {size}; export the model again"
            )
        if verify:
            check_digest(path, sha256)
    sizes = {name: size for name, (size, _) in files.items()}
    for graph, weights in graphs.items():
        check_external_data(folder / graph, weights, sizes)


def check_digest(path: Path, sha256: str) -> None:
    """Compare a file with its digest.

    Raises:
        UserError: it is another file, or cannot be read.
    """
    try:
        actual = digest(path)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; make it readable or copy the model") from error
    if actual != sha256:
        raise UserError(f"{path} is damaged: found sha256 {actual}, the manifest says {sha256}; export the model again")


@contextmanager
def checking_digests(digests: Mapping[Path, str]) -> Iterator[None]:
    """Compare files with their digests on another thread while the block runs, and wait for the outcome at its end.

    Raises:
        UserError: a file is damaged; where the block fails too, this is the reason that counts.
    """
    with ThreadPoolExecutor(1, "digest") as pool:
        pending = [pool.submit(check_digest, path, sha256) for path, sha256 in digests.items()]
        try:
            yield
        finally:
            for check in pending:
                check.result()


def contained(folder: Path, name: str) -> Path:
    """Return the path of `name` in `folder`.

    Raises:
        UserError: the name is not a plain file name, or the file is missing, not regular, or has a second name.
    """
    if name != Path(name).name or name in ("", ".", "..") or "\\" in name or ":" in name or "\0" in name:
        raise UserError(f"{folder}: the manifest names {name!r}, which is not a plain file name; do not use this model")
    path = folder / name
    try:
        status = path.lstat()
    except FileNotFoundError:
        raise UserError(
            f"{path} is missing, the manifest lists it; copy the whole folder, or export the model again"
        ) from None
    if not stat.S_ISREG(status.st_mode):
        kind = "a symbolic link" if stat.S_ISLNK(status.st_mode) else "not a regular file"
        raise UserError(
            f"{path} is {kind}, expected a regular file inside the folder; copy the file itself to its place"
        )
    if status.st_nlink > 1:
        raise UserError(
            f"{path} is a hard link ({status.st_nlink} names), expected a file of its own; copy the file to its place"
        )
    return path


def check_external_data(graph: Path, weights: str, sizes: Mapping[str, int]) -> None:
    """Check that every weight outside the file of the graph is inside the file `weights`.

    Raises:
        UserError: a weight is stored elsewhere.
    """
    for reference in set(external_data(graph)):
        problem = _problem(reference, weights, sizes)
        if problem:
            raise UserError(f"{graph}: {problem}; do not use this model")


def _problem(reference: Reference, weights: str, sizes: Mapping[str, int]) -> str | None:
    if reference.location != weights:
        return f"its weights point to {reference.location!r}, expected {weights!r}"
    if weights not in sizes:
        return f"its weights are in {weights}, which the manifest does not list"
    if reference.offset < 0 or reference.length < 0 or reference.offset + reference.length > sizes[weights]:
        return (
            f"a weight points to bytes {reference.offset} to {reference.offset + reference.length} of {weights}, "
            f"which has {sizes[weights]}"
        )
    return None


def write_output(path: Path, content: bytes) -> Path:
    """Write a file that the user requested, whole or not at all.

    Raises:
        UserError: the file cannot be written; what was there is untouched.
    """
    try:
        write_whole(path, content)
    except OSError as error:
        raise cannot_write(path, error) from error
    return path
