"""Converts Keras's GRU layers and files to our parameters and back."""

from gru_jax.weights.keras.exporter import to_keras
from gru_jax.weights.keras.importer import from_keras

__all__ = ["from_keras", "to_keras"]
