"""Reads zips that may be hostile or damaged: every claim is checked before anything is unpacked.

On a damaged zip zipfile raises struct.error, zlib.error, OverflowError and more. Here they all become ValueError.
"""

import zipfile
from pathlib import Path

BOMB_RATIO, BOMB_BYTES = 100, 100_000_000
_LONGEST_END = 22 + 2**16  # bytes of the record at the end of a zip, with a comment
_IN_ZIP64 = 2**16 - 1  # the number of entries in that record where the record of ZIP64 has it


def refuse_bomb(claimed: int, held: int, *, what: str = "the file", limit: int = BOMB_BYTES) -> None:
    """Raises ValueError if `held` bytes claim to unpack to more than `limit` and more than a hundred times as many.

    Compression never makes weights that small: such a file is made to fill the memory of whoever opens it.
    """
    if claimed > max(limit, BOMB_RATIO * held):
        raise ValueError(
            f"not opened: {what} has {held:,} bytes and claims to unpack to {claimed:,}, as a zip bomb does."
        )


def listed_entries(archive: zipfile.ZipFile) -> list[zipfile.ZipInfo]:
    """Returns the entries in a zip's directory, as many as its end says that there are.

    zipfile does not compare the two: one damaged length in the directory hides all entries after it.
    """
    infos, file = archive.infolist(), archive.fp
    if file is None:
        raise ValueError("the zip is closed.")
    file.seek(max(0, file.seek(0, 2) - _LONGEST_END))
    end = file.read()
    count = int.from_bytes(end[end.rfind(b"PK\x05\x06") :][10:12], "little")
    if count not in (len(infos), _IN_ZIP64):
        raise ValueError(f"damaged zip: its directory lists {len(infos)} entries, where its end says {count}.")
    return infos


def entries(path: Path) -> dict[str, zipfile.ZipInfo]:
    """Returns a zip's entries, after checking their claims against the size of the file and against one another."""
    try:
        with zipfile.ZipFile(path) as archive:
            infos = listed_entries(archive)
    except Exception as error:
        raise ValueError(f"damaged zip: {type(error).__name__}: {error}") from error
    end = path.stat().st_size
    for info in sorted(infos, key=lambda info: info.header_offset, reverse=True):
        if info.header_offset < 0 or info.header_offset + info.compress_size > end:
            raise ValueError(f"damaged zip: {info.filename} reaches into the next entry or beyond the file.")
        if info.compress_type == zipfile.ZIP_STORED and info.file_size != info.compress_size:
            raise ValueError(f"damaged zip: {info.filename} is not compressed, but claims another size.")
        end = info.header_offset
        refuse_bomb(info.file_size, info.compress_size, what=info.filename)
    by_name = {info.filename: info for info in infos}
    if len(by_name) != len(infos):
        raise ValueError("damaged zip: it has two entries of one name.")
    return by_name


def read(path: Path, name: str) -> bytes:
    """Returns an entry of a zip. zipfile checks its CRC."""
    try:
        with _unchecked_where_unwritten(zipfile.ZipFile(path)) as archive:
            return archive.read(name)
    except Exception as error:
        raise ValueError(f"damaged zip: {error}") from error


def _unchecked_where_unwritten(archive: zipfile.ZipFile) -> zipfile.ZipFile:
    """Removes CRCs that are 0, so that zipfile does not check them.

    After torch.serialization.set_crc32_options(False), torch.save writes 0 for every CRC.
    """
    for info in archive.infolist():
        if not info.CRC:
            del info.CRC
    return archive


def check_crcs(path: Path) -> None:
    """Raises ValueError if a byte of the zip has changed since it was written: torch.load itself would not notice."""
    try:
        with _unchecked_where_unwritten(zipfile.ZipFile(path)) as archive:
            broken = archive.testzip()
    except Exception as error:
        raise ValueError(f"damaged zip: {error}") from error
    if broken is not None:
        raise ValueError(f"damaged zip: the CRC of {broken} does not match.")
