"""PyTorch's GRU, exactly, in JAX: pure functions, Flax modules, and importers of trained weights."""

from gru_jax import linen as linen
from gru_jax import nnx as nnx
from gru_jax import quantized as quantized
from gru_jax.cell import gru_step as gru_step
from gru_jax.params import GRUConfig as GRUConfig
from gru_jax.params import infer_config as infer_config
from gru_jax.params import init_params as init_params
from gru_jax.sequences import PackedSequence as PackedSequence
from gru_jax.sequences import pack_padded_sequence as pack_padded_sequence
from gru_jax.sequences import pad_packed_sequence as pad_packed_sequence
from gru_jax.stack import gru as gru
from gru_jax.stack import stacked_step as stacked_step
from gru_jax.weights.checkpoint import load as load
from gru_jax.weights.pytorch import find_grus as find_grus
from gru_jax.weights.pytorch import from_torch as from_torch
from gru_jax.weights.pytorch import to_torch as to_torch
from gru_jax.weights.safetensors import save as save
