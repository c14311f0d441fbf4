"""Unpacks archives of files of weights: .tar, .tar.gz, .zip, and .gz around one file.

Each member is copied to a path that we choose. It is never extracted to its own path.
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

from gru_jax.weights.containers.zips import listed_entries, refuse_bomb

LIMIT = 10**9  # bytes that any bundle may unpack to; more are allowed up to a hundred times its own size
_ERRORS = (
    *(tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, EOFError, RuntimeError, NotImplementedError),
    *(KeyError, IndexError, OverflowError, MemoryError),
)


def unpack(path: Path, kind: str, folder: Path) -> Iterator[tuple[str, Path]]:
    """Yields the name of each regular file in an archive, and its copy in `folder`. `kind` is one of `ARCHIVES`.

    Raises:
      ValueError: if the archive is damaged or hostile.
    """
    total, held, names = 0, path.stat().st_size, set()
    try:
        for name, size, stream in _members(path, kind):
            # Names are only shown, never used as paths, but one that tries to escape shows a hostile archive.
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
    """Yields each member's name, the size that it claims, and a stream of its bytes (None if it is no regular file)."""
    if kind == "zip":
        with zipfile.ZipFile(path) as archive:
            for info in listed_entries(archive):
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
                # tarfile takes a damaged header for the end, but after a real end there are only zeros. Reading all of
                # them also makes gzip check its CRC.
                while rest := cast(Any, archive.fileobj).read(1 << 20):
                    if rest.strip(b"\0"):
                        raise tarfile.ReadError("a header is damaged")


def _shown(name: str) -> str:
    """Returns the name with "?" for characters that are not printable, since they could control a terminal."""
    return "".join(character if character.isprintable() else "?" for character in name)


class _Counted:
    """A stream that raises ValueError once it has given far more bytes than the file can hold.

    Neither tar nor gzip says beforehand how many bytes there are in all.
    """

    def __init__(self, stream: IO[bytes] | gzip.GzipFile, held: int) -> None:
        self.stream, self.held, self.given = stream, held, 0

    def read(self, size: int = -1) -> bytes:
        """Reads up to `size` bytes, and counts them."""
        data = self.stream.read(size)
        self.given += len(data)
        refuse_bomb(self.given, self.held, limit=LIMIT)
        return data
