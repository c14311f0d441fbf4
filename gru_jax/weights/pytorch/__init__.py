"""Converts PyTorch's nn.GRU and nn.GRUCell to our parameters and back."""

from gru_jax.weights.pytorch.exporter import to_torch
from gru_jax.weights.pytorch.importer import find_grus, from_torch

__all__ = ["find_grus", "from_torch", "to_torch"]
