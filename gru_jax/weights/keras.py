"""Keras's GRU, Bidirectional(GRU) and GRUCell: their layers and files, to our parameters and back.

    kernel            (I, 3H)              kernel_ih, with Keras's gates z, r, h put into the order r, z, n
    recurrent_kernel  (H, 3H)              kernel_hh, likewise
    bias              (2, 3H)              bias_ih and bias_hh, of reset_after=True
    bias              (3H,)                bias_ih, of reset_after=False; bias_hh is zero, which adds nothing

Keras gives each layer of a stack a name of its own, so each is a GRU of one layer here.
"""

import difflib
import functools
import os
import pathlib
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gru_jax.params import GRUConfig, GRUParams, cell_names, check_declared, check_params
from gru_jax.weights import keras_config, keras_files, keras_hdf5, keras_live
from gru_jax.weights.found import Contents, Found, Params
from gru_jax.weights.gate_order import from_ours, to_ours
from gru_jax.weights.keras_config import Layer
from gru_jax.weights.replacing import replacing
from gru_jax.weights.trees import fold

Arrays = Sequence[Sequence[np.ndarray]]  # per direction: kernel, recurrent_kernel and, where use_bias, bias


def open_keras(path: str | os.PathLike[str]) -> Contents:
    """Opens a .keras archive or an HDF5 file of Keras 2 or 3. The model is not deserialized, nor is Keras imported.

    Args:
      path: of the file; what it holds counts, not its name.

    Returns:
      Its GRUs by the names of their layers, "inner/gru" in a nested model. A file of weights alone (.weights.h5) says
      neither which activations a GRU has nor which way it reads, so the GRUs in one are refused.

    Raises:
      OSError: if there is no such file.
      ValueError: if it is no Keras file, or is damaged.
      ImportError: if h5py is not installed.

    Example:
      >>> open_keras("pyproject.toml")  # doctest: +ELLIPSIS
      Traceback (most recent call last):
      ValueError: pyproject.toml: The file is neither a zip archive (.keras) nor HDF5 (.h5), so it is no Keras ...
    """
    grus: dict[str, Found] = {}
    refused: dict[str, str] = {}
    others: dict[str, str] = {}
    with keras_files.open_file(path) as file:
        if file.config is None:
            return Contents(file.format, {}, *keras_files.list_weights(file))
        entries = keras_config.layers(file.config)
        masking = [entry.name for entry in entries if keras_config.masks(entry.saved)]
        for entry in entries:
            if not keras_config.is_recurrent(entry.saved):
                others[entry.name] = entry.saved["class_name"]
                continue
            try:
                layer = keras_config.understand(entry.saved)
                names, arrays = keras_files.read_weights(file, entry, layer)
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
      name: of the layer, where a file holds several GRUs.

    Returns:
      (config, params), with batch_first=True, as Keras has it. Where more is to be done than to call `gru`, such as
      to flip x for go_backwards, a UserWarning says so. Dtypes are kept, but float64 becomes float32, with a warning,
      unless jax_enable_x64 is set.

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
    found = _pick(source, name) if isinstance(source, str | os.PathLike) else _live(source)
    for note in found.notes:
        warnings.warn(f"from_keras: {note}", stacklevel=2)
    return found.config, found.read()


