"""Flax Linen modules: they hold the parameters, draw the random keys, and call `stack.gru`."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Initializer
from jax.lax import PrecisionLike
from jax.typing import ArrayLike, DTypeLike

from gru_jax import stack
from gru_jax.cell import gru_step
from gru_jax.gradients import Remat
from gru_jax.params import GRUConfig, cast, cell_shapes, check_declared, input_sizes, pytorch_uniform
from gru_jax.quantized.linen import QuantizedGRU as QuantizedGRU


class GRUCell(nn.RNNCellBase):
    """`torch.nn.GRUCell` for Flax's own `RNN` and `Bidirectional`; its parameters are exactly CellParams.

        r  = sigmoid(W_ir x + b_ir + W_hr h + b_hr)
        z  = sigmoid(W_iz x + b_iz + W_hz h + b_hz)
        n  = tanh(W_in x + b_in + r * (W_hn h + b_hn))
        h' = (1 - z) * n + z * h

    Called with (carry [..., H], inputs [..., I]) it returns (h', h'), in the carry's dtype.

    Attributes:
      input_size: I.
      hidden_size: H.
      bias: whether there are bias_ih and bias_hh.
      reset_after: False for the original paper's n = tanh(W_in x + b_in + W_hn (r * h) + b_hn).
      dtype: to compute in; what the arguments promote to by default.
      param_dtype: of the parameters.
      precision: of the matmuls. On a GPU or TPU only "highest" computes float32 as PyTorch does.
      kernel_init: draws kernel_ih; PyTorch's U(-1/sqrt(H), 1/sqrt(H)) by default, as for the next two.
      recurrent_kernel_init: draws kernel_hh.
      bias_init: draws bias_ih and bias_hh.

    Example:
      >>> rnn = nn.RNN(GRUCell(10, 20))
      >>> variables = rnn.init(jax.random.key(0), jnp.ones((3, 5, 10)))
      >>> rnn.apply(variables, jnp.ones((3, 5, 10))).shape
      (3, 5, 20)
    """

    input_size: int
    hidden_size: int
    bias: bool = True
    reset_after: bool = True
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    precision: PrecisionLike = None
    kernel_init: Initializer = pytorch_uniform
    recurrent_kernel_init: Initializer = pytorch_uniform
    bias_init: Initializer = pytorch_uniform

    def __post_init__(self) -> None:
        """Checks the arguments where the module is made."""
        super().__post_init__()
        self.config  # noqa: B018

    @property
    def config(self) -> GRUConfig:
        """The sizes, checked."""
        return GRUConfig(self.input_size, self.hidden_size, bias=self.bias, reset_after=self.reset_after)

    def setup(self) -> None:
        """Declares the parameters."""
        inits = {"kernel_ih": self.kernel_init, "kernel_hh": self.recurrent_kernel_init}
        shapes = cell_shapes(self.input_size, self.hidden_size, self.bias)
        for key, shape in shapes.items():
            setattr(self, key, self.param(key, inits.get(key, self.bias_init), shape, self.param_dtype))

    def params(self) -> dict[str, jax.Array]:
        """CellParams."""
        return {key: getattr(self, key) for key in cell_shapes(self.input_size, self.hidden_size, self.bias)}

    def __call__(self, carry: jax.Array, inputs: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Advances the carry by one time step."""
        check_declared("linen.GRUCell", self.config, {"l0": nn.meta.unbox(self.variables["params"])})
        params, h, x = cast((self.params(), carry, inputs), self.dtype)
        h = gru_step(params, h, x, reset_after=self.reset_after, precision=self.precision).astype(carry.dtype)
        return h, h

    @nn.nowrap
    def initialize_carry(self, rng: jax.Array | None, input_shape: tuple[int, ...]) -> jax.Array:
        """Zeros [..., H] for an input [..., I]; `rng` is not used."""
        return jnp.zeros((*input_shape[:-1], self.hidden_size), self.param_dtype)

    @property
    def num_feature_axes(self) -> int:
        """How many axes of the input hold features."""
        return 1


