"""The quantized GRU as a Flax Linen module; `gru_jax.linen` exports it."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
from jax.lax import PrecisionLike
from jax.typing import ArrayLike

from gru_jax.params import GRUConfig, check_declared, init_params
from gru_jax.quantized.gru import gru
from gru_jax.quantized.params import check_quantized, quantize_dynamic, without_scales


class QuantizedGRU(nn.Module):
    """`torch.ao.nn.quantized.dynamic.GRU` as a Linen module; for inference only.

    `variables["params"]` is exactly QuantizedParams, so what `quantized.quantize_dynamic` makes of a `linen.GRU`'s
    params, and what `quantized.from_torch` returns, goes straight into `apply`. `init` makes the same structure with
    random weights.

    Attributes:
      input_size: the number of features of x, I.
      hidden_size: the number of features of h, H.
      num_layers: how many layers are stacked.
      bias: whether there are bias_ih and bias_hh.
      batch_first: whether x and output are [N, L, ...]; h_0 and h_n never are.
      dropout: kept but never applied, as in PyTorch.
      bidirectional: whether each layer also reads its input backwards.
      weight_dtype: "int8" or "float16", the kind of weights that `init` makes; `apply` takes either.
      per_example: whether each sequence is quantized by itself; see `quantized.gru`.
      precision: that of matmuls with float16 weights.
      unroll: time steps in one iteration of the compiled loop.

    Example:
      >>> from gru_jax import linen
      >>> module = linen.GRU(10, 20, bidirectional=True)
      >>> variables = module.init(jax.random.key(0), jax.numpy.ones((5, 3, 10)))
      >>> small = QuantizedGRU.from_config(module.config)
      >>> qparams = quantize_dynamic(variables["params"])
      >>> output, h_n = small.apply({"params": qparams}, jax.numpy.ones((5, 3, 10)))
      >>> output.shape, h_n.shape
      ((5, 3, 40), (2, 3, 20))
    """

    input_size: int
    hidden_size: int
    num_layers: int = 1
    bias: bool = True
    batch_first: bool = False
    dropout: float = 0.0
    bidirectional: bool = False
    weight_dtype: str = "int8"
    per_example: bool = False
    precision: PrecisionLike = None
    unroll: int = 1

    @classmethod
    def from_config(cls, config: GRUConfig, **options: Any) -> "QuantizedGRU":
        """Makes the module of `config`, which must have PyTorch's form of the new gate.

        >>> QuantizedGRU.from_config(GRUConfig(10, 20, batch_first=True)).batch_first
        True
        """
        if not config.reset_after:
            raise ValueError("linen.QuantizedGRU: expected a config with reset_after=True, PyTorch's form.")
        sizes = {key: value for key, value in dataclasses.asdict(config).items() if key != "reset_after"}
        return cls(**sizes, **options)

    def __post_init__(self) -> None:
        """Checks the arguments when the module is made."""
        super().__post_init__()
        self.config  # noqa: B018

    @property
    def config(self) -> GRUConfig:
        """The arguments that PyTorch's GRU has, too."""
        names = [field.name for field in dataclasses.fields(GRUConfig) if field.name != "reset_after"]
        return GRUConfig(**{name: getattr(self, name) for name in names})

    @nn.compact
    def __call__(
        self, x: jax.Array, h_0: jax.Array | None = None, *, seq_lengths: ArrayLike | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """Applies `quantized.gru`; its docstring gives the shapes and the errors."""
        if self.is_initializing():
            drawn = init_params(self.make_rng("params"), self.config)
            for name, cell in quantize_dynamic(drawn, self.weight_dtype).items():
                self.put_variable("params", name, cell)
        qparams = nn.meta.unbox(self.variables.get("params", {}))
        check_quantized("linen.QuantizedGRU", qparams)
        check_declared("linen.QuantizedGRU", self.config, without_scales(qparams))
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
