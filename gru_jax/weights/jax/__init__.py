"""Converts GRU cells of the JAX libraries Flax, Equinox and Haiku to our parameters and back."""

from gru_jax.weights.jax.equinox import from_equinox, to_equinox
from gru_jax.weights.jax.flax import from_flax, to_linen, to_nnx
from gru_jax.weights.jax.haiku import from_haiku, to_haiku

__all__ = ["from_equinox", "from_flax", "from_haiku", "to_equinox", "to_haiku", "to_linen", "to_nnx"]
