"""Converts our parameters to a PyTorch state_dict, in memory or in a file."""

import os
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gru_jax.params import (
    CellParams,
    GRUConfig,
    GRUParams,
    cell_shapes,
    check_cell,
    check_declared,
    check_params,
    param_shapes,
)
from gru_jax.weights.containers.pytorch import save_torch
from gru_jax.weights.pytorch.names import torch_name


def to_torch(params: GRUParams | CellParams) -> dict[str, np.ndarray]:
    """Writes parameters under PyTorch's names, in its layout.

    Args:
      params: GRUParams for an nn.GRU, or CellParams for an nn.GRUCell.

    Returns:
      A state_dict of NumPy arrays; `{k: torch.from_numpy(v) for k, v in ...}` is what `load_state_dict(strict=True)`
      accepts. bfloat16, which NumPy lacks, is widened to float32, exactly.

    Raises:
      TypeError: if params are neither GRUParams nor CellParams.
      ValueError: if the arrays of params do not fit together.

    Example:
      >>> from gru_jax import init_params
      >>> {name: array.shape for name, array in to_torch(init_params(jax.random.key(0), GRUConfig(1, 2))).items()}
      {'weight_ih_l0': (6, 1), 'weight_hh_l0': (6, 2), 'bias_ih_l0': (6,), 'bias_hh_l0': (6,)}
    """
    widened = lambda array: array.astype(np.float32) if array.dtype == jnp.bfloat16 else array
    return {name: widened(array) for name, array in _named_arrays(params).items()}


def _named_arrays(params: GRUParams | CellParams) -> dict[str, np.ndarray]:
    """`to_torch` in the parameters' own dtypes; bfloat16 is the dtype that ml_dtypes adds to NumPy."""
    return {
        torch_name(cell, key): np.array(np.asarray(array).T, order="C")
        for cell, ours in _cells(params).items()
        for key, array in ours.items()
    }


def save(path: str | os.PathLike[str], config: GRUConfig, params: GRUParams) -> None:
    """Writes a GRU as the state_dict that a torch.nn.GRU of `config` loads strictly; dtypes are kept.

    Args:
      path: the file to write.
      config: the GRU's config; a state_dict has no place for its `batch_first` and `dropout`.
      params: GRUParams.

    Raises:
      ValueError: if the params are not those of the config, or compute the new gate in the original paper's form.
      OSError: if the file cannot be written.
      ImportError: if torch is not installed.
    """
    check_declared("save", config, params)
    if not config.reset_after:
        raise ValueError("save: torch.nn.GRU has reset_after=True alone: expected config.reset_after to be True.")
    save_torch(path, _named_arrays(params))


def _cells(params: Any) -> dict[str, dict[str, jax.Array]]:
    """Returns the cells of checked GRUParams, or {"": cell} for CellParams, in PyTorch's order."""
    if isinstance(params, Mapping) and "kernel_hh" in params:
        input_size, hidden_size = check_cell("to_torch", params)
        shapes, params = {"": cell_shapes(input_size, hidden_size, "bias_hh" in params)}, {"": params}
    else:
        shapes = param_shapes(check_params("to_torch", params))
    return {cell: {key: params[cell][key] for key in keys} for cell, keys in shapes.items()}
