"""Converts PyTorch's dynamically quantized GRU and GRUCell (torch.ao.nn.quantized.dynamic) to QuantizedParams.

    _all_weight_values.{layer*D + direction}.param    in a GRU: one object with both matrices and biases of a cell
    _packed_weight_ih, _packed_weight_hh              in a GRUCell: two objects, each with a matrix and its bias

These are not tensors but objects of PyTorch's C++ library, and their pickled state holds the numbers. PyTorch computes
with the biases inside them. A converted GRUCell also has attributes bias_ih and bias_hh: they are left over from its
construction, and not used.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gru_jax import _shapes
from gru_jax.params import GRUConfig, cell_names
from gru_jax.quantized.params import check_quantized

_NAME = re.compile(r"(?P<prefix>(.*\.)?)(_all_weight_values\.(?P<index>[0-9]{1,6})\.param|_packed_weight_(ih|hh))")
_KINDS = {f"torch.ao.nn.quantized.dynamic.modules.rnn.{name}" for name in ("GRU", "GRUCell")}
_OTHERS = {1: "a plain RNN", 4: "an LSTM"}


def from_torch(
    source: Any, prefix: str = "", *, bidirectional: bool | None = None, reduce_range: bool | None = None
) -> tuple[GRUConfig, dict[str, dict[str, jax.Array]]]:
    """Takes a dynamically quantized GRU out of PyTorch: what `torch.ao.quantization.quantize_dynamic` has made.

    `torch.load(path, weights_only=True)` refuses a file that holds such a GRU. `torch.load(path, weights_only=False)`
    loads it, but runs any code that the file asks for: use it only for a file that you trust.

    Args:
      source: a torch.ao.nn.quantized.dynamic.GRU or GRUCell, or a module that holds one at `prefix`; or the state_dict
        of either.
      prefix: where the GRU is: "encoder.rnn." for the key "encoder.rnn._all_weight_values.0.param".
      bidirectional: needed only for a state_dict of two cells whose input size equals the hidden size: they may be two
        layers or two directions.
      reduce_range: None takes the value that the model holds. Pass False for a model that ran under the engine qnnpack,
        which ignores that value: its activations have 8 bits. A model that holds False gives the same numbers under the
        engine x86 on a CPU with VNNI; older CPUs overflow.

    Returns:
      (config, qparams), for `quantized.gru`. A GRUCell is a GRU of one layer. A module has its `batch_first` and
      `dropout` (which it never applies); a state_dict does not.

    Raises:
      TypeError: if the source is something else.
      ValueError: if there is no quantized GRU at `prefix`, or one whose arrays do not fit together.

    Example:
      >>> import torch, warnings
      >>> warnings.simplefilter("ignore")  # PyTorch's own, of the end of torch.ao.
      >>> model = torch.ao.quantization.quantize_dynamic(torch.nn.Sequential(torch.nn.GRU(10, 20)), {torch.nn.GRU})
      >>> config, qparams = from_torch(model, "0")
      >>> config.hidden_size, qparams["l0"]["kernel_ih"].dtype
      (20, dtype('int8'))
    """
    name = "quantized.from_torch"
    if not isinstance(prefix, str):
        raise TypeError(f"{name}: expected prefix to be a str, got {type(prefix).__name__}.")
    prefix = prefix if not prefix or prefix.endswith(".") else f"{prefix}."
    for flag, value in {"bidirectional": bidirectional, "reduce_range": reduce_range}.items():
        if value is not None:
            _shapes.check_flags(name, **{flag: value})
    state_dict, options = _state_dict(source, prefix)
    told = options.pop("bidirectional", None)
    cells = [_with_range(cell, reduce_range) for cell in _cells(state_dict, prefix)]
    names = _names(cells, prefix, told if bidirectional is None else bidirectional)
    qparams = dict(zip(names, cells, strict=True))
    return dataclasses.replace(check_quantized(name, qparams), **options), qparams


def _state_dict(source: Any, prefix: str) -> tuple[Mapping[str, Any], dict[str, Any]]:
    """Returns the state_dict, and a module's arguments that are not in it."""
    if isinstance(source, Mapping):
        return source, {}
    if isinstance(source, type) or not hasattr(source, "state_dict") or not hasattr(source, "named_modules"):
        kind = type(source).__name__
        raise TypeError(f"quantized.from_torch: expected a PyTorch module or a state_dict, got {kind}.")
    module = dict(source.named_modules()).get(prefix[:-1])
    if not _KINDS & {f"{kind.__module__}.{kind.__name__}" for kind in type(module).__mro__}:
        kind = "no module" if module is None else f"{type(module).__module__}.{type(module).__name__}"
        raise TypeError(
            f"quantized.from_torch: expected a torch.ao.nn.quantized.dynamic.GRU or GRUCell at prefix {prefix!r}, got "
            f"{kind}. {_prefixes(source.state_dict())} gru_jax.from_torch takes a float GRU."
        )
    told = ("batch_first", "dropout", "bidirectional")
    return source.state_dict(), {name: getattr(module, name) for name in told if hasattr(module, name)}


