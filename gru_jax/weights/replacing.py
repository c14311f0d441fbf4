"""Replaces a file or folder only after the new one is completely written."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields a temporary path beside `path`. The file or folder written there then replaces whatever is at `path`.

    If the writing fails or is interrupted, whatever was at `path` before stays.

    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with replacing(f"{folder}/a.txt") as made:
    ...         _ = made.write_text("new")
    ...     os.listdir(folder), Path(f"{folder}/a.txt").read_text()
    (['a.txt'], 'new')
    """
    path = Path(path)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
        made = Path(folder) / path.name
        yield made
        if path.is_dir() and not path.is_symlink():
            shutil.move(path, Path(folder) / "old")
        os.replace(made, path)
