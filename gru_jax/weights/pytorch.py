"""PyTorch's nn.GRU and nn.GRUCell: their modules and state_dicts, to our parameters and back."""

import dataclasses
import re
import warnings
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gru_jax.params import (
    CellParams,
    GRUConfig,
    GRUParams,
    cell_shapes,
    check_cell,
    check_params,
    param_shapes,
)
from gru_jax.weights import pytorch_original, reparametrized
from gru_jax.weights.found import Found, Tensor
from gru_jax.weights.pytorch_names import NAME, first_shape, gate_counts, other_kind, our_name, read_config, torch_name

_PACKED = re.compile(r"(?P<prefix>(?:.+\.)?)(?:_all_weight_values\.[0-9]+\.param|_packed_weight_[ih]h)(?:\..*)?")
_FLOATS = {"float16", "bfloat16", "float32", "float64"}


def from_torch(source: Any, prefix: str = "") -> tuple[GRUConfig, dict[str, dict[str, jax.Array]]]:
    """Takes a trained GRU out of PyTorch.

    Args:
      source: a torch.nn.GRU or GRUCell, or a module that holds one at `prefix`; or a state_dict of tensors or NumPy
        arrays. It is neither changed nor aliased.
      prefix: where the GRU is, as `find_grus` says: "encoder.rnn." for the key "encoder.rnn.weight_ih_l0". The last
        dot may be left out.

    Returns:
      (config, params). A GRUCell is a GRU of one layer. A module tells its `batch_first` and `dropout`; a state_dict
      does not, and they keep their defaults. Dtypes are kept, but float64 becomes float32, with a warning, unless
      jax_enable_x64 is set.

    Raises:
      TypeError: if the source is something else, or a tensor is not floating.
      ValueError: if a key is missing, unexpected or of the wrong shape (all are listed at once), or the state_dict
        holds an LSTM or a plain RNN there.

    Example:
      >>> shapes = {"weight_ih_l0": (60, 10), "weight_hh_l0": (60, 20), "bias_ih_l0": (60,), "bias_hh_l0": (60,)}
      >>> state_dict = {f"rnn.{name}": np.zeros(shape, np.float32) for name, shape in shapes.items()}
      >>> config, params = from_torch(state_dict, prefix="rnn.")
      >>> config.input_size, config.hidden_size, params["l0"]["kernel_ih"].shape
      (10, 20, (10, 60))
    """
    if not isinstance(prefix, str):
        raise TypeError(f"from_torch: expected prefix to be a str, got {type(prefix).__name__}.")
    prefix = prefix if not prefix or prefix.endswith(".") else f"{prefix}."
    state_dict, options = _state_dict(source, prefix)
    held = {str(key)[len(prefix) :]: value for key, value in state_dict.items() if str(key).startswith(prefix)}
    shapes = {name: tuple(getattr(value, "shape", ())) for name, value in held.items()}
    if not any(NAME.fullmatch(name) for name in shapes):
        nested = [key for key, value in state_dict.items() if isinstance(value, Mapping)]
        hint = f" It holds dicts, at {nested}: pass one of them, a state_dict." if nested else ""
        raise ValueError(f"from_torch: expected a GRU at prefix {prefix!r}, found none. {_prefixes(state_dict)}{hint}")
    config = dataclasses.replace(read_config("from_torch", prefix, shapes), **options)

    arrays = {name: _floats(f"{prefix}{name}", value) for name, value in held.items()}
    wide = [name for name, array in arrays.items() if jax.dtypes.canonicalize_dtype(array.dtype) != array.dtype]
    if wide:
        warnings.warn(
            f"from_torch: {prefix}{wide[0]} is float64 and becomes float32, the widest that JAX computes in without "
            'jax.config.update("jax_enable_x64", True).',
            stacklevel=2,
        )
    params: dict[str, dict[str, jax.Array]] = {}
    for name, array in arrays.items():
        cell, key = our_name(name)
        # jnp.array copies: training the PyTorch model further must not reach these parameters.
        params.setdefault(cell, {})[key] = jnp.array(array.T if array.ndim == 2 else array)
    return config, params


