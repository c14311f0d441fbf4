"""PyTorch's GRU, exactly, in JAX: pure functions, Flax modules, and importers of trained weights.

`from gru_jax import *` leaves out `gru_jax.linen` and `gru_jax.nnx`, whose names are those of Flax's own modules.
"""

from gru_jax import linen as linen
from gru_jax import nnx as nnx
from gru_jax import quantized
from gru_jax.cell import gru_step
from gru_jax.params import GRUConfig, infer_config, init_params
from gru_jax.sequences import PackedSequence, pack_padded_sequence, pad_packed_sequence
from gru_jax.stack import gru, stacked_step
from gru_jax.weights.checkpoint import load
from gru_jax.weights.pytorch import find_grus, from_torch, to_torch
from gru_jax.weights.saving import save

__all__ = [
    "GRUConfig",
    "PackedSequence",
    "find_grus",
    "from_torch",
    "gru",
    "gru_step",
    "infer_config",
    "init_params",
    "load",
    "pack_padded_sequence",
    "pad_packed_sequence",
    "quantized",
    "save",
    "stacked_step",
    "to_torch",
]