class GRU(nn.Module):
    """`torch.nn.GRU` as a Linen module: the arguments of PyTorch in PyTorch's order, then Flax's.

    `variables["params"]` is exactly GRUParams, so what `from_torch` returns goes straight into `apply`.

    Attributes:
      input_size: I.
      hidden_size: H.
      num_layers: how many layers are stacked.
      bias: whether there are bias_ih and bias_hh.
      batch_first: whether x and output are [N, L, ...]; h_0 and h_n never are.
      dropout: probability of a zero after every layer but the last, drawn from the "dropout" rng collection.
      bidirectional: whether each layer also reads its input backwards.
      reset_after: False for the original paper's new gate.
      dtype: to compute in; what the arguments promote to by default.
      param_dtype: of the parameters.
      precision: of the matmuls. On a GPU or TPU only "highest" computes float32 as PyTorch does.
      kernel_init: draws every kernel_ih; PyTorch's U(-1/sqrt(H), 1/sqrt(H)) by default, as for the next two.
      recurrent_kernel_init: draws every kernel_hh.
      bias_init: draws every bias.
      deterministic: True switches dropout off. Required, here or in the call, where dropout has an effect.
      remat: what the gradient computes again instead of storing it; see `gru`.
      unroll: time steps in one iteration of the compiled loop.

    Example:
      >>> module = GRU(10, 20, num_layers=2, bidirectional=True)
      >>> variables = module.init(jax.random.key(0), jnp.ones((5, 3, 10)))
      >>> output, h_n = module.apply(variables, jnp.ones((5, 3, 10)))
      >>> output.shape, h_n.shape
      ((5, 3, 40), (4, 3, 20))
    """

    input_size: int
    hidden_size: int
    num_layers: int = 1
    bias: bool = True
    batch_first: bool = False
    dropout: float = 0.0
    bidirectional: bool = False
    reset_after: bool = True
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    precision: PrecisionLike = None
    kernel_init: Initializer = pytorch_uniform
    recurrent_kernel_init: Initializer = pytorch_uniform
    bias_init: Initializer = pytorch_uniform
    deterministic: bool | None = None
    remat: Remat = None
    unroll: int = 1

    @classmethod
    def from_config(cls, config: GRUConfig, **flax_options: Any) -> "GRU":
        """Makes the module of `config`.

        >>> GRU.from_config(GRUConfig(10, 20, batch_first=True)).batch_first
        True
        """
        return cls(**dataclasses.asdict(config), **flax_options)

    def __post_init__(self) -> None:
        """Checks the arguments where the module is made, as PyTorch does, not where it is first called."""
        super().__post_init__()
        self.config  # noqa: B018

    @property
    def config(self) -> GRUConfig:
        """The PyTorch part of the arguments."""
        return GRUConfig(**{field.name: getattr(self, field.name) for field in dataclasses.fields(GRUConfig)})

    def setup(self) -> None:
        """Makes one cell a layer and direction, to hold its parameters."""
        cell_options = ("reset_after", "param_dtype", "kernel_init", "recurrent_kernel_init", "bias_init")
        options = {name: getattr(self, name) for name in cell_options}
        for name, size in input_sizes(self.config).items():
            setattr(self, name, GRUCell(size, self.hidden_size, self.bias, **options))

    def __call__(
        self,
        x: jax.Array,
        h_0: jax.Array | None = None,
        *,
        seq_lengths: ArrayLike | None = None,
        resets: jax.Array | None = None,
        deterministic: bool | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        """Applies `gru`; its docstring gives the shapes of all arguments, of output and h_n, and the errors."""
        params = {name: getattr(self, name).params() for name in input_sizes(self.config)}
        check_declared("linen.GRU", self.config, nn.meta.unbox(self.variables["params"]))
        dropout, key = 0.0, None
        has_effect = self.dropout > 0 and self.num_layers > 1
        if has_effect and not nn.merge_param("deterministic", self.deterministic, deterministic):
            dropout, key = self.dropout, self.make_rng("dropout")
        params, x, h_0 = cast((params, x, h_0), self.dtype)
        return stack.gru(
            params,
            x,
            h_0,
            seq_lengths=seq_lengths,
            resets=resets,
            batch_first=self.batch_first,
            dropout=dropout,
            dropout_key=key,
            reset_after=self.reset_after,
            precision=self.precision,
            remat=self.remat,
            unroll=self.unroll,
        )
