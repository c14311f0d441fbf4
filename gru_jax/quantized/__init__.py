"""PyTorch's dynamically quantized GRU: int8 weights and activations, or float16 weights. For inference only.

qparams = quantize_dynamic(params)            a quarter of the bytes ("float16": half)
output, h_n = quantized.gru(qparams, x)       the numbers of torch.ao.nn.quantized.dynamic.GRU
"""

from gru_jax.quantized.files import load, save
from gru_jax.quantized.gru import gru, gru_step
from gru_jax.quantized.params import quantize_dynamic, to_float
from gru_jax.quantized.pytorch import from_torch

__all__ = ["from_torch", "gru", "gru_step", "load", "quantize_dynamic", "save", "to_float"]
