"""Converts PyTorch's nn.GRU and nn.GRUCell, as modules and in state_dicts, to our parameters."""

import dataclasses
import re
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gru_jax.params import GRUConfig
from gru_jax.weights.arrays import FLOATING, to_jax
from gru_jax.weights.containers.pytorch import to_numpy
from gru_jax.weights.found import Found, Params, Search, Tensor
from gru_jax.weights.pytorch import original, parametrizations
from gru_jax.weights.pytorch.names import NAME, first_shape, gate_counts, other_kind, our_name, read_config

_PACKED = re.compile(r"(?P<prefix>(?:.+\.)?)(?:_all_weight_values\.[0-9]+\.param|_packed_weight_[ih]h)(?:\..*)?")


def from_torch(source: Any, prefix: str = "") -> tuple[GRUConfig, Params]:
    """Takes a trained GRU out of PyTorch.

    Args:
      source: a torch.nn.GRU or GRUCell, or a module that holds one at `prefix`; or a state_dict of tensors or NumPy
        arrays. It is neither changed nor aliased.
      prefix: where the GRU is, as `find_grus` gives it: "encoder.rnn." for the key "encoder.rnn.weight_ih_l0". The last
        dot may be left out.

    Returns:
      (config, params). A GRUCell is a GRU of one layer. A module has its `batch_first` and `dropout`; for a state_dict,
      which does not, they keep their defaults. Dtypes are kept, but float64 becomes float32, with a warning, unless
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

    return config, _our_params({name: _floats(f"{prefix}{name}", value) for name, value in held.items()})


def find_grus(state_dict: Mapping[str, Any]) -> dict[str, GRUConfig]:
    """Finds every GRU and GRUCell in a whole model's state_dict, by the names and shapes of its tensors.

    Args:
      state_dict: tensors or NumPy arrays by name, under any prefixes.

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


def find(tensors: Mapping[str, Tensor]) -> Search:
    """Finds every GRU and GRUCell among a file's tensors by their names and shapes. No tensor is read.

    Args:
      tensors: by name, under any prefixes. Weights kept in parts (weight_norm, spectral_norm, pruning) are included.

    Returns:
      The GRUs by prefix; and by prefix, the reason why another recurrent layer can't be imported.

    Example:
      >>> lazy = lambda *shape: Tensor(shape, "float32", lambda: np.zeros(shape, np.float32))
      >>> grus, refused = find({"enc.weight_ih": lazy(60, 10), "enc.weight_hh": lazy(60, 20), "fc.bias": lazy(3)})
      >>> grus["enc."].config.hidden_size, refused
      (20, {})
    """
    found: dict[str, Found] = {}
    refused: dict[str, str] = {}
    for prefix, weights in parametrizations.groups(tensors).items():
        try:
            found[prefix] = _found(prefix, weights)
        except ValueError as error:
            refused[prefix] = " ".join(str(error).removeprefix("find: ").split())
    for match in filter(None, map(_PACKED.fullmatch, tensors)):
        refused[match["prefix"]] = "dynamically quantized (torch.ao): save the model as it was before quantize_dynamic."
    return found, refused


def _found(prefix: str, weights: Mapping[str, parametrizations.Parts]) -> Found:
    """Returns the GRU that the weights under a prefix make. Raises ValueError if they make none."""
    whole = {weight: parametrizations.whole(weight, parts) for weight, parts in weights.items()}
    shapes = {weight: tensor.shape for weight, tensor in whole.items()}
    if kind := other_kind(shapes):
        raise ValueError(f"{kind}, whose weight_hh has shape {first_shape(shapes, 'weight_hh')}, a GRU's has [3H, H].")
    config = read_config("find", prefix, shapes)
    for weight, tensor in whole.items():
        if tensor.dtype not in FLOATING:
            raise ValueError(f"{weight} is {tensor.dtype}: expected a floating dtype of at most 64 bits.")
    return Found(
        config,
        lambda: _our_params({weight: _floats(f"{prefix}{weight}", tensor.read()) for weight, tensor in whole.items()}),
        partial(original.run, config, whole),
        "torch.nn.GRUCell" if "weight_ih" in whole else "torch.nn.GRU",
        tuple(name for parts in weights.values() for name, _ in parts.values()),
    )


def _our_params(arrays: Mapping[str, np.ndarray]) -> Params:
    """Returns the arrays of a state_dict under our names, transposed into our layout, as JAX arrays."""
    cells: dict[str, dict[str, np.ndarray]] = {}
    for name, array in arrays.items():
        cell, key = our_name(name)
        cells.setdefault(cell, {})[key] = array.T if array.ndim == 2 else array
    return to_jax("from_torch", cells)


def _state_dict(source: Any, prefix: str) -> tuple[Mapping[str, Any], dict[str, Any]]:
    """Returns the state_dict, and a module's arguments that are not in it."""
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


def _floats(name: str, value: Any) -> np.ndarray:
    """Returns the numbers of a tensor or an array. Raises TypeError if they are not floating."""
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
