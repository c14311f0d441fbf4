"""Reads a Keras model's config, which is JSON: the layers in it, and what a recurrent one computes.

Nothing is deserialized, since the config of a Lambda layer is code. A recurrent layer is refused unless it is a GRU
with tanh and sigmoid, and every one of its arguments is known.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

MODELS = ("Sequential", "Functional", "Model")
_RECURRENT = re.compile("gru|lstm|rnn", re.IGNORECASE)
_LAYER = {"name", "trainable", "dtype", "batch_input_shape", "batch_shape", "input_shape", "input_dim", "input_length"}
_CELL = {"units", "activation", "recurrent_activation", "use_bias", "reset_after", "dropout", "recurrent_dropout"}
_CELL |= {"seed", "implementation", "activity_regularizer"}
_CELL |= {f"{a}_{b}" for a in ("kernel", "recurrent", "bias") for b in ("initializer", "regularizer", "constraint")}
_RNN = {"return_sequences", "return_state", "go_backwards", "stateful", "unroll", "zero_output_for_mask", "time_major"}
_ARGUMENTS = {
    "GRU": _LAYER | _CELL | _RNN | {"use_cudnn"},
    "GRUCell": _LAYER | _CELL,
    "RNN": _LAYER | _RNN | {"cell", "activity_regularizer"},
    "Bidirectional": _LAYER | {"layer", "backward_layer", "merge_mode"},
}


class Entry(NamedTuple):
    """A layer of a model.

    Attributes:
      name: "gru", or "inner/gru" in a nested model.
      own: its name in the model that directly holds it.
      top: the name of the outermost nested model around it, or its own.
      group: its group in model.weights.h5, "layers/gru_1".
      saved: its part of the config: class_name, config, module, ...
    """

    name: str
    own: str
    top: str
    group: str
    saved: Mapping[str, Any]


class Layer(NamedTuple):
    """A GRU layer that `gru` can compute.

    Attributes:
      kind: the class, "GRU", "Bidirectional", "RNN" or "GRUCell".
      units: the number of features of the state, H.
      bias: its use_bias.
      reset_after: the form of the new gate.
      backwards: its go_backwards; False for a Bidirectional.
      notes: what must be done besides running a GRU.
    """

    kind: str
    units: int
    bias: bool
    reset_after: bool
    backwards: bool = False
    notes: tuple[str, ...] = ()

    @property
    def shapes(self) -> list[tuple[int | None, ...]]:
        """The shapes of kernel, recurrent_kernel and bias, with None for I."""
        gates = 3 * self.units
        bias = [(2, gates) if self.reset_after else (gates,)] if self.bias else []
        return [(None, gates), (self.units, gates), *bias]

    @property
    def parts(self) -> tuple[str, ...]:
        """Where a model.weights.h5 keeps the variables of each direction, in the layer's group."""
        pair = ("forward_layer/cell/vars", "backward_layer/cell/vars")
        return {"Bidirectional": pair, "GRUCell": ("vars",)}.get(self.kind, ("cell/vars",))


def layers(model: Any) -> list[Entry]:
    """Returns the layers of a serialized model, and of the models nested in it.

    Raises:
      ValueError: if it is no Sequential or Functional model, nests too deep, or has two layers of the same name.
    """
    try:
        entries = list(_walk(model))
    except RecursionError as error:
        raise ValueError("The model's config nests too deep.") from error
    twice = [name for name, count in Counter(entry.name for entry in entries).items() if count > 1]
    if twice:
        raise ValueError(f"The model's config gives two layers one name: {twice}.")
    return entries


