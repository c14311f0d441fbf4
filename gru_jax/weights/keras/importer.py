"""Converts Keras's GRU, Bidirectional(GRU) and GRUCell, as layers and in files, to our parameters.

    kernel            (I, 3H)              kernel_ih, with Keras's gates z, r, h put into the order r, z, n
    recurrent_kernel  (H, 3H)              kernel_hh, likewise
    bias              (2, 3H)              with reset_after=True: bias_ih and bias_hh
    bias              (3H,)                with reset_after=False: bias_ih; bias_hh is zero, which adds nothing

Keras gives each layer of a stack its own name, so each is a GRU of one layer here.
"""

import functools
import os
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from gru_jax.params import GRUConfig
from gru_jax.weights.arrays import to_jax
from gru_jax.weights.found import Contents, Found, Params, choose, naming
from gru_jax.weights.gate_order import to_ours
from gru_jax.weights.keras import config as keras_config
from gru_jax.weights.keras import files, hdf5, live
from gru_jax.weights.keras.config import Layer

Arrays = Sequence[Sequence[np.ndarray]]  # per direction: kernel, recurrent_kernel and, where use_bias, bias


def open_keras(path: str | os.PathLike[str]) -> Contents:
    """Opens a .keras archive or an HDF5 file of Keras 2 or 3. It neither deserializes the model nor imports Keras.

    Args:
      path: the file. Its content, not its name, decides what kind of file it is.

    Returns:
      Its GRUs by the names of their layers, "inner/gru" in a nested model. A file of weights alone (.weights.h5) says
      neither which activations a GRU has nor in which direction it reads x, so its GRUs are refused.

    Raises:
      OSError: if there is no such file.
      ValueError: if it is no Keras file, or is damaged.
      ImportError: if h5py is not installed.

    Example:
      >>> open_keras("pyproject.toml")  # doctest: +ELLIPSIS
      Traceback (most recent call last):
      ValueError: The file is neither a zip archive (.keras) nor HDF5 (.h5), so it is no Keras ...
    """
    grus: dict[str, Found] = {}
    refused: dict[str, str] = {}
    others: dict[str, str] = {}
    with files.open_file(path) as file:
        if file.config is None:
            return Contents(file.format, {}, *files.list_weights(file))
        entries = keras_config.layers(file.config)
        masking = [entry.name for entry in entries if keras_config.masks(entry.saved)]
        for entry in entries:
            if not keras_config.is_recurrent(entry.saved):
                others[entry.name] = entry.saved["class_name"]
                continue
            try:
                layer = keras_config.understand(entry.saved)
                names, arrays = files.read_weights(file, entry, layer)
            except ValueError as error:
                refused[entry.name] = str(error)
            else:
                mask = (
                    [f"{masking[0]} masks time steps: give seq_lengths, where they are at the end."] if masking else []
                )
                grus[entry.name] = _found(layer, names, arrays, (*layer.notes, *mask))
    return Contents(file.format, grus, refused, others)


def from_keras(source: Any, name: str | None = None) -> tuple[GRUConfig, Params]:
    """Takes a trained GRU out of Keras.

    Args:
      source: a file (see `open_keras`), or a built layer: GRU, Bidirectional(GRU), RNN(GRUCell) or GRUCell.
      name: the layer's name; needed if a file holds several GRUs.

    Returns:
      (config, params), with batch_first=True, as Keras has it. If more must be done than to call `gru`, such as to flip
      x for go_backwards, a UserWarning says so. Dtypes are kept, but float64 becomes float32, with a warning, unless
      jax_enable_x64 is set.

    Raises:
      TypeError: if the source is something else.
      OSError: if there is no such file.
      ValueError: if the file is damaged, holds no GRU of that name or several and no name is given, or if the layer
        is no GRU with tanh and sigmoid.
      ImportError: if the source is a file and h5py is not installed.

    Example:
      >>> import os
      >>> os.environ.setdefault("KERAS_BACKEND", "jax")
      'jax'
      >>> import keras
      >>> layer = keras.layers.GRU(20)
      >>> layer.build((None, None, 10))
      >>> config, params = from_keras(layer)
      >>> config.batch_first, config.reset_after, params["l0"]["kernel_ih"].shape
      (True, True, (10, 60))
    """
    if isinstance(source, str | os.PathLike):
        with naming(f"from_keras: {os.fspath(source)}"):
            found = choose(open_keras(source), name)[1]
    else:
        found = _live(source)
    for note in found.notes:
        warnings.warn(f"from_keras: {note}", stacklevel=2)
    return found.config, found.read()


