"""Opens Keras's files without Keras: the model's config, and the arrays of one layer. No code in a file ever runs.

.keras        a zip: config.json, and model.weights.h5 with layers/gru/cell/vars/0, 1, 2
.h5, .hdf5    HDF5: the attribute model_config, and the group model_weights with a group and an order for each layer
.weights.h5   HDF5 as inside the zip, without a config
"""

import contextlib
import io
import itertools
import json
import math
import mmap
import os
import zipfile
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from gru_jax.weights.containers.zips import refuse_bomb
from gru_jax.weights.keras import hdf5
from gru_jax.weights.keras.config import Entry, Layer
from gru_jax.weights.keras.hdf5 import Root, attribute, text

ZIP, HDF5 = b"PK\x03\x04", b"\x89HDF\r\n\x1a\n"
CONFIG, WEIGHTS = "config.json", "model.weights.h5"
MOST_CONFIG = 50_000_000  # bytes; the largest published models stay under a tenth of it
# What Keras 2.12 and 2.13 wrote for every "layers"; Keras 3 still reads it.
OLD_LAYERS = "_layer_checkpoint_dependencies"
KINDS = {1: "a plain RNN", 3: "a GRU", 4: "an LSTM"}  # by the number of gates in the recurrent kernel

_ALONE = (
    ", but a file of weights alone tells neither its activations nor its direction. Load it in Keras, and save the "
    "whole model as .keras or pass the layer itself to from_keras."
)


class File(NamedTuple):
    """An open file.

    Attributes:
      format: what kind of file it is, "Keras, zip".
      config: the model's config, parsed from JSON; None in a file of weights alone.
      root: the root group of the HDF5 file.
    """

    format: str
    config: Any
    root: Root