def _walk(model: Any, prefix: str = "", top: str = "", group: str = "") -> Iterator[Entry]:
    """Yields the layers. `_save_container_state` of keras/src/saving/saving_lib.py numbers their groups by class."""
    config = model.get("config") if isinstance(model, Mapping) else None
    held = config.get("layers") if isinstance(config, Mapping) else config  # before Keras 2.2.3 it is the list
    if not isinstance(held, list) or not is_keras(model, MODELS):
        raise ValueError(f"The file holds {_class(model)}: only Sequential and Functional models say what is in them.")
    seen: Counter[str] = Counter()
    for saved in held:
        inner = saved.get("config") if isinstance(saved, Mapping) else None
        name = inner.get("name", saved.get("name")) if isinstance(inner, Mapping) else None
        if not isinstance(name, str) or not isinstance(saved.get("class_name"), str):
            raise ValueError(f"The model's config holds a layer without a name or a class: {str(saved)[:80]}.")
        snake = _snake_case(saved["class_name"])
        place = f"{group}layers/{snake}" + (f"_{seen[snake]}" if seen[snake] else "")
        seen[snake] += 1
        if is_keras(saved, MODELS):
            yield from _walk(saved, f"{prefix}{name}/", top or name, f"{place}/")
        else:
            yield Entry(f"{prefix}{name}", name, top or name, place, saved)


def is_keras(saved: Any, classes: tuple[str, ...]) -> bool:
    """Whether a serialized object is of one of these classes of Keras itself. HDF5 files name no module."""
    module = saved.get("module") if isinstance(saved, Mapping) else ""
    own = module is None or (isinstance(module, str) and module.split(".")[0] == "keras")
    return own and saved.get("class_name") in classes


def is_recurrent(saved: Any) -> bool:
    """Whether anything in a serialized layer, at any depth, looks recurrent. If so, it must not be passed over."""
    if isinstance(saved, list):
        return any(map(is_recurrent, saved))
    if not isinstance(saved, Mapping):
        return False
    kind = saved.get("class_name")
    return (isinstance(kind, str) and bool(_RECURRENT.search(kind))) or any(
        str(key).startswith("recurrent_") or is_recurrent(value)
        for key, value in saved.items()
        if key != "inbound_nodes"
    )


def masks(saved: Mapping[str, Any]) -> bool:
    """Whether a serialized layer makes a mask that the layers after it obey."""
    return "Masking" in saved["class_name"] or saved["config"].get("mask_zero") is True


def understand(saved: Mapping[str, Any]) -> Layer:
    """Returns what a serialized recurrent layer computes, and refuses everything but a GRU.

    Raises:
      ValueError: with the reason why gru doesn't compute it, "an LSTM, ...".
    """
    if not is_keras(saved, tuple(_ARGUMENTS)):
        raise ValueError(_not_a_gru(saved))
    forward, kind, notes = _config(saved), saved["class_name"], []
    if kind == "Bidirectional":
        forward, notes = _both(forward)
        # Bidirectional sets these two itself.
        forward |= {"go_backwards": False, "zero_output_for_mask": False}
    elif kind == "RNN":
        cell = forward.get("cell")
        if not is_keras(cell, ("GRUCell",)):
            raise ValueError(f"an RNN of {_class(cell)}, where only that of one GRUCell is read.")
        forward |= _config(cell)
    units, bias, reset_after = _cell(forward)
    backwards = _flag(forward, "go_backwards", False)
    return Layer(kind, units, bias, reset_after, backwards, (*notes, *_notes(forward)))


