"""Converts GRUs in ONNX models to our parameters and back."""

from gru_jax.weights.onnx.exporter import to_onnx
from gru_jax.weights.onnx.importer import from_onnx

__all__ = ["from_onnx", "to_onnx"]