def to_torch(params: GRUParams | CellParams) -> dict[str, np.ndarray]:
    """Writes parameters under PyTorch's names, in its layout.

    Args:
      params: GRUParams for an nn.GRU, or CellParams for an nn.GRUCell.

    Returns:
      A state_dict of NumPy arrays; `{k: torch.from_numpy(v) for k, v in ...}` is what `load_state_dict(strict=True)`
      accepts. bfloat16, which NumPy lacks, is widened to float32, exactly.

    Raises:
      TypeError: if params is neither.
      ValueError: if params do not hold together.

    Example:
      >>> from gru_jax import init_params
      >>> {name: array.shape for name, array in to_torch(init_params(jax.random.key(0), GRUConfig(1, 2))).items()}
      {'weight_ih_l0': (6, 1), 'weight_hh_l0': (6, 2), 'bias_ih_l0': (6,), 'bias_hh_l0': (6,)}
    """
    widened = lambda array: array.astype(np.float32) if array.dtype == jnp.bfloat16 else array
    return {name: widened(array) for name, array in named_arrays(params).items()}


def named_arrays(params: GRUParams | CellParams) -> dict[str, np.ndarray]:
    """`to_torch` in the parameters' own dtypes: bfloat16 as ml_dtypes adds it to NumPy."""
    return {
        torch_name(cell, key): np.array(np.asarray(array).T, order="C")
        for cell, ours in _cells(params).items()
        for key, array in ours.items()
    }


def find_grus(state_dict: Mapping[str, Any]) -> dict[str, GRUConfig]:
    """Finds every GRU and GRUCell in a whole model's state_dict, by the names and shapes of its tensors.

    Args:
      state_dict: of tensors or NumPy arrays, under any prefixes.

    Returns:
      Prefix -> config, in the order of the state_dict. LSTMs (4H rows) and plain RNNs (H rows) are passed over.

    Raises:
      TypeError: if `state_dict` is not a dict.
      ValueError: if what looks like a GRU lacks a tensor or has one of the wrong shape.

    Example:
      >>> list(find_grus({"enc.weight_ih": np.zeros((60, 10)), "enc.weight_hh": np.zeros((60, 20))}))
      ['enc.']
    """
    if not isinstance(state_dict, Mapping):
        raise TypeError(f"find_grus: expected a state_dict, got {type(state_dict).__name__}.")
    groups: dict[str, dict[str, tuple[int, ...]]] = {}
    for key, value in state_dict.items():
        prefix, dot, name = str(key).rpartition(".")
        if NAME.fullmatch(name) and hasattr(value, "shape"):
            groups.setdefault(prefix + dot, {})[name] = tuple(value.shape)
    return {
        prefix: read_config("find_grus", prefix, shapes)
        for prefix, shapes in groups.items()
        if 3 in gate_counts(shapes)
    }


def find(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Found], dict[str, str]]:
    """Finds every GRU and GRUCell among a file's tensors, by their names and shapes; none is read.

    Args:
      tensors: by name, under any prefixes. Weights kept in parts (weight_norm, spectral_norm, pruning) count as whole.

    Returns:
      The GRUs by prefix; and by prefix, why what looks like a recurrent layer is none that can be imported.

    Example:
      >>> lazy = lambda *shape: Tensor(shape, "float32", lambda: np.zeros(shape, np.float32))
      >>> grus, refused = find({"enc.weight_ih": lazy(60, 10), "enc.weight_hh": lazy(60, 20), "fc.bias": lazy(3)})
      >>> grus["enc."].config.hidden_size, refused
      (20, {})
    """
    found: dict[str, Found] = {}
    refused: dict[str, str] = {}
    for prefix, weights in reparametrized.groups(tensors).items():
        try:
            found[prefix] = _found(prefix, weights)
        except ValueError as error:
            refused[prefix] = " ".join(str(error).removeprefix("find: ").split())
    for match in filter(None, map(_PACKED.fullmatch, tensors)):
        refused[match["prefix"]] = "dynamically quantized (torch.ao): save the model as it was before quantize_dynamic."
    return found, refused