def to_keras(config: GRUConfig, params: GRUParams) -> dict[str, list[np.ndarray]]:
    """Writes parameters in Keras's order and layout.

    Args:
      config: for `reset_after`, which no shape shows.
      params: GRUParams.

    Returns:
      "l0", "l1", ... -> what `set_weights` takes, of a keras.layers.GRU(H, reset_after=config.reset_after), or of a
      Bidirectional of it. With reset_after=False Keras has one bias: it is bias_ih + bias_hh, rounded once; the other
      arrays are the same numbers. bfloat16, which NumPy lacks, is widened to float32, exactly.

    Raises:
      TypeError: if params is not a dict of dicts of floating arrays.
      ValueError: if params are not those of config.

    Example:
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
    written beside `path` and then renamed, so that a failure leaves an old file whole.

    Args:
      path: ends in ".keras".
      config: the sizes.
      params: GRUParams; see `to_keras`.

    Raises:
      ValueError: if the path ends otherwise, or params are not those of config.
      OSError: if it can't be written.
      ImportError: if keras is not installed.

    Example:
      >>> import tempfile
      >>> from gru_jax import init_params
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
    keras, dtype = keras_live.require_keras(), str(weights["l0"][0].dtype)
    kind = "Bidirectional" if config.bidirectional else "GRU"
    layer = Layer(kind, config.hidden_size, config.bias, config.reset_after)
    with keras_live.precision(keras, dtype):
        model = keras.Sequential([keras.Input((None, config.input_size), dtype=dtype)])
        for name, arrays in weights.items():
            model.add(keras_live.build(keras, layer, dtype, name))
            model.layers[-1].set_weights(arrays)
            if config.dropout and name != list(weights)[-1]:
                model.add(keras.layers.Dropout(config.dropout))
        with replacing(path) as made:
            model.save(made)


def _found(layer: Layer, names: tuple[str, ...], arrays: Arrays, notes: tuple[str, ...]) -> Found:
    """Returns one GRU, its arrays in NumPy until they are asked for."""
    config = GRUConfig(
        input_size=arrays[0][0].shape[0],
        hidden_size=layer.units,
        bias=layer.bias,
        batch_first=True,
        bidirectional=len(arrays) == 2,
        reset_after=layer.reset_after,
    )

    def read() -> Params:
        dtype = arrays[0][0].dtype
        if jax.dtypes.canonicalize_dtype(dtype) != dtype:
            warnings.warn(
                f"{names[0]} is float64 and becomes float32, the widest that JAX computes in without "
                'jax.config.update("jax_enable_x64", True).',
                stacklevel=2,
            )
        return jax.tree.map(jnp.array, _our_cells(arrays))

    prepared = functools.cache(lambda dtype: keras_live.prepare(layer, arrays, dtype))

    def original(
        dtype: str, x: np.ndarray, h_0: np.ndarray, d_output: np.ndarray, d_h_n: np.ndarray
    ) -> dict[str, np.ndarray]:
        results, d_arrays = prepared(dtype)(x, h_0, d_output, d_h_n)
        for name, cell in _our_cells(d_arrays).items():
            # Where there is but one bias, it is in the place of both of ours, and so is its gradient.
            both = cell | {"bias_hh": cell["bias_ih"]} if layer.bias and not layer.reset_after else cell
            results |= {f"d_{name}/{key}": gradient for key, gradient in both.items()}
        return results

    inner = {"Bidirectional": "Bidirectional(GRU)", "RNN": "RNN(GRUCell)"}.get(layer.kind, layer.kind)
    return Found(config, read, original, f"keras.layers.{inner}", names, notes, layer.backwards)


def _our_cells(arrays: Arrays) -> dict[str, dict[str, np.ndarray]]:
    """Names the arrays of each direction as ours, with our order of the gates."""
    cells = {}
    for name, (kernel, recurrent_kernel, *bias) in zip(("l0", "l0_reverse"), arrays, strict=False):
        cell = {"kernel_ih": to_ours(kernel, "keras"), "kernel_hh": to_ours(recurrent_kernel, "keras")}
        for ours in (to_ours(array, "keras") for array in bias):
            pair = ours if ours.ndim == 2 else (ours, np.zeros_like(ours))
            cell |= dict(zip(("bias_ih", "bias_hh"), pair, strict=True))
        cells[name] = cell
    return cells


def _keras_cell(cell: Mapping[str, Any], config: GRUConfig) -> list[np.ndarray]:
    """Returns kernel, recurrent_kernel and bias of one cell."""
    wide = {key: np.asarray(jnp.asarray(a, jnp.float32) if a.dtype == jnp.bfloat16 else a) for key, a in cell.items()}
    ours = {key: from_ours(array, "keras") for key, array in wide.items()}
    kernels = [ours["kernel_ih"], ours["kernel_hh"]]
    if not config.bias:
        return kernels
    both = ours["bias_ih"], ours["bias_hh"]
    return [*kernels, np.stack(both) if config.reset_after else fold("to_keras", *both)]


def _pick(path: str | os.PathLike[str], name: str | None) -> Found:
    """Returns the one GRU in a file that is meant."""
    contents = open_keras(path)
    grus, where = contents.grus, f"from_keras: {os.fspath(path)}"
    if name is not None and name in contents.refused:
        raise ValueError(f"{where}: {name!r} is {contents.refused[name]}")
    if name is not None and name not in grus:
        near = difflib.get_close_matches(name, grus, cutoff=0)
        raise ValueError(f"{where} has no layer {name!r}. Its GRUs, the nearest name first: {near or 'none'}.")
    if name is None and len(grus) != 1:
        reasons = "".join(f" {refused!r} is {why}" for refused, why in contents.refused.items()) if not grus else ""
        held = f"holds the GRUs {list(grus)}: pass one as name" if grus else "holds no GRU that can be imported"
        raise ValueError(f"{where} {held}.{reasons}")
    return next(iter(grus.values())) if name is None else grus[name]


def _live(source: Any) -> Found:
    """Describes a live layer as a file would."""
    kind = f"{type(source).__module__}.{type(source).__name__}"
    if isinstance(source, type) or kind.split(".")[0] != "keras" or not hasattr(source, "get_weights"):
        raise TypeError(f"from_keras: expected a path or one of Keras's own recurrent layers, got {kind}.")
    saved = {"module": "keras.layers", "class_name": type(source).__name__, "config": source.get_config()}
    try:
        layer = keras_config.understand(saved)
        # Not get_weights(): it asks NumPy 2 for arrays in a way that is deprecated there.
        to_numpy = keras_live.require_keras().ops.convert_to_numpy
        arrays = [np.asarray(to_numpy(variable.value)) for variable in source.weights]
        each = len(layer.shapes)
        if len(arrays) != each * len(layer.parts):
            raise ValueError(f"a layer with {len(arrays)} weights: it has to be built, by calling it once.")
        for i, array in enumerate(arrays):
            keras_hdf5.check(f"weight {i}", array.shape, array.dtype, layer.shapes[i % each])
    except ValueError as error:
        raise ValueError(f"from_keras: expected a GRU, got {error}") from error
    names = tuple(str(variable.path) for variable in source.weights)
    return _found(layer, names, [arrays[i : i + each] for i in range(0, len(arrays), each)], layer.notes)