def _both(config: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Returns the config of a Bidirectional's forward layer, and notes. The backward layer must compute the same."""
    pair = [config.get("layer"), config.get("backward_layer") or config.get("layer")]
    for direction in pair:
        if not is_keras(direction, ("GRU",)):
            raise ValueError(f"a Bidirectional of {_class(direction)}, where only that of a GRU is read.")
    forward, backward = map(_config, pair)
    turned = not config.get("backward_layer") or _flag(backward, "go_backwards", False)
    if _cell(forward) != _cell(backward) or _flag(forward, "go_backwards", False) or not turned:
        raise ValueError("a Bidirectional whose backward_layer is not its layer turned round.")
    mode = config.get("merge_mode", "concat")
    if mode not in ("concat", None):
        raise ValueError(f"a Bidirectional(GRU) with merge_mode {mode!r}, where a GRU's output is that of 'concat'.")
    parted = ["Keras gives its two directions as two outputs (merge_mode None); gru joins them along the last axis."]
    return forward, [] if mode else parted


def _cell(config: Mapping[str, Any]) -> tuple[int, bool, bool]:
    """Returns units, use_bias and reset_after of a GRU. Raises ValueError unless it has tanh and sigmoid."""
    for key, ours in {"activation": "tanh", "recurrent_activation": "sigmoid"}.items():
        if config.get(key) != ours:
            raise ValueError(f"a GRU with {key} {config.get(key)!r}, where gru computes {ours!r} only.")
    units = config.get("units")
    if type(units) is not int or not 0 < units < 2**31:
        raise ValueError(f"a GRU with units {units!r}, which is no size.")
    return units, _flag(config, "use_bias"), _flag(config, "reset_after")


def _notes(config: Mapping[str, Any]) -> list[str]:
    """Says what a layer does besides running a GRU."""
    notes = {
        "go_backwards": "It reads x from the end (go_backwards): flip x along time before gru and the output after it. "
        "Keras itself leaves the output in reversed time.",
        "stateful": "It is stateful: Keras starts a batch from the h_n of the one before; pass that as h_0.",
        "time_major": "It is time_major: its x is [L, N, I], so pass batch_first=False.",
        "zero_output_for_mask": "Its output is zero where a step is masked, as that of gru is beyond seq_lengths.",
    }
    said = [note for key, note in notes.items() if _flag(config, key, False)]
    for key in ("dropout", "recurrent_dropout"):
        if config.get(key):
            said.append(f"{key}={config[key]!r} acts inside its cell in training; gru has nothing of it.")
    policy = config.get("dtype")
    policy = policy.get("config") if isinstance(policy, Mapping) else policy
    policy = policy.get("name") if isinstance(policy, Mapping) else policy
    if policy not in (None, "float16", "bfloat16", "float32", "float64"):
        said.append(f"Its dtype policy is {policy!r}; gru computes in the dtype of the parameters and of x.")
    return said


def _config(saved: Any) -> dict[str, Any]:
    """Returns a layer's arguments. Raises ValueError if one of them is unknown."""
    config, kind = saved.get("config"), saved["class_name"]
    if not isinstance(config, Mapping):
        raise ValueError(f"a {kind} without a config.")
    unknown = sorted(set(config) - _ARGUMENTS[kind])
    if unknown:
        raise ValueError(f"a {kind} with arguments {unknown}, which are not known here.")
    return dict(config)


def _flag(config: Mapping[str, Any], key: str, default: bool | None = None) -> bool:
    value = config.get(key, default)
    if not isinstance(value, bool):
        raise ValueError(f"a GRU whose {key} is {value!r}, not True or False: save it anew, in a newer Keras.")
    return value


def _not_a_gru(saved: Mapping[str, Any]) -> str:
    kind = saved["class_name"]
    if not is_keras(saved, (kind,)) or ">" in kind:
        return f"{_class(saved)}, a class of somebody's own, whose code is not in the file."
    return f"{_class(saved)}, {'not a GRU' if _RECURRENT.search(kind) else 'which wraps a recurrent layer'}."


def _class(saved: Any) -> str:
    kind = str(saved.get("class_name") if isinstance(saved, Mapping) else saved)[:80]
    return f"{'an' if kind.startswith(('LSTM', 'RNN')) else 'a'} {kind}"


def _snake_case(name: str) -> str:
    """`to_snake_case` of keras/src/utils/naming.py. For a registered class, "package>Name", it is that of Name."""
    name = re.sub(r"\W+", "", name.rpartition(">")[2])
    name = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub("([a-z])([A-Z])", r"\1_\2", name).lower()
