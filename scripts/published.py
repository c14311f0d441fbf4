"""Trained GRUs that other people published, as files of installed packages. No package is imported, nothing unpickled.

g2p-en   English spelling to phonemes, trained on the CMU Pronouncing Dictionary: an encoder and a decoder GRUCell
"""

from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import numpy as np

GRAPHEMES = ["<pad>", "<unk>", "</s>", *"abcdefghijklmnopqrstuvwxyz"]
PHONEMES = (  # noqa: SIM905
    "<pad> <unk> <s> </s> AA0 AA1 AA2 AE0 AE1 AE2 AH0 AH1 AH2 AO0 AO1 AO2 AW0 AW1 AW2 AY0 AY1 AY2 B CH D DH EH0 EH1 "
    "EH2 ER0 ER1 ER2 EY0 EY1 EY2 F G HH IH0 IH1 IH2 IY0 IY1 IY2 JH K L M N NG OW0 OW1 OW2 OY0 OY1 OY2 P R S SH T TH "
    "UH0 UH1 UH2 UW UW0 UW1 UW2 V W Y Z ZH"
).split()
START, END, MOST_PHONEMES = 2, 3, 20


class G2pEn(NamedTuple):
    """The arrays of g2p-en.

    Attributes:
      encoder: the state_dict of a torch.nn.GRUCell, 256 -> 256.
      decoder: likewise.
      letters: [29, 256], the embedding of GRAPHEMES.
      phonemes: [74, 256], the embedding of PHONEMES.
      weight: [74, 256], from the decoder's state to the logits of PHONEMES.
      bias: [74].
    """

    encoder: dict[str, np.ndarray]
    decoder: dict[str, np.ndarray]
    letters: np.ndarray
    phonemes: np.ndarray
    weight: np.ndarray
    bias: np.ndarray


def packaged_file(distribution: str, path: str) -> Path:
    """Where an installed package keeps a file, found without importing the package."""
    return Path(str(metadata.distribution(distribution).locate_file(path)))


def g2p_en() -> G2pEn:
    """Reads the published file."""
    arrays = np.load(packaged_file("g2p-en", "g2p_en/checkpoint20.npz"), allow_pickle=False)
    names = {"w_ih": "weight_ih", "w_hh": "weight_hh", "b_ih": "bias_ih", "b_hh": "bias_hh"}
    cell = lambda side: {ours: arrays[f"{side}_{theirs}"] for theirs, ours in names.items()}
    return G2pEn(cell("enc"), cell("dec"), arrays["enc_emb"], arrays["dec_emb"], arrays["fc_w"], arrays["fc_b"])


def letter_ids(word: str) -> list[int]:
    """The numbers of a word's letters, and the end behind them."""
    return [GRAPHEMES.index(c) if c in GRAPHEMES[3:] else 1 for c in word.lower()] + [GRAPHEMES.index("</s>")]


def spelling(path: list[int]) -> str:
    """The phonemes before the end of the word."""
    return " ".join(PHONEMES[i] for i in path[: path.index(END) if END in path else None])
