"""The config that gru_jax writes beside the parameters of a GRU: no shape tells reset_after, batch_first or dropout."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from gru_jax.params import GRUConfig, GRUParams, check_declared, check_params

KEY = "gru_jax"  # of the config, in a file's metadata
QUANTIZED_KEY = "gru_jax.quantized"  # of that of a quantized GRU


def plain_config(function: str, config: GRUConfig, params: GRUParams) -> dict[str, Any]:
    """Returns `plain` of the config. Raises unless `params` are exactly those of a GRU of it."""
    declared = plain(function, config)
    check_params(function, params)
    check_declared(function, config, params)
    return declared


def plain(function: str, config: GRUConfig) -> dict[str, Any]:
    """Returns a config in Python's own numbers, as JSON and msgpack have them."""
    if not isinstance(config, GRUConfig):
        raise TypeError(f"{function}: expected a GRUConfig, got {type(config).__name__}.")
    return {key: getattr(value, "item", lambda value=value: value)() for key, value in vars(config).items()}


def is_config(entry: Any) -> bool:
    """Whether this is what `plain` returns, or that with one name damaged."""
    fields = {field.name for field in dataclasses.fields(GRUConfig)}
    return isinstance(entry, Mapping) and len(entry) == len(fields) and len(fields - entry.keys()) <= 1


def refuse_lost_config(entries: Mapping[str, Any], key: str) -> None:
    """Raises ValueError where a config stands at another key than `key`: without it the GRU is another function."""
    lost = [name for name, entry in entries.items() if name != key and is_config(entry)]
    if lost:
        raise ValueError(f"the config of a GRU stands at {lost[0]!r}, where {key!r} is its place.")