def _cells(state_dict: Mapping[str, Any], prefix: str) -> list[dict[str, jax.Array]]:
    """Returns the cells in PyTorch's order."""
    held = {str(key)[len(prefix) :]: value for key, value in state_dict.items() if str(key).startswith(prefix)}
    matches = [match for match in map(_NAME.fullmatch, held) if match and not match["prefix"]]
    indices = sorted(int(match["index"]) for match in matches if match["index"])
    if indices:
        if indices != list(range(len(indices))):
            raise ValueError(f"quantized.from_torch: expected cells 0, 1, ... at prefix {prefix!r}, got {indices}.")
        return [_opened_cell(f"{prefix}{key}", held[key]) for key in (f"_all_weight_values.{i}.param" for i in indices)]
    packed = [f"_packed_weight_{half}" for half in ("ih", "hh")]
    if not set(packed) <= held.keys():
        raise ValueError(
            f"quantized.from_torch: expected a quantized GRU at prefix {prefix!r}, found none. {_prefixes(state_dict)} "
            "gru_jax.from_torch takes a float GRU."
        )
    # A GRUCell holds no reduce_range: PyTorch's kernel always uses True.
    return [_cell(prefix, *(_state(f"{prefix}{key}", held[key]) for key in packed), reduce_range=True)]


def _opened_cell(key: str, param: Any) -> dict[str, jax.Array]:
    """Returns one cell of a GRU."""
    try:
        kind, _, _, integers, (ih, hh) = _state(key, param)
    except (TypeError, ValueError) as error:
        raise TypeError(f"quantized.from_torch: expected {key} to hold two packed matrices. {error}") from error
    if kind not in ("quantized_dynamic", "quantized_fp16"):
        raise ValueError(
            f"quantized.from_torch: expected {key} of kind quantized_dynamic or quantized_fp16, got {kind}."
        )
    return _cell(key, _state(key, ih), _state(key, hh), reduce_range=bool(integers and integers[0]))


def _state(key: str, packed: Any) -> tuple:
    """Returns what PyTorch would pickle for one of its C++ objects."""
    try:
        return packed.__getstate__()[0]
    except (AttributeError, TypeError, KeyError, IndexError, RuntimeError) as error:
        kind = type(packed).__name__
        raise TypeError(f"quantized.from_torch: expected {key} to be PyTorch's packed weights, got {kind}.") from error


def _cell(key: str, ih: tuple, hh: tuple, *, reduce_range: bool) -> dict[str, jax.Array]:
    """Returns one cell of QuantizedParams, made of the (weight, bias) of each half."""
    kernels, scales, biases = {}, {}, {}
    for half, (weight, bias) in {"ih": ih, "hh": hh}.items():
        kernel, scale = _numbers(key, weight)
        kernels[f"kernel_{half}"] = jnp.array(kernel.T)
        if scale is not None:
            scales[f"scale_{half}"] = jnp.array(scale)
        if bias is not None:
            biases[f"bias_{half}"] = jnp.array(bias.detach().numpy())
    rows, columns = hh[0].shape
    if rows != 3 * columns:
        kind = _OTHERS.get(rows // columns if rows % columns == 0 else 0, "no GRU")
        raise ValueError(
            f"quantized.from_torch: expected a GRU at {key}, got {kind}: a GRU's weight_hh has shape [3H, H], this "
            f"one's is [{rows}, {columns}]."
        )
    return {**kernels, **biases, **scales, **({"reduce_range": jnp.array(reduce_range)} if scales else {})}


def _numbers(key: str, weight: Any) -> tuple[np.ndarray, np.ndarray | None]:
    """Returns the int8 numbers of a weight and their scale, or its float16 numbers and None."""
    if not weight.is_quantized:
        return weight.detach().float().numpy().astype(np.float16), None
    if "per_channel" in str(weight.qscheme()):
        scale, zero_point = weight.q_per_channel_scales().numpy(), weight.q_per_channel_zero_points().numpy()
    else:
        scale, zero_point = weight.q_scale(), weight.q_zero_point()
    integers = weight.int_repr().numpy()
    if integers.dtype != np.int8 or np.any(zero_point):
        raise ValueError(
            f"quantized.from_torch: expected {key} to be quantized to int8 symmetrically, as PyTorch's default does, "
            f"got {weight.dtype} with zero points up to {np.abs(zero_point).max()}."
        )
    return integers, np.asarray(scale, np.float32)


def _with_range(cell: dict[str, jax.Array], reduce_range: bool | None) -> dict[str, jax.Array]:
    override = reduce_range is not None and "reduce_range" in cell
    return {**cell, "reduce_range": jnp.array(reduce_range)} if override else cell


def _names(cells: list[dict[str, jax.Array]], prefix: str, bidirectional: bool | None) -> list[str]:
    """Names the cells. Their input sizes show whether every second cell is a reverse direction."""
    hidden = cells[0]["kernel_hh"].shape[0]
    sizes = [cell["kernel_ih"].shape[0] for cell in cells]
    fits = []
    for directions in (1, 2):
        above = [directions * hidden] * (len(cells) - directions)
        if len(cells) % directions == 0 and sizes == sizes[:1] * directions + above:
            fits.append(directions == 2)
    if bidirectional is None and len(fits) == 2:
        raise ValueError(
            f"quantized.from_torch: expected bidirectional=True or False for the state_dict at prefix {prefix!r}: its "
            f"two cells of input and hidden size {hidden} fit two layers and two directions alike."
        )
    if not fits or bidirectional not in (None, *fits):
        raise ValueError(
            f"quantized.from_torch: the cells at prefix {prefix!r}, of input sizes {sizes} and hidden size {hidden}, "
            f"are not those of one GRU{'' if bidirectional is None else f' with bidirectional={bidirectional}'}."
        )
    both = fits[0] if bidirectional is None else bidirectional
    return [name for row in cell_names(len(cells) // (2 if both else 1), both) for name in row]


def _prefixes(state_dict: Mapping[str, Any]) -> str:
    found = dict.fromkeys(match["prefix"] for match in map(_NAME.fullmatch, map(str, state_dict)) if match)
    return f"Prefixes that hold a quantized recurrent layer: {', '.join(map(repr, found)) or 'none'}."
