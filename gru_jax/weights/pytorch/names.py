"""Reads the names and shapes of a PyTorch state_dict: which recurrent layer it is, its sizes, and our names for it.

    weight_ih_l{k}[_reverse]  (3H, I or D*H)     params["l{k}[_reverse]"]["kernel_ih"], transposed
    weight_hh_l{k}[_reverse]  (3H, H)            ...["kernel_hh"], transposed
    bias_ih_l{k}[_reverse]    (3H,)              ...["bias_ih"]
    bias_hh_l{k}[_reverse]    (3H,)              ...["bias_hh"]

A GRUCell's names have no _l{k}; it becomes the one layer "l0". PyTorch's order of the gates is ours, too.
"""

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from gru_jax import _shapes
from gru_jax.params import GRUConfig, stack_shapes

NAME = re.compile(r"(?:weight|bias)_(?:ih|hh)(?:_l(?P<layer>[0-9]{1,6})(?P<reverse>_reverse)?)?")
_OTHERS = {1: "a plain RNN", 4: "an LSTM"}

Shapes = Mapping[str, tuple[int, ...]]


def read_config(function: str, prefix: str, shapes: Shapes) -> GRUConfig:
    """Reads the sizes off the names and shapes under one prefix, and checks that they make one GRU."""
    if kind := other_kind(shapes):
        raise ValueError(
            f"{function}: expected a GRU at prefix {prefix!r}, got {kind}: a GRU's weight_hh has shape [3H, H], "
            f"this one's is {first_shape(shapes, 'weight_hh')}."
        )
    matches = [match for match in map(NAME.fullmatch, shapes) if match]
    layers = [int(match["layer"]) for match in matches if match["layer"]]
    # Every tensor of a GRU has 3H rows. H is that of the majority, so that the error names a single wrong tensor.
    rows = Counter(shapes[match.string][0] for match in matches if shapes[match.string])
    ih = shapes.get("weight_ih_l0" if layers else "weight_ih", ())
    sizes: dict[str, Any] = {
        "input_size": ih[1] if len(ih) == 2 else "I",
        "hidden_size": rows.most_common(1)[0][0] // 3 if rows else 0,
        # No more than there are tensors: a single forged weight_ih_l999999 must not make millions of expected keys.
        "num_layers": min(max(layers, default=0), len(matches)) + 1,
        "bias": any(match.string.startswith("bias") for match in matches),
        "bidirectional": any(match["reverse"] for match in matches),
    }
    expected = {
        torch_name(cell if layers else "", key): shape[::-1]
        for cell, ours in stack_shapes(**sizes).items()
        for key, shape in ours.items()
    }
    _shapes.check_keys(function, f"the state_dict at prefix {prefix!r}", expected, shapes)
    return GRUConfig(**sizes)


def other_kind(shapes: Shapes) -> str:
    """Returns which other recurrent layer has these shapes: "an LSTM" or "a plain RNN"; "" if none has."""
    if "weight_hr_l0" in shapes:
        return "an LSTM"
    counts = gate_counts(shapes)
    return "" if 3 in counts else " and ".join(_OTHERS[gates] for gates in counts if gates in _OTHERS)


def gate_counts(shapes: Shapes) -> set[int | None]:
    """Returns how many gates the hidden weights have: 3 in a GRU, 4 in an LSTM, 1 in a plain RNN; None if unclear."""
    hidden = [shape for name, shape in shapes.items() if NAME.fullmatch(name) and name.startswith("weight_hh")]
    return {
        shape[0] // shape[1] if len(shape) == 2 and shape[1] and shape[0] % shape[1] == 0 else None for shape in hidden
    }


def first_shape(shapes: Shapes, start: str) -> list[int]:
    """Returns the shape of the first tensor whose name begins with `start`; [] if there is none."""
    return next((list(shape) for name, shape in shapes.items() if name.startswith(start)), [])


def torch_name(cell: str, key: str) -> str:
    """("l0_reverse", "kernel_ih") -> "weight_ih_l0_reverse", ("", "kernel_ih") -> "weight_ih"."""
    return key.replace("kernel", "weight") + (f"_{cell}" if cell else "")


def our_name(name: str) -> tuple[str, str]:
    """Our name: "weight_ih_l0_reverse" -> ("l0_reverse", "kernel_ih"), "weight_ih" -> ("l0", "kernel_ih")."""
    kind, half, *cell = name.split("_", 2)
    return cell[0] if cell else "l0", f"{kind}_{half}".replace("weight", "kernel")
