"""The quantized GRU as a Flax NNX module; `gru_jax.nnx` exports it."""

from typing import Protocol

import jax
from flax import nnx
from jax.lax import PrecisionLike
from jax.typing import ArrayLike

from gru_jax.params import GRUConfig, input_sizes
from gru_jax.quantized.gru import gru
from gru_jax.quantized.params import QuantizedParams, check_quantized, quantize_dynamic


class QuantizedParam(nnx.Variable):
    """One array of QuantizedParams. It is not an `nnx.Param`, so that no optimizer takes it for trainable."""


class FloatGRU(Protocol):
    """What `from_float` needs of a `gru_jax.nnx.GRU`."""

    config: GRUConfig


class QuantizedGRU(nnx.Module):
    """`torch.ao.nn.quantized.dynamic.GRU` as an NNX module; for inference only.

    Its state of type QuantizedParam is exactly the tree QuantizedParams.

    Args:
      qparams: as from `quantized.quantize_dynamic` or `quantized.from_torch`.
      batch_first: whether x and output are [N, L, ...]; h_0 and h_n never are.
      per_example: whether each sequence is quantized by itself; see `quantized.gru`.
      precision: that of matmuls with float16 weights.
      unroll: time steps in one iteration of the compiled loop.

    Example:
      >>> from gru_jax.nnx import GRU
      >>> module = QuantizedGRU.from_float(GRU(10, 20, bidirectional=True, rngs=nnx.Rngs(0)))
      >>> output, h_n = module(jax.numpy.ones((5, 3, 10)))
      >>> output.shape, h_n.shape
      ((5, 3, 40), (2, 3, 20))
    """

    def __init__(
        self,
        qparams: QuantizedParams,
        *,
        batch_first: bool = False,
        per_example: bool = False,
        precision: PrecisionLike = None,
        unroll: int = 1,
    ):
        check_quantized("nnx.QuantizedGRU", qparams)
        self.batch_first, self.per_example = batch_first, per_example
        self.precision, self.unroll = precision, unroll
        for name, cell in qparams.items():
            setattr(self, name, nnx.Dict({key: QuantizedParam(array) for key, array in cell.items()}))

    @classmethod
    def from_float(cls, module: FloatGRU, dtype: str = "int8", *, per_example: bool = False) -> "QuantizedGRU":
        """Quantizes a `gru_jax.nnx.GRU`. Its dropout is left out, since this module is for inference only.

        Raises:
          ValueError: if the module has the original paper's form of the new gate, which PyTorch does not quantize.
        """
        if not module.config.reset_after:
            raise ValueError("nnx.QuantizedGRU: expected a module with reset_after=True, PyTorch's form.")
        params = {name: getattr(module, name).params() for name in input_sizes(module.config)}
        qparams = quantize_dynamic(params, dtype)
        return cls(qparams, batch_first=module.config.batch_first, per_example=per_example)

    def __call__(
        self, x: jax.Array, h_0: jax.Array | None = None, *, seq_lengths: ArrayLike | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """Applies `quantized.gru`; its docstring gives the shapes and the errors."""
        cells = {name: cell for name, cell in vars(self).items() if isinstance(cell, nnx.Dict)}
        qparams = {name: {key: variable[...] for key, variable in cell.items()} for name, cell in cells.items()}
        return gru(
            qparams,
            x,
            h_0,
            seq_lengths=seq_lengths,
            batch_first=self.batch_first,
            per_example=self.per_example,
            precision=self.precision,
            unroll=self.unroll,
        )
