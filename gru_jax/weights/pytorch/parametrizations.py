"""Weights that a PyTorch file keeps in parts, put together as the module does in eval mode.

    weight_norm     {w}_g, {w}_v                                w = v * g / ||v||
                    parametrizations.{w}.original0, .original1  the same
    spectral_norm   {w}_orig, {w}_u, {w}_v                      w = orig / (u^T orig v)
    pruning         {w}_orig, {w}_mask                          w = orig * mask

Sources: torch/nn/utils/weight_norm.py, spectral_norm.py, prune.py, parametrizations.py. What any other parametrization
computes is in the code of the model, not in its file.
"""

import re
from collections.abc import Callable, Mapping

import numpy as np

from gru_jax.weights.found import Tensor

_WEIGHT = r"(?:weight|bias)_[a-z]{2}(?:_l[0-9]{1,6}(?:_reverse)?)?"
_NAME = re.compile(
    r"(?P<prefix>(?:.+\.)?)"
    rf"(?:parametrizations\.(?P<inner>{_WEIGHT})(?P<original>\..+)|(?P<weight>{_WEIGHT})(?P<part>(?:_\w+)?))"
)
_REMEDY = "call torch.nn.utils.parametrize.remove_parametrizations on the model and save it again."

Parts = dict[str, tuple[str, Tensor]]
Shape = tuple[int, ...]
Compute = Callable[..., np.ndarray]


def groups(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Parts]]:
    """Groups what may be recurrent weights: prefix -> weight -> part -> (name, tensor). The part "" is a whole weight.

    >>> tensor = Tensor((6, 2), "float32", lambda: np.zeros((6, 2), np.float32))
    >>> {prefix: list(found) for prefix, found in groups({"rnn.weight_hh_l0": tensor, "fc.weight": tensor}).items()}
    {'rnn.': ['weight_hh_l0']}
    """
    found: dict[str, dict[str, Parts]] = {}
    for name, tensor in tensors.items():
        if match := _NAME.fullmatch(name):
            weight, part = (match["inner"], match["original"]) if match["inner"] else (match["weight"], match["part"])
            found.setdefault(match["prefix"], {}).setdefault(weight, {})[part] = (name, tensor)
    is_recurrent = lambda weight: weight.startswith(("weight_ih", "weight_hh"))
    return {prefix: weights for prefix, weights in found.items() if any(map(is_recurrent, weights))}


def whole(weight: str, parts: Parts) -> Tensor:
    """Returns a weight as one tensor, not read yet. Raises ValueError if it is unknown what its parts make."""
    if set(parts) == {""}:
        return parts[""][1]
    known = next((known for known in _RULES if set(known) == set(parts)), None)
    if known is None:
        kept = ", ".join(sorted(name for name, _ in parts.values()))
        raise ValueError(f"{weight} is kept as {kept}, and what they make is not in the file: {_REMEDY}")
    tensors = [parts[part][1] for part in known]
    compute = _RULES[known](weight, *(tensor.shape for tensor in tensors))
    return Tensor(tensors[0].shape, tensors[0].dtype, lambda: _computed(compute, tensors))


def _computed(compute: Compute, tensors: list[Tensor]) -> np.ndarray:
    """Computes in float64 and rounds once."""
    arrays = [tensor.read() for tensor in tensors]
    with np.errstate(all="ignore"):  # a row of zeros gives NaN, as in PyTorch
        return compute(*(array.astype(np.float64) for array in arrays)).astype(arrays[0].dtype)


def _weight_norm(weight: str, v: Shape, g: Shape) -> Compute:
    """The norm is over the axes along which g has size 1, and over all axes if g is a scalar."""
    if g and (len(g) != len(v) or any(a not in (1, b) for a, b in zip(g, v, strict=True))):
        raise ValueError(f"{weight} is kept in parts of shapes {list(g)} and {list(v)}, not weight_norm's: {_REMEDY}")
    axes = tuple(axis for axis in range(len(v)) if not g or g[axis] == 1)
    return lambda v, g: v * (g / np.sqrt(np.sum(v * v, axis=axes, keepdims=bool(g.ndim))))


def _spectral_norm(weight: str, orig: Shape, u: Shape, v: Shape) -> Compute:
    """For dim=0, the default. With dim=1 u and v change places. A square weight does not show dim, so it is refused."""
    if len(orig) != 2 or orig[0] == orig[1] or (u, v) != (orig[:1], orig[1:]):
        raise ValueError(
            f"{weight} is kept in parts of shapes {list(orig)}, {list(u)} and {list(v)}, which do not show "
            "spectral_norm along dim 0: call torch.nn.utils.remove_spectral_norm on the model and save it again."
        )
    return lambda orig, u, v: orig / (u @ (orig @ v))


def _pruned(weight: str, orig: Shape, mask: Shape) -> Compute:
    if orig != mask:
        raise ValueError(f"{weight} has shape {list(orig)} and its mask {list(mask)}: they must have the same.")
    return np.multiply


_RULES: dict[tuple[str, ...], Callable[..., Compute]] = {
    ("_v", "_g"): _weight_norm,
    (".original1", ".original0"): _weight_norm,
    ("_orig", "_u", "_v"): _spectral_norm,
    ("_orig", "_mask"): _pruned,
}
