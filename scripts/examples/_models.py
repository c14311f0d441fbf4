"""Two GRUs that other people trained with PyTorch, and the embeddings of the characters that they read."""

from typing import NamedTuple

import numpy as np
from published import g2p_en, packaged_file

from gru_jax import GRUConfig, from_torch
from gru_jax.params import GRUParams

NAMES = ("g2p-en", "uzmorph")


class Model(NamedTuple):
    """A ported GRU.

    Attributes:
      config: its sizes.
      params: GRUParams.
      embedding: [V, I], what it reads for each of V characters.
    """

    config: GRUConfig
    params: GRUParams
    embedding: np.ndarray


def open_model(name: str) -> Model:
    """Ports g2p-en's encoder, one layer of 256, or uzmorph's tagger, two layers of 64 in both directions."""
    if name == "g2p-en":
        published = g2p_en()
        return Model(*from_torch(published.encoder), published.letters)
    import torch  # seconds, which whoever opens the other need not wait

    state_dict = torch.load(packaged_file("uzmorph-bigru", "uzmorph_bigru/data/morph_bigru.pth"), weights_only=True)
    return Model(*from_torch(state_dict, "gru."), state_dict["char_embeddings.weight"].numpy())
