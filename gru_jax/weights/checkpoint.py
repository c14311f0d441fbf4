"""Opens any file of trained weights and finds the GRUs in it."""

import os
import warnings
from collections.abc import Mapping
from pathlib import Path

from gru_jax.params import GRUConfig
from gru_jax.weights.archives import open_archive
from gru_jax.weights.arrays import not_finite
from gru_jax.weights.containers.signatures import ARCHIVES, identify
from gru_jax.weights.files import open_file
from gru_jax.weights.found import Contents, Params, choose, naming, with_names


def load(
    path: str | os.PathLike[str], prefix: str | None = None, names: Mapping[str, str] | None = None
) -> tuple[GRUConfig, Params]:
    """Loads a trained GRU from a file of any known format.

    Args:
      path: a file of `save`; of PyTorch, safetensors or the index of several, ONNX, Keras, NumPy (.npz) or Flax
        (msgpack); an Orbax folder; or a .tar, .tar.gz, .zip or .gz around such a file.
      prefix: where the GRU is in the file, "encoder.rnn.", whose last dot may be left out; in an ONNX or Keras file the
        name of the node or layer. None for the only GRU.
      names: other names for tensors, {"enc_w_ih": "encoder.weight_ih"}, where they do not follow a known convention.

    Returns:
      (config, params). A file of `save` gives back its whole config. Most other files do not hold `batch_first` and
      `dropout`, which then keep their defaults.

    Raises:
      ValueError: if the file is damaged or hostile, or of no known format; if it holds no GRU, or several and no
        prefix is given, or none at the prefix; or if the GRU there can't be imported (the message says why).
      TypeError: if tensors are not floating.
      OSError: if the file can't be read.
      ImportError: if the package that reads the format is not installed.

    Warns:
      UserWarning: for each thing that must be done besides `gru(params, x)` to get the original's numbers, and for
        parameters that are NaN or infinite.

    Example:
      >>> import numpy as np, tempfile
      >>> cell = {"weight_ih": np.zeros((60, 10), np.float32), "weight_hh": np.zeros((60, 20), np.float32)}
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     np.savez(f"{folder}/model.npz", **{f"encoder.{name}": array for name, array in cell.items()})
      ...     config, params = load(f"{folder}/model.npz")
      >>> config.hidden_size, params["l0"]["kernel_hh"].shape
      (20, (20, 60))
    """
    contents = open_checkpoint(path, names)
    with naming(os.fspath(path)):
        _, found = choose(contents, prefix)
    params = found.read()
    for note in found.notes:
        warnings.warn(f"{path}: {note}", stacklevel=2)
    for name in not_finite(params):
        warnings.warn(f"{path}: {name} holds NaN or infinity.", stacklevel=2)
    return found.config, params


def open_checkpoint(path: str | os.PathLike[str], names: Mapping[str, str] | None = None) -> Contents:
    """Opens a file or folder of weights. The arguments and errors are those of `load`; tensors are not read yet."""
    with naming(os.fspath(path)):
        file, kind = identify(Path(path))
    with naming(file):
        contents = open_archive(file, kind, names) if kind in ARCHIVES else open_file(file, kind, names)
    return with_names(file, contents)