def _found(prefix: str, weights: Mapping[str, reparametrized.Parts]) -> Found:
    """Makes one GRU of the weights under a prefix, or raises ValueError."""
    whole = {weight: reparametrized.whole(weight, parts) for weight, parts in weights.items()}
    shapes = {weight: tensor.shape for weight, tensor in whole.items()}
    if kind := other_kind(shapes):
        raise ValueError(f"{kind}, whose weight_hh has shape {first_shape(shapes, 'weight_hh')}, a GRU's has [3H, H].")
    config = read_config("find", prefix, shapes)
    for weight, tensor in whole.items():
        if tensor.dtype not in _FLOATS:
            raise ValueError(f"{weight} is {tensor.dtype}: expected a floating dtype of at most 64 bits.")
    return Found(
        config,
        lambda: from_torch({f"{prefix}{weight}": tensor.read() for weight, tensor in whole.items()}, prefix)[1],
        partial(pytorch_original.run, config, whole),
        "torch.nn.GRUCell" if "weight_ih" in whole else "torch.nn.GRU",
        tuple(name for parts in weights.values() for name, _ in parts.values()),
    )


def _cells(params: Any) -> dict[str, dict[str, jax.Array]]:
    """Returns the cells of checked GRUParams, or {"": cell} for CellParams, in PyTorch's order."""
    if isinstance(params, Mapping) and "kernel_hh" in params:
        input_size, hidden_size = check_cell("to_torch", params)
        shapes, params = {"": cell_shapes(input_size, hidden_size, "bias_hh" in params)}, {"": params}
    else:
        shapes = param_shapes(check_params("to_torch", params))
    return {cell: {key: params[cell][key] for key in keys} for cell, keys in shapes.items()}


def _state_dict(source: Any, prefix: str) -> tuple[Mapping[str, Any], dict[str, Any]]:
    """Returns the state_dict, and what a module tells beyond it."""
    if isinstance(source, Mapping):
        return source, {}
    if isinstance(source, type) or not hasattr(source, "state_dict") or not hasattr(source, "named_modules"):
        raise TypeError(f"from_torch: expected a PyTorch module or a state_dict, got {type(source).__name__}.")
    module = dict(source.named_modules()).get(prefix[:-1])
    kinds = {f"{kind.__module__}.{kind.__name__}" for kind in type(module).__mro__}
    if not kinds & {"torch.nn.modules.rnn.GRU", "torch.nn.modules.rnn.GRUCell"}:
        kind = "no module" if module is None else f"{type(module).__module__}.{type(module).__name__}"
        raise TypeError(
            f"from_torch: expected a torch.nn.GRU or GRUCell at prefix {prefix!r}, got {kind}. "
            f"{_prefixes(source.state_dict())} Its state_dict() may be passed instead."
        )
    told = ("batch_first", "dropout")
    return source.state_dict(), {name: getattr(module, name) for name in told if hasattr(module, name)}


def _prefixes(state_dict: Mapping[str, Any]) -> str:
    return f"Prefixes that hold one: {', '.join(map(repr, find_grus(state_dict))) or 'none'}."


def to_numpy(tensor: Any) -> np.ndarray:
    """Returns a torch tensor's numbers without touching it; bfloat16 by way of float32, which holds all of it.

    Raises:
      TypeError: if it is sparse, quantized, on the meta device, or of a dtype that NumPy lacks.
    """
    try:
        tensor = tensor.detach().cpu().resolve_conj().resolve_neg()
        half = str(tensor.dtype) == "torch.bfloat16"
        return tensor.float().numpy().astype(jnp.bfloat16) if half else tensor.numpy()
    except (TypeError, RuntimeError, NotImplementedError) as error:
        raise TypeError(str(error)) from error


def _floats(name: str, value: Any) -> np.ndarray:
    """Returns the numbers of a tensor or an array; raises TypeError where they are no floats."""
    kind = getattr(value, "dtype", type(value).__name__)
    expected = f"from_torch: expected {name} to be a dense tensor of a floating dtype of at most 64 bits, got {kind}."
    if hasattr(value, "detach"):
        try:
            value = to_numpy(value)
        except TypeError as error:
            raise TypeError(f"{expected} {error}") from error
    is_array = isinstance(value, np.ndarray | jax.Array) and jnp.issubdtype(value.dtype, jnp.floating)
    if not is_array or value.dtype.itemsize > 8:
        raise TypeError(expected)
    return np.asarray(value, value.dtype.newbyteorder("="))