def _found(layer: Layer, names: tuple[str, ...], arrays: Arrays, notes: tuple[str, ...]) -> Found:
    """Returns one GRU. Its arrays stay in NumPy until it is read."""
    config = GRUConfig(
        input_size=arrays[0][0].shape[0],
        hidden_size=layer.units,
        bias=layer.bias,
        batch_first=True,
        bidirectional=len(arrays) == 2,
        reset_after=layer.reset_after,
    )

    def read() -> Params:
        return to_jax("Keras", _our_cells(arrays))

    prepared = functools.cache(lambda dtype: live.prepare(layer, arrays, dtype))

    def original(
        dtype: str, x: np.ndarray, h_0: np.ndarray, d_output: np.ndarray, d_h_n: np.ndarray
    ) -> dict[str, np.ndarray]:
        results, d_arrays = prepared(dtype)(x, h_0, d_output, d_h_n)
        for name, cell in _our_cells(d_arrays).items():
            # With reset_after=False Keras has one bias in the place of our two, so its gradient is that of both.
            both = cell | {"bias_hh": cell["bias_ih"]} if layer.bias and not layer.reset_after else cell
            results |= {f"d_{name}/{key}": gradient for key, gradient in both.items()}
        return results

    inner = {"Bidirectional": "Bidirectional(GRU)", "RNN": "RNN(GRUCell)"}.get(layer.kind, layer.kind)
    return Found(config, read, original, f"keras.layers.{inner}", names, notes, layer.backwards)


def _our_cells(arrays: Arrays) -> dict[str, dict[str, np.ndarray]]:
    """Returns the arrays of each direction under our names, with the gates in our order."""
    cells = {}
    for name, (kernel, recurrent_kernel, *bias) in zip(("l0", "l0_reverse"), arrays, strict=False):
        cell = {"kernel_ih": to_ours(kernel, "keras"), "kernel_hh": to_ours(recurrent_kernel, "keras")}
        for ours in (to_ours(array, "keras") for array in bias):
            pair = ours if ours.ndim == 2 else (ours, np.zeros_like(ours))
            cell |= dict(zip(("bias_ih", "bias_hh"), pair, strict=True))
        cells[name] = cell
    return cells


def _live(source: Any) -> Found:
    """Returns the GRU of a live layer, which is checked as one in a file is."""
    kind = f"{type(source).__module__}.{type(source).__name__}"
    if isinstance(source, type) or kind.split(".")[0] != "keras" or not hasattr(source, "get_weights"):
        raise TypeError(f"from_keras: expected a path or one of Keras's own recurrent layers, got {kind}.")
    saved = {"module": "keras.layers", "class_name": type(source).__name__, "config": source.get_config()}
    try:
        layer = keras_config.understand(saved)
        # Not get_weights(): it asks for arrays in a way that NumPy 2 deprecates.
        to_numpy = live.require_keras().ops.convert_to_numpy
        arrays = [np.asarray(to_numpy(variable.value)) for variable in source.weights]
        each = len(layer.shapes)
        if len(arrays) != each * len(layer.parts):
            raise ValueError(f"a layer with {len(arrays)} weights: it has to be built, by calling it once.")
        for i, array in enumerate(arrays):
            hdf5.check(f"weight {i}", array.shape, array.dtype, layer.shapes[i % each])
    except ValueError as error:
        raise ValueError(f"from_keras: expected a GRU, got {error}") from error
    names = tuple(str(variable.path) for variable in source.weights)
    return _found(layer, names, [arrays[i : i + each] for i in range(0, len(arrays), each)], layer.notes)
