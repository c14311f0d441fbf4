"""The config that gru_jax writes beside a GRU's parameters: shapes do not show reset_after, batch_first or dropout."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from gru_jax.params import GRUConfig, GRUParams, check_declared, check_params

KEY = "gru_jax"  # the config's key in a file's metadata
QUANTIZED_KEY = "gru_jax.quantized"  # the key of a quantized GRU's config


def plain_config(function: str, config: GRUConfig, params: GRUParams) -> dict[str, Any]:
    """Returns `plain` of the config. Raises TypeError or ValueError unless `params` are exactly those of such a GRU."""
    declared = plain(function, config)
    check_params(function, params)
    check_declared(function, config, params)
    return declared


def plain(function: str, config: GRUConfig) -> dict[str, Any]:
    """Returns a config as a dict of Python's own numbers, which JSON and msgpack can hold."""
    if not isinstance(config, GRUConfig):
        raise TypeError(f"{function}: expected a GRUConfig, got {type(config).__name__}.")
    return {key: getattr(value, "item", lambda value=value: value)() for key, value in vars(config).items()}


def is_config(entry: Any) -> bool:
    """Whether an entry has the names of what `plain` returns; one of them may be damaged."""
    fields = {field.name for field in dataclasses.fields(GRUConfig)}
    return isinstance(entry, Mapping) and len(entry) == len(fields) and len(fields - entry.keys()) <= 1


def refuse_lost_config(entries: Mapping[str, Any], key: str) -> None:
    """Raises ValueError if a config has another key than `key`: without it the GRU would compute other numbers."""
    lost = [name for name, entry in entries.items() if name != key and is_config(entry)]
    if lost:
        raise ValueError(f"the config of a GRU stands at {lost[0]!r}, where {key!r} is its place.")
