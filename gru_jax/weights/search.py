"""Finds the GRUs of every convention among the tensors of a file."""

import difflib
from collections import Counter
from collections.abc import Mapping

from gru_jax.weights import own
from gru_jax.weights.found import Contents, Found, Tensor, Tensors, listed
from gru_jax.weights.jax import equinox, flax, haiku
from gru_jax.weights.pytorch import importer as pytorch

_CONVENTIONS = (pytorch, flax, own, equinox, haiku)  # if several refuse one prefix, the last one's reason is given


def search(held: Tensors, names: Mapping[str, str]) -> Contents:
    """Finds the GRUs of every convention among the tensors of a file.

    Args:
      held: what a container holds.
      names: other names for tensors, see `checkpoint.load`.

    Raises:
      ValueError: if `names` has a name that no tensor has, or would give two tensors the same name.
    """
    tensors = _renamed(held.by_name, names)
    claims: dict[str, list[Found]] = {}
    refused: dict[str, str] = {}
    for convention in _CONVENTIONS:
        grus, reasons = convention.find(tensors)
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
    if held.config is not None:
        found, refused = own.with_config(tensors, found, refused, held.config)
    used = {name for gru in found.values() for name in gru.names}
    others = {name: f"{t.dtype} [{', '.join(map(str, t.shape))}]" for name, t in tensors.items() if name not in used}
    return Contents(held.format, found, refused, others)


def _prefer_whole(claims: dict[str, list[Found]]) -> None:
    """Drops a claim whose tensors are only some of the tensors of another claim at the same prefix.

    The weights of an Equinox cell have the names of a PyTorch cell without biases. Only Equinox claims its biases, too.
    """
    for prefix, grus in claims.items():
        names = [set(gru.names) for gru in grus]
        claims[prefix] = [gru for gru, mine in zip(grus, names, strict=True) if not any(mine < all_ for all_ in names)]


def _renamed(tensors: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    for name in names.keys() - tensors.keys():
        near = difflib.get_close_matches(name, list(tensors), 5, 0.4) or list(tensors)
        raise ValueError(f"no tensor {name!r} to give another name. The nearest: {listed(near)}.")
    counts = Counter(names.get(name, name) for name in tensors)
    twice = [name for name, count in counts.items() if count > 1]
    if twice:
        raise ValueError(f"two of its tensors would have the same name: {listed(twice)}.")
    return {names.get(name, name): tensor for name, tensor in tensors.items()}
