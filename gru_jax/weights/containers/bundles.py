"""Archives around files of weights: .tar, .tar.gz, .zip, and one file in .gz.

Each member is copied to a file under a name of ours, never extracted under its own.
"""

import gzip
import re
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, cast

from gru_jax.weights.containers.zips import refuse_bomb

LIMIT = 10**9  # bytes that a bundle may unpack to without being a hundredth of it itself
_ERRORS = (
    *(tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, EOFError, RuntimeError, NotImplementedError),
    *(KeyError, IndexError, OverflowError, MemoryError),
)


def unpack(path: Path, kind: str, folder: Path) -> Iterator[tuple[str, Path]]:
    """Yields each regular file's name in an archive of this `kind`, one of `ARCHIVES`, and its copy in `folder`.

    Raises:
      ValueError: if the archive is damaged or hostile.
    """
    total, held, names = 0, path.stat().st_size, set()
    try:
        for name, size, stream in _members(path, kind):
            # A name is only ever shown, but one that tries to escape says what the archive is for.
            if re.match(r"[/\\]|[A-Za-z]:", name) or ".." in re.split(r"[/\\]", name):
                raise ValueError(f"not opened: the path of its member {name!r} escapes from the archive.")
            if stream is None:
                continue
            if name in names:
                raise ValueError(f"two of its members have the same name, {name!r}.")
            total += size
            refuse_bomb(total, held, limit=LIMIT)
            copy = folder / str(len(names)) / re.sub(r"[^A-Za-z0-9._-]", "_", re.split(r"[/\\]", name)[-1])[-100:]
            names.add(name)
            copy.parent.mkdir()
            with copy.open("xb") as target:
                shutil.copyfileobj(stream, target, 1 << 20)
            yield name, copy
    except _ERRORS as error:
        raise ValueError(f"a damaged {kind} archive: {error or type(error).__name__}.") from error


def _members(path: Path, kind: str) -> Iterator[tuple[str, int, IO[bytes] | None]]:
    """Yields each member's name, the size that it claims, and its bytes; None for what is no regular file."""
    if kind == "zip":
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                regular = not info.is_dir() and not stat.S_ISLNK(info.external_attr >> 16)
                yield _shown(info.filename), info.file_size, archive.open(info) if regular else None
    elif kind == "gz":
        with gzip.open(path) as stream:
            yield path.name.removesuffix(".gz"), 0, cast(IO[bytes], _Counted(stream, path.stat().st_size))
    else:
        with gzip.open(path) if kind == "tar.gz" else path.open("rb") as stream:
            counted = cast(IO[bytes], _Counted(stream, path.stat().st_size))
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

    def __init__(self, stream: IO[bytes] | gzip.GzipFile, held: int) -> None:
        self.stream, self.held, self.given = stream, held, 0

    def read(self, size: int = -1) -> bytes:
        """Reads on."""
        data = self.stream.read(size)
        self.given += len(data)
        refuse_bomb(self.given, self.held, limit=LIMIT)
        return data
