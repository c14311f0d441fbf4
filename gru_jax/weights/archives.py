"""Opens an archive, and finds the GRUs in all files of weights inside it."""

import shutil
import tempfile
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from gru_jax.weights.containers.bundles import unpack
from gru_jax.weights.containers.signatures import ARCHIVES, kind_of
from gru_jax.weights.files import open_file
from gru_jax.weights.found import Contents, naming, with_names


def open_archive(path: Path, kind: str, names: Mapping[str, str] | None) -> Contents:
    """Opens the files of weights in an archive.

    Args:
      path: the archive.
      kind: one of `signatures.ARCHIVES`.
      names: other names for tensors, see `checkpoint.load`.

    Returns:
      The contents of all files of weights, where each name begins with its file's: "encoder.pt:rnn.". If only one file
      holds GRUs, or there is only one file of weights, its names stay as they are.

    Raises:
      ValueError: if the archive is damaged or hostile, or holds no file of weights.
    """
    folder = _Folder()
    opened: dict[str, Contents] = {}
    refused: dict[str, str] = {}
    others: dict[str, str] = {}
    for name, copy in unpack(path, kind, folder.path):
        try:
            with naming(name):
                contents = _open_member(copy, names)
        except (ValueError, TypeError, OSError) as error:
            refused[name] = str(error)
        else:
            if contents:
                opened[name] = with_names(name, contents)
                continue
            others[name] = f"a file of {copy.stat().st_size:,} bytes"
        copy.unlink()
    if not opened:
        said = "; ".join(refused.values()) or ", ".join(list(others)[:10]) or "nothing"
        raise ValueError(f"expected a file of weights in this {kind}, found {said}")
    return _merged(kind, folder, opened, refused, others)


def _open_member(copy: Path, names: Mapping[str, str] | None) -> Contents | None:
    """Opens a file from an archive. Returns None if it is no file of weights."""
    kind = kind_of(copy)
    if kind in ARCHIVES:
        raise ValueError("an archive inside an archive. Unpack the outer one first.")
    return None if kind in (None, "index") else open_file(copy, kind, names)


def _merged(
    kind: str, folder: "_Folder", opened: Mapping[str, Contents], refused: dict[str, str], others: dict[str, str]
) -> Contents:
    with_grus = [name for name, contents in opened.items() if contents.grus] or list(opened)
    grus = {}
    for name, contents in opened.items():
        start = "" if with_grus == [name] else f"{name}:"
        refused |= {start + key: why for key, why in contents.refused.items()}
        others |= {start + key: what for key, what in contents.others.items()}
        for key, gru in contents.grus.items():
            read, original = folder.kept_for(gru.read), folder.kept_for(gru.original)
            grus[start + key] = gru._replace(read=read, original=original)
    formats = dict.fromkeys(opened[name].format for name in with_grus)
    return Contents(f"{' and '.join(formats)} in {kind}", grus, refused, others)


class _Folder:
    """A temporary folder. It is removed when nothing refers to this object any more, or when Python ends."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="gru_jax."))
        weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)

    def kept_for(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Returns the function with a reference to this folder, so that the files that it reads stay there."""

        def call(*arguments: Any, _folder: _Folder = self) -> Any:
            return function(*arguments)

        return call
