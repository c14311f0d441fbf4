"""Finds the GRUs of every convention among the tensors of a file."""

import dataclasses
import difflib
import functools
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gru_jax.params import GRUConfig
from gru_jax.weights import equinox, flax, haiku, own, pytorch, reference
from gru_jax.weights.found import Contents, Found, Tensor

_LISTED = 20


def search(
    path: Path, form: str, tensors: dict[str, Tensor], declared: Any, names: Mapping[str, str] | None
) -> Contents:
    """Finds the GRUs of every convention among tensors."""
    tensors = _renamed(path, tensors, names or {})
    claims: dict[str, list[Found]] = {}
    refused: dict[str, str] = {}
    for find in (pytorch.find, flax.find, own.find, equinox.find, haiku.find):
        grus, reasons = find(tensors)
        refused |= reasons
        for prefix, gru in grus.items():
            claims.setdefault(prefix, []).append(gru)
    _prefer_whole(claims)
    claimed = Counter(name for grus in claims.values() for gru in grus for name in set(gru.names))
    contested = {prefix for prefix, grus in claims.items() if any(claimed[n] > 1 for gru in grus for n in gru.names)}
    found = {prefix: grus[0] for prefix, grus in claims.items() if prefix not in contested and len(grus) == 1}
    refused = {prefix: why for prefix, why in refused.items() if prefix not in found}
    for prefix in [prefix for prefix in claims if prefix not in found]:
        kinds = " and ".join(gru.framework for gru in claims[prefix])
        refused[prefix] = f"its names fit more than one convention ({kinds}), so what computes it is not known."
    if declared is not None:
        found, refused = _with_config(path, tensors, found, refused, declared)
    used = {name for gru in found.values() for name in gru.names}
    others = {name: f"{t.dtype} [{', '.join(map(str, t.shape))}]" for name, t in tensors.items() if name not in used}
    return Contents(form, found, refused, others)


def _prefer_whole(claims: dict[str, list[Found]]) -> None:
    """Drops a claim whose tensors are only a part of another's at the same prefix.

    The weights of an Equinox cell have the names of a PyTorch cell without biases; its biases tell.
    """
    for prefix, grus in claims.items():
        names = [set(gru.names) for gru in grus]
        claims[prefix] = [gru for gru, mine in zip(grus, names, strict=True) if not any(mine < all_ for all_ in names)]


def _renamed(path: Path, tensors: dict[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    for name in names.keys() - tensors.keys():
        near = difflib.get_close_matches(name, list(tensors), 5, 0.4) or list(tensors)
        raise ValueError(f"{path}: no tensor {name!r} to give another name. The nearest: {listed(near)}.")
    counts = Counter(names.get(name, name) for name in tensors)
    twice = [name for name, count in counts.items() if count > 1]
    if twice:
        raise ValueError(f"{path}: two of its tensors would have the same name: {listed(twice)}.")
    return {names.get(name, name): tensor for name, tensor in tensors.items()}


def _with_config(
    path: Path, tensors: Mapping[str, Tensor], found: dict[str, Found], refused: dict[str, str], declared: Any
) -> tuple[dict[str, Found], dict[str, str]]:
    """Gives the GRU of a file of `save` the config that stands beside it."""
    try:
        config = GRUConfig(**declared)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: the config in its metadata is none of this version of gru_jax: {error}") from error
    if found.keys() != {""}:
        return {}, refused | {"": f"its metadata says {config}, but its tensors are not that GRU's."}
    gru = found[""]
    told = {name: getattr(config, name) for name in ("batch_first", "dropout", "reset_after")}
    with warnings.catch_warnings(action="ignore"):  # of a dropout without effect: that has been said above
        inferred = dataclasses.replace(gru.config, **told)
    if inferred != config:
        return {}, {"": f"its metadata says {config}, its tensors are those of {inferred}."}
    gru = gru._replace(config=config)
    if not config.reset_after:
        original = functools.partial(_run_paper, {name: tensors[name] for name in gru.names})
        gru = gru._replace(original=original, framework="NumPy formula (Cho et al. 2014)")
    return {"": gru}, refused


def _run_paper(
    tensors: Mapping[str, Tensor], dtype: str, x: np.ndarray, h_0: np.ndarray, *cotangents: np.ndarray
) -> dict[str, np.ndarray]:
    """Runs the formula that no other framework has over this package's layout."""
    arguments = {"kernel_ih": "W", "kernel_hh": "R", "bias_ih": "b_W", "bias_hh": "b_R"}
    cells: dict[str, dict[str, np.ndarray]] = {}
    for name, tensor in tensors.items():
        cell, _, key = name.partition(".")
        array = tensor.read().astype(dtype).T
        cells.setdefault(cell, {})[arguments[key]] = array.reshape(3, -1, *array.shape[1:])
    for cell in cells.values():
        zeros = np.zeros(cell["R"].shape[:2], dtype)
        cell |= {key: cell.get(key, zeros) for key in ("b_W", "b_R")}
    return reference.run(cells, x.astype(dtype), h_0.astype(dtype), reset_after=False)


def listed(names: Iterable[str]) -> str:
    """The names, the first of them where they are many."""
    shown = list(map(repr, names))
    return ", ".join(shown[:_LISTED]) + (f" and {len(shown) - _LISTED} more" if len(shown) > _LISTED else "")
