"""Converts our parameters to a Keras layer's weights, and writes a .keras file."""

import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from gru_jax.params import GRUConfig, GRUParams, cell_names, check_declared, check_params
from gru_jax.weights.arrays import fold
from gru_jax.weights.gate_order import from_ours
from gru_jax.weights.keras import live
from gru_jax.weights.keras.config import Layer
from gru_jax.weights.replacing import replacing


def to_keras(config: GRUConfig, params: GRUParams) -> dict[str, list[np.ndarray]]:
    """Writes parameters in Keras's order and layout.

    Args:
      config: the GRU's config; shapes do not show its `reset_after`.
      params: GRUParams.

    Returns:
      "l0", "l1", ... -> what `set_weights` takes in a keras.layers.GRU(H, reset_after=config.reset_after), or in a
      Bidirectional of it. With reset_after=False Keras has one bias: it is bias_ih + bias_hh, rounded once. All other
      numbers stay the same. bfloat16, which NumPy lacks, is widened to float32, exactly.

    Raises:
      TypeError: if params is not a dict of dicts of floating arrays.
      ValueError: if params are not those of config.

    Example:
      >>> import jax
      >>> from gru_jax import init_params
      >>> weights = to_keras(GRUConfig(10, 20), init_params(jax.random.key(0), GRUConfig(10, 20)))
      >>> [array.shape for array in weights["l0"]]
      [(10, 60), (20, 60), (2, 60)]
    """
    check_params("to_keras", params)
    check_declared("to_keras", config, params)
    rows = cell_names(config.num_layers, config.bidirectional)
    return {row[0]: [array for cell in row for array in _keras_cell(params[cell], config)] for row in rows}


def save_keras(path: str | os.PathLike[str], config: GRUConfig, params: GRUParams) -> None:
    """Writes a .keras file that `keras.saving.load_model` opens: a Sequential model of one layer for each of ours.

    Its input and output are batch-major, whatever `batch_first` says; `dropout` becomes Dropout layers. The file is
    written beside `path` and then renamed, so a failure leaves whatever was at `path` before.

    Args:
      path: the file to write, which ends in ".keras".
      config: the GRU's config.
      params: GRUParams; see `to_keras`.

    Raises:
      ValueError: if the path does not end in ".keras", or params are not those of config.
      OSError: if it can't be written.
      ImportError: if keras is not installed.

    Example:
      >>> import jax, tempfile
      >>> from gru_jax import init_params
      >>> from gru_jax.weights.keras.importer import open_keras
      >>> config = GRUConfig(2, 3, num_layers=2)
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     save_keras(f"{folder}/gru.keras", config, init_params(jax.random.key(0), config))
      ...     list(open_keras(f"{folder}/gru.keras").grus)
      ['l0', 'l1']
    """
    path = pathlib.Path(path)
    if path.suffix != ".keras":
        raise ValueError(f"save_keras: expected a path that ends in .keras, got {str(path)!r}.")
    weights = to_keras(config, params)
    keras, dtype = live.require_keras(), str(weights["l0"][0].dtype)
    kind = "Bidirectional" if config.bidirectional else "GRU"
    layer = Layer(kind, config.hidden_size, config.bias, config.reset_after)
    with live.precision(keras, dtype):
        model = keras.Sequential([keras.Input((None, config.input_size), dtype=dtype)])
        for name, arrays in weights.items():
            model.add(live.build(keras, layer, dtype, name))
            model.layers[-1].set_weights(arrays)
            if config.dropout and name != list(weights)[-1]:
                model.add(keras.layers.Dropout(config.dropout))
        with replacing(path) as made:
            model.save(made)


def _keras_cell(cell: Mapping[str, Any], config: GRUConfig) -> list[np.ndarray]:
    """Returns kernel, recurrent_kernel and bias of one cell."""
    wide = {key: np.asarray(jnp.asarray(a, jnp.float32) if a.dtype == jnp.bfloat16 else a) for key, a in cell.items()}
    ours = {key: from_ours(array, "keras") for key, array in wide.items()}
    kernels = [ours["kernel_ih"], ours["kernel_hh"]]
    if not config.bias:
        return kernels
    both = ours["bias_ih"], ours["bias_hh"]
    return [*kernels, np.stack(both) if config.reset_after else fold("to_keras", *both)]
