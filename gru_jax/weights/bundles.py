"""Archives around files of weights: .tar, .tar.gz, .zip, and one file in .gz.

A member is copied to a temporary file under a name of ours, never extracted under its own.
"""

import gzip
import re
import shutil
import stat
import tarfile
import tempfile
import weakref
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, cast

from gru_jax.weights.arrays import refuse_bomb
from gru_jax.weights.found import Contents

LIMIT = 10**9  # bytes that a bundle may unpack to without being a hundredth of it itself
_ERRORS = (
    *(tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, EOFError, RuntimeError, NotImplementedError),
    *(KeyError, IndexError, OverflowError, MemoryError),
)


def open_bundle(path: Path, kind: str, open_file: Callable[[Path], Contents | None]) -> Contents:
    """Opens the files of weights in an archive.

    Args:
      path: of the archive.
      kind: "zip", "tar", "tar.gz" or "gz".
      open_file: opens a file; None for one that is none of weights.

    Returns:
      The contents of the only file of weights, or of the only one that holds GRUs. Of several, those of all, where
      each name begins with its file's: "encoder.pt:rnn.".

    Raises:
      ValueError: if the archive is damaged or hostile, or holds no file of weights.
    """
    folder = _Folder()
    opened: dict[str, Contents] = {}
    refused: dict[str, str] = {}
    others: dict[str, str] = {}
    for name, copy in _copies(path, kind, folder.path):
        try:
            contents = open_file(copy)
        except (ValueError, TypeError, OSError) as error:
            refused[name] = str(error).replace(str(copy), name)
        else:
            if contents:
                opened[name] = contents
                continue
            others[name] = f"a file of {copy.stat().st_size:,} bytes"
        copy.unlink()
    if not opened:
        said = "; ".join(refused.values()) or ", ".join(list(others)[:10]) or "nothing"
        raise ValueError(f"{path}: expected a file of weights in this {kind}, found {said}")
    return _merged(kind, folder, opened, refused, others)


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
    """A temporary folder, removed when nothing refers to this object any more, and when Python ends."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="gru_jax."))
        weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)

    def kept_for(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Returns the function, with a reference to the folder whose files it reads."""

        def call(*arguments: Any, _folder: _Folder = self) -> Any:
            return function(*arguments)

        return call


def _copies(path: Path, kind: str, folder: Path) -> Iterator[tuple[str, Path]]:
    """Yields each regular file's name in the archive, and its copy in `folder`."""
    total, held, names = 0, path.stat().st_size, set()
    try:
        for name, size, stream in _members(path, kind):
            # A name is only ever shown, but one that tries to escape says what the archive is for.
            if re.match(r"[/\\]|[A-Za-z]:", name) or ".." in re.split(r"[/\\]", name):
                raise ValueError(f"{path}: not opened: the path of its member {name!r} escapes from the archive.")
            if stream is None:
                continue
            if name in names:
                raise ValueError(f"{path}: two of its members have the same name, {name!r}.")
            total += size
            refuse_bomb(path, total, held, LIMIT)
            copy = folder / str(len(names)) / re.sub(r"[^A-Za-z0-9._-]", "_", re.split(r"[/\\]", name)[-1])[-100:]
            names.add(name)
            copy.parent.mkdir()
            with copy.open("xb") as target:
                shutil.copyfileobj(stream, target, 1 << 20)
            yield name, copy
    except _ERRORS as error:
        raise ValueError(f"{path}: a damaged {kind} archive: {error or type(error).__name__}.") from error


def _members(path: Path, kind: str) -> Iterator[tuple[str, int, IO[bytes] | None]]:
    """Yields each member's name, the size that it claims, and its bytes; None for what is no regular file."""
    if kind == "zip":
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                regular = not info.is_dir() and not stat.S_ISLNK(info.external_attr >> 16)
                yield _shown(info.filename), info.file_size, archive.open(info) if regular else None
    elif kind == "gz":
        with gzip.open(path) as stream:
            yield path.name.removesuffix(".gz"), 0, cast(IO[bytes], _Counted(path, stream))
    else:
        with gzip.open(path) if kind == "tar.gz" else path.open("rb") as stream:
            counted = cast(IO[bytes], _Counted(path, stream))
            with tarfile.open(fileobj=counted, mode="r|") as archive:
                for member in archive:
                    yield _shown(member.name), member.size, archive.extractfile(member) if member.isreg() else None
                # tarfile takes a damaged header for the end. What follows the end is zeros; gzip then checks its sum.
                while rest := cast(Any, archive.fileobj).read(1 << 20):
                    if rest.strip(b"\0"):
                        raise tarfile.ReadError("a header is damaged")


def _shown(name: str) -> str:
    """The name without what is no text, and could steer a terminal."""
    return "".join(character if character.isprintable() else "?" for character in name)


class _Counted:
    """A stream that stops when it has given far more than the file can hold: neither tar nor gzip says so before."""

    def __init__(self, path: Path, stream: IO[bytes] | gzip.GzipFile) -> None:
        self.path, self.stream, self.given = path, stream, 0

    def read(self, size: int = -1) -> bytes:
        """Reads on."""
        data = self.stream.read(size)
        self.given += len(data)
        refuse_bomb(self.path, self.given, self.path.stat().st_size, LIMIT)
        return data