@contextlib.contextmanager
def open_file(path: str | os.PathLike[str]) -> Iterator[File]:
    """Opens a file. Its content, not its name, decides what kind of file it is.

    Raises:
      OSError: if there is no such file.
      ValueError: if it is damaged.
      ImportError: if h5py is not installed.
    """
    with open(path, "rb") as file:
        size, magic = os.fstat(file.fileno()).st_size, file.read(8)
        zipped = magic.startswith(ZIP)
        if not zipped and magic != HDF5:
            kind = "neither a zip archive (.keras) nor HDF5 (.h5)" if magic else "empty"
            raise ValueError(f"The file is {kind}, so it is no Keras model, or it is damaged.")
        config, content = _unzip(file, size) if zipped else (None, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        file.seek(0)
        with hdf5.opened(io.BytesIO(content) if isinstance(content, bytes) else file, content) as root:
            if zipped:
                yield File("Keras, zip", config, root)
            elif (saved := attribute(root, "", "model_config")) is not None:
                yield File("Keras, HDF5", _parse(text(saved)), root)
            else:
                yield File("Keras, HDF5 of weights alone", None, root)


def read_weights(file: File, entry: Entry, layer: Layer) -> tuple[tuple[str, ...], list[list[np.ndarray]]]:
    """Returns the names of a layer's datasets, and per direction the arrays kernel, recurrent_kernel and bias.

    Raises:
      ValueError: if an array is missing, damaged, in another file, or of a shape that the config does not allow.
    """
    names = (_ordered if file.format == "Keras, HDF5" else _numbered)(file.root, entry, layer)
    each = len(layer.shapes)
    arrays = [hdf5.array(file.root, name, layer.shapes[i % each]) for i, name in enumerate(names)]
    if len({array.shape for array in arrays[::each]} | {array.dtype for array in arrays}) != 2:
        raise ValueError(f"{names[0]} and the arrays beside it differ in dtype or input size.")
    return tuple(names), [arrays[i : i + each] for i in range(0, len(arrays), each)]


def list_weights(file: File) -> tuple[dict[str, str], dict[str, str]]:
    """Returns what a file of weights alone holds: recurrent layers with the reasons to refuse them, and the others."""
    refused, others = {}, {}
    for name, (shape, dtype) in hdf5.datasets(file.root).items():
        group, _, last = name.rpartition("/")
        hidden = name.endswith("cell/vars/1") or last.split(":")[0] == "recurrent_kernel"
        kind = KINDS.get(shape[1] // shape[0]) if hidden and len(shape) == 2 and shape[0] else None
        if kind:
            refused[group] = kind + (_ALONE if kind == KINDS[3] else ", not a GRU.")
        else:
            others[name] = f"{dtype} {list(shape)}"
    return refused, others


def _numbered(root: Root, entry: Entry, layer: Layer) -> list[str]:
    """Returns a layer's names in a model.weights.h5: numbers, in the order in which the layer makes its variables."""
    with hdf5.guard(entry.group):
        old = OLD_LAYERS in root.group
    group = entry.group.replace("layers", OLD_LAYERS) if old else entry.group
    with hdf5.guard(group):
        says = "vars" in hdf5.child(root, group)
    # The group was found by counting layers. Newer versions of Keras also write which layer it belongs to.
    owner = attribute(root, f"{group}/vars", "name") if says else None
    if owner is not None and text(owner) != entry.own:
        raise ValueError(f"{group} is said to belong to the layer {text(owner)!r}, not to {entry.own!r}.")
    names = []
    for part in layer.parts:
        with hdf5.guard(part):
            held = sorted(hdf5.child(root, f"{group}/{part}"))
        if held != [str(i) for i in range(len(layer.shapes))]:
            raise ValueError(f"{group}/{part} should hold {len(layer.shapes)} arrays, and holds {held[:20]}.")
        names += [f"{group}/{part}/{key}" for key in held]
    return names


def _ordered(root: Root, entry: Entry, layer: Layer) -> list[str]:
    """Returns a layer's names in a whole-model HDF5 file, in the order of weight_names, one list per nested model."""
    group = f"model_weights/{entry.top}"
    listed = attribute(root, group, "weight_names")
    if listed is None:  # a list of more than 64 KB is stored in numbered pieces
        pieces = (attribute(root, group, f"weight_names{i}") for i in itertools.count())
        listed = [name for piece in itertools.takewhile(lambda p: p is not None, pieces) for name in np.ravel(piece)]
    names = [text(name) for name in np.ravel(listed)]
    if entry.name != entry.top:
        names = [name for name in names if entry.own in name.split("/")]
    kinds = [name.rpartition("/")[2].split(":")[0] for name in names]
    expected = ["kernel", "recurrent_kernel", "bias"][: len(layer.shapes)] * len(layer.parts)
    if kinds != expected:
        raise ValueError(f"{group} should list the weights {expected}, and lists {names[:20]}.")
    return [f"{group}/{name}" for name in names]


def _unzip(file: Any, size: int) -> tuple[Any, bytes]:
    """Returns the config and the HDF5 file in a .keras archive; nothing is written to disk."""
    with _zip():
        members = {info.filename: info for info in zipfile.ZipFile(file).infolist()}
    for name, most in ((CONFIG, MOST_CONFIG), (WEIGHTS, math.inf)):
        if name not in members:
            raise ValueError(f"The zip archive holds no {name}, so it is no .keras file of Keras 3.")
        claimed, stored = members[name].file_size, min(members[name].compress_size, size)
        if claimed > most:
            raise ValueError(f"{name} claims {claimed:,} bytes, more than any model's: it is not unpacked.")
        refuse_bomb(claimed, stored, what=name)
    with _zip():
        archive = zipfile.ZipFile(file)
        config, weights = archive.read(CONFIG), archive.read(WEIGHTS)
    return _parse(config), weights


def _parse(config: str | bytes) -> Any:
    try:
        return json.loads(config)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"The model's config is no JSON: {error}.") from error


@contextlib.contextmanager
def _zip() -> Iterator[None]:
    """Turns all that zipfile raises on a damaged or encrypted archive into ValueError; it documents only some of it."""
    try:
        yield
    except Exception as error:
        raise ValueError(f"The zip archive can't be read: {error}") from error
