"""Flax NNX modules: they hold the parameters, draw the random keys, and call `stack.gru`."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.typing import Initializer
from jax.lax import PrecisionLike
from jax.typing import ArrayLike, DTypeLike

from gru_jax import stack
from gru_jax.cell import gru_step
from gru_jax.gradients import Remat
from gru_jax.params import GRUConfig, cast, cell_shapes, check_declared, input_sizes, pytorch_uniform
from gru_jax.quantized.nnx import QuantizedGRU as QuantizedGRU


class GRUCell(nnx.RNNCellBase):
    """`torch.nn.GRUCell` for Flax's own `RNN` and `Bidirectional`; its Param state is exactly CellParams.

        r  = sigmoid(W_ir x + b_ir + W_hr h + b_hr)
        z  = sigmoid(W_iz x + b_iz + W_hz h + b_hz)
        n  = tanh(W_in x + b_in + r * (W_hn h + b_hn))
        h' = (1 - z) * n + z * h

    Called with (carry [..., H], inputs [..., I]) it returns (h', h'), in the carry's dtype.

    Args:
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
      rngs: its "params" stream draws the parameters.

    Example:
      >>> rnn = nnx.RNN(GRUCell(10, 20, rngs=nnx.Rngs(0)))
      >>> rnn(jnp.ones((3, 5, 10))).shape
      (3, 5, 20)
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        reset_after: bool = True,
        *,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        precision: PrecisionLike = None,
        kernel_init: Initializer = pytorch_uniform,
        recurrent_kernel_init: Initializer = pytorch_uniform,
        bias_init: Initializer = pytorch_uniform,
        rngs: nnx.Rngs,
    ):
        self.config = GRUConfig(input_size, hidden_size, bias=bias, reset_after=reset_after)
        self.dtype, self.param_dtype, self.precision = dtype, param_dtype, precision
        inits = {"kernel_ih": kernel_init, "kernel_hh": recurrent_kernel_init}
        for key, shape in cell_shapes(input_size, hidden_size, bias).items():
            setattr(self, key, nnx.Param(inits.get(key, bias_init)(rngs.params(), shape, param_dtype)))

    def params(self) -> dict[str, jax.Array]:
        """CellParams."""
        keys = cell_shapes(self.config.input_size, self.config.hidden_size, self.config.bias)
        return {key: getattr(self, key)[...] for key in keys}

    def __call__(self, carry: jax.Array, inputs: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Advances the carry by one time step."""
        check_declared("nnx.GRUCell", self.config, {"l0": _held(self)})
        params, h, x = cast((self.params(), carry, inputs), self.dtype)
        h = gru_step(params, h, x, reset_after=self.config.reset_after, precision=self.precision)
        h = h.astype(carry.dtype)
        return h, h

    def initialize_carry(self, input_shape: tuple[int, ...], rngs: Any = None, carry_init: Any = None) -> jax.Array:
        """Zeros [..., H] for an input [..., I], drawn from no `rngs`; or what `carry_init` makes of a key of theirs."""
        shape = (*input_shape[:-1], self.config.hidden_size)
        if carry_init is None:
            return jnp.zeros(shape, self.param_dtype)
        key = rngs.carry() if isinstance(rngs, nnx.Rngs) else rngs()
        return carry_init(key, shape, self.param_dtype)

    @property
    def num_feature_axes(self) -> int:
        """How many axes of the input hold features."""
        return 1


class GRU(nnx.Module):
    """`torch.nn.GRU` as an NNX module: the arguments of PyTorch in PyTorch's order, then Flax's.

    Its Param state is exactly GRUParams, so `nnx.update(module, params)` loads what `from_torch` returns.

    Args:
      input_size: I.
      hidden_size: H.
      num_layers: how many layers are stacked.
      bias: whether there are bias_ih and bias_hh.
      batch_first: whether x and output are [N, L, ...]; h_0 and h_n never are.
      dropout: probability of a zero after every layer but the last; `train()` and `eval()` switch it.
      bidirectional: whether each layer also reads its input backwards.
      reset_after: False for the original paper's new gate.
      dtype: to compute in; what the arguments promote to by default.
      param_dtype: of the parameters.
      precision: of the matmuls. On a GPU or TPU only "highest" computes float32 as PyTorch does.
      kernel_init: draws every kernel_ih; PyTorch's U(-1/sqrt(H), 1/sqrt(H)) by default, as for the next two.
      recurrent_kernel_init: draws every kernel_hh.
      bias_init: draws every bias.
      deterministic: True switches dropout off.
      remat: what the gradient computes again instead of storing it; see `gru`.
      unroll: time steps in one iteration of the compiled loop.
      rngs: its "params" stream draws the parameters; where dropout has an effect, its "dropout" stream draws the masks.

    Example:
      >>> module = GRU(10, 20, num_layers=2, bidirectional=True, rngs=nnx.Rngs(0))
      >>> output, h_n = module(jnp.ones((5, 3, 10)))
      >>> output.shape, h_n.shape
      ((5, 3, 40), (4, 3, 20))
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        reset_after: bool = True,
        *,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        precision: PrecisionLike = None,
        kernel_init: Initializer = pytorch_uniform,
        recurrent_kernel_init: Initializer = pytorch_uniform,
        bias_init: Initializer = pytorch_uniform,
        deterministic: bool = False,
        remat: Remat = None,
        unroll: int = 1,
        rngs: nnx.Rngs,
    ):
        self.config = GRUConfig(
            input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, reset_after
        )
        self.dtype, self.precision, self.remat, self.unroll = dtype, precision, remat, unroll
        self.deterministic = deterministic
        for name, size in input_sizes(self.config).items():
            cell = GRUCell(
                size,
                hidden_size,
                bias,
                reset_after,
                param_dtype=param_dtype,
                kernel_init=kernel_init,
                recurrent_kernel_init=recurrent_kernel_init,
                bias_init=bias_init,
                rngs=rngs,
            )
            setattr(self, name, cell)
        # Kept only where it is drawn from, so that without dropout the module holds nothing but parameters.
        self.rngs = rngs.dropout.fork() if dropout > 0 and num_layers > 1 else nnx.data(None)

    @classmethod
    def from_config(cls, config: GRUConfig, rngs: nnx.Rngs, **flax_options: Any) -> "GRU":
        """Makes the module of `config`.

        >>> GRU.from_config(GRUConfig(10, 20, batch_first=True), nnx.Rngs(0)).config.batch_first
        True
        """
        return cls(**dataclasses.asdict(config), **flax_options, rngs=rngs)

    def __call__(
        self,
        x: jax.Array,
        h_0: jax.Array | None = None,
        *,
        seq_lengths: ArrayLike | None = None,
        resets: jax.Array | None = None,
        deterministic: bool | None = None,
        rngs: nnx.Rngs | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        """Applies `gru`; its docstring gives the shapes of all arguments, of output and h_n, and the errors.

        `deterministic` and `rngs` (whose "dropout" stream is drawn from) take precedence over the constructor's.
        """
        config, dropout, key = self.config, 0.0, None
        deterministic = self.deterministic if deterministic is None else deterministic
        if self.rngs is not None and not deterministic:
            dropout, key = config.dropout, self.rngs() if rngs is None else rngs.dropout()
        params = {name: getattr(self, name).params() for name in input_sizes(config)}
        cells = {name: _held(cell) for name, cell in vars(self).items() if isinstance(cell, GRUCell)}
        check_declared("nnx.GRU", config, cells | _held(self))
        params, x, h_0 = cast((params, x, h_0), self.dtype)
        return stack.gru(
            params,
            x,
            h_0,
            seq_lengths=seq_lengths,
            resets=resets,
            batch_first=config.batch_first,
            dropout=dropout,
            dropout_key=key,
            reset_after=config.reset_after,
            precision=self.precision,
            remat=self.remat,
            unroll=self.unroll,
        )

    def set_view(self, deterministic: bool | None = None) -> None:
        """What `nnx.view(module, deterministic=...)` calls."""
        if deterministic is not None:
            self.deterministic = deterministic


def _held(module: nnx.Module) -> dict[str, Any]:
    """The arrays that hang on a module: its parameters, and what nnx.update may have put beside them."""
    return {name: value for name, value in vars(module).items() if hasattr(value, "shape")}
