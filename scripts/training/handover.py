"""The trained GRUs back in PyTorch: written as a state_dict, read again, and run there and here."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np

from gru_jax import to_torch
from gru_jax.verify import Comparison, compare
from gru_jax.weights.checkpoint import open_checkpoint
from gru_jax.weights.containers.pytorch import save_torch
from training.data import Word, spelled
from training.model import Speller, parameters

FILE, WORDS = "grus.pt", 16


def write(folder: Path, speller: Speller) -> Path:
    """Writes both GRUs into one file: "encoder.weight_ih_l0", ..., "decoder.weight_ih_l0", ..."""
    grus = {"encoder": speller.encoder, "decoder": speller.decoder}
    state_dict = {f"{k}.{name}": a for k, gru in grus.items() for name, a in to_torch(parameters(gru)).items()}
    save_torch(folder / FILE, state_dict)
    return folder / FILE


def verify(path: Path, speller: Speller, words: list[Word]) -> dict[str, Comparison]:
    """Runs both GRUs of the file in torch.nn.GRU and in gru_jax, on the letters of real words, gradients too."""
    _, letters, _ = next(spelled(words[:WORDS], WORDS))
    x = np.asarray(speller.letters(jnp.asarray(letters)))
    return {prefix: compare(found, x) for prefix, found in open_checkpoint(path).grus.items()}
