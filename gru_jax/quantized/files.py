"""Quantized parameters in a safetensors file: int8 stays int8, so the file has a quarter of the bytes."""

import dataclasses
import json
import os
from pathlib import Path

import jax
import jax.numpy as jnp

from gru_jax.params import GRUConfig
from gru_jax.quantized.params import QuantizedParams, check_quantized
from gru_jax.weights.containers.safetensors import open_with_metadata, write_safetensors
from gru_jax.weights.declared import QUANTIZED_KEY, plain
from gru_jax.weights.found import naming


def save(path: str | os.PathLike[str], config: GRUConfig, qparams: QuantizedParams) -> None:
    """Writes a quantized GRU to a safetensors file, from which `quantized.load` gives back the same.

    The file is written under a temporary name and then renamed, so a crash leaves whatever was at `path` before.

    Args:
      path: the file to write. An existing file is replaced.
      config: the GRU's config, all of which the file keeps.
      qparams: as from `quantize_dynamic` or `quantized.from_torch`.

    Raises:
      TypeError: if the arguments are of the wrong kind.
      ValueError: if `qparams` are not those of a GRU of `config`.
      ImportError: if safetensors is not installed.

    Example:
      >>> import tempfile
      >>> from gru_jax import init_params, quantized
      >>> config = GRUConfig(10, 20)
      >>> qparams = quantized.quantize_dynamic(init_params(jax.random.key(0), config))
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     save(f"{folder}/gru.safetensors", config, qparams)
      ...     loaded, again = load(f"{folder}/gru.safetensors")
      >>> loaded == config, str(again["l0"]["kernel_hh"].dtype)
      (True, 'int8')
    """
    declared = plain("quantized.save", config)
    _check_sizes("quantized.save", config, check_quantized("quantized.save", qparams))
    write_safetensors(path, qparams, {"format": "flax", QUANTIZED_KEY: json.dumps(declared)})


def load(path: str | os.PathLike[str]) -> tuple[GRUConfig, dict[str, dict[str, jax.Array]]]:
    """Loads what `quantized.save` wrote.

    Raises:
      ValueError: if the file is damaged, or `quantized.save` did not write it.
      OSError: if it can't be read.
      ImportError: if safetensors is not installed.

    Example:
      >>> import tempfile
      >>> from gru_jax import init_params, quantized
      >>> qparams = quantized.quantize_dynamic(init_params(jax.random.key(0), GRUConfig(10, 20)), "float16")
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     save(f"{folder}/gru.safetensors", GRUConfig(10, 20), qparams)
      ...     config, again = load(f"{folder}/gru.safetensors")
      >>> str(again["l0"]["kernel_hh"].dtype)
      'float16'
    """
    qparams: dict[str, dict[str, jax.Array]] = {}
    with naming(os.fspath(path)):
        tensors, metadata = open_with_metadata(Path(path))
        if QUANTIZED_KEY not in metadata:
            raise ValueError("expected a file of quantized.save. Float parameters are loaded by gru_jax.load.")
        for name, tensor in tensors.items():
            cell, _, key = name.partition(".")
            qparams.setdefault(cell, {})[key] = jnp.asarray(tensor.read())
    try:
        config = GRUConfig(**json.loads(metadata[QUANTIZED_KEY]))
        _check_sizes("quantized.load", config, check_quantized("quantized.load", qparams))
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: damaged: {error}") from error
    return config, qparams


def _check_sizes(function: str, config: GRUConfig, found: GRUConfig) -> None:
    """Raises ValueError unless the sizes that the parameters show are those of the config."""
    not_shown = ("batch_first", "dropout")
    told = dataclasses.replace(config, **{name: getattr(found, name) for name in not_shown})
    if told != found:
        raise ValueError(f"{function}: expected the parameters of {config}, got those of {found}.")
