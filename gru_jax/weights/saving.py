"""Writes gru_jax's own files: a GRU's parameters and its config, in safetensors, msgpack or Orbax."""

import json
import os
from pathlib import Path

import jax
import numpy as np

from gru_jax.params import GRUConfig, GRUParams
from gru_jax.weights.containers.msgpack import write_msgpack
from gru_jax.weights.containers.orbax import write_orbax
from gru_jax.weights.containers.safetensors import write_safetensors
from gru_jax.weights.declared import KEY, plain_config


def save(path: str | os.PathLike[str], config: GRUConfig, params: GRUParams) -> None:
    """Writes a GRU to a safetensors file, from which `load` gives back the same config and parameters.

    The file is written under a temporary name and then renamed, so a crash leaves whatever was at `path` before.

    Args:
      path: the file to write. An existing file is replaced.
      config: the GRU's config, all of which goes into the file's metadata.
      params: GRUParams, which get the names "l0.kernel_ih", "l0.kernel_hh", ... and keep their dtypes.

    Raises:
      TypeError: if the arguments are of the wrong kind.
      ValueError: if `params` are not those of a GRU of `config`.
      ImportError: if safetensors is not installed.

    Example:
      >>> import jax, tempfile
      >>> from gru_jax import init_params, load
      >>> config = GRUConfig(10, 20, batch_first=True)
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     save(f"{folder}/gru.safetensors", config, init_params(jax.random.key(0), config))
      ...     loaded, params = load(f"{folder}/gru.safetensors")
      >>> loaded == config, params["l0"]["kernel_ih"].shape
      (True, (10, 60))
    """
    declared = json.dumps(plain_config("save", config, params))
    write_safetensors(path, params, {"format": "flax", KEY: declared})


def save_msgpack(path: Path, config: GRUConfig, params: GRUParams) -> None:
    """Writes {"config": ..., "params": ...} with flax.serialization."""
    declared = plain_config("save_msgpack", config, params)
    write_msgpack(path, {"config": declared, "params": jax.tree.map(np.asarray, _plain(params))})


def save_orbax(path: Path, config: GRUConfig, params: GRUParams) -> None:
    """Writes an Orbax folder of the parameters, with the config in its custom metadata."""
    write_orbax(path, _plain(params), {KEY: plain_config("save_orbax", config, params)})


def _plain(params: GRUParams) -> dict[str, dict[str, jax.Array]]:
    """Returns the same tree as plain dicts, whatever kinds of mappings it is made of."""
    return {cell: dict(arrays) for cell, arrays in params.items()}
