"""from_keras and open_keras against live Keras, on its JAX backend."""

import csv
import functools
import os
import warnings

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from published import packaged_file

from gru_jax import GRUConfig, gru
from gru_jax.verify import FEW_ULP, compare, judge, typical
from gru_jax.weights import reference
from gru_jax.weights.keras.importer import from_keras, open_keras

os.environ.setdefault("KERAS_BACKEND", "jax")
import keras
from keras.layers import GRU, LSTM, RNN, Bidirectional, Dense, GRUCell, Input

# Of a published model that was saved by an older Keras.
pytestmark = pytest.mark.filterwarnings("ignore:(?s).*The structure of `inputs` doesn't match:UserWarning")

STEPS, BATCH, FEATURES, UNITS = 6, 2, 3, 4
LAYERS = {
    "gru": lambda **o: GRU(UNITS, **o),
    "reset_before": lambda **o: GRU(UNITS, reset_after=False, **o),
    "no_bias": lambda **o: GRU(UNITS, use_bias=False, **o),
    "no_bias_reset_before": lambda **o: GRU(UNITS, use_bias=False, reset_after=False, **o),
    "backwards": lambda **o: GRU(UNITS, go_backwards=True, **o),
    "bidirectional": lambda name, **o: Bidirectional(GRU(UNITS, **o), name=name),
    "bidirectional_reset_before": lambda name, **o: Bidirectional(GRU(UNITS, reset_after=False, **o), name=name),
    "rnn": lambda **o: RNN(GRUCell(UNITS), **o),
}
PUBLISHED = [
    *("2026_03_24_18_43_0.1902", "2026_03_25_02_25_10_0.1754_gru_16_bs_128_k_20_f_16_p_3", "2026_03_26_14_20_0.1567"),
    *("2026_03_26_14_29_0.0379_best", "2026_03_26_15_45_0.0212_best", "2026_03_26_21_41_0.0552"),
    *("2026_03_26_21_56_0.0534", "2026_03_26_22_21_0.0598-try", "2026_03_26_22_45_0.0558", "2026_03_26_22_54_0.0713"),
    *("2026_04_21_16_58_0.0713", "2026_04_21_17_02_0.0713", "BEST_0.1753_gru_32_bs_128_k_20_f_16_p_5"),
]


def randomize(model, seed=0):
    """Gives a layer or model random weights, biases too: Keras begins with biases of zero."""
    rng = np.random.default_rng(seed)
    model.set_weights([rng.uniform(-0.7, 0.7, w.shape).astype(w.dtype) for w in model.get_weights()])
    return model


def inputs_for(config, seed=0):
    """x, h_0, d_output and d_h_n of a found GRU, time-major."""
    rng = np.random.default_rng(seed)
    states = (config.num_directions, BATCH, config.hidden_size)
    shapes = (STEPS, BATCH, config.input_size), states, (STEPS, BATCH, config.num_directions * UNITS), states
    return [rng.standard_normal(shape, np.float32) for shape in shapes]


def one_layer(name, **options):
    """A layer of LAYERS alone in a model, under the name "l"."""
    return randomize(
        keras.Sequential([Input((None, FEATURES)), LAYERS[name](name="l", return_sequences=True, **options)])
    )


def save(model, path):
    """Saves a model; Keras warns that HDF5 is of yesterday."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save(path)
    return path


@pytest.fixture(scope="module")
def found_in_file(tmp_path_factory):
    """Name of LAYERS -> what is found in a file of it. It is the same for all tests, which then share its programs."""
    folder = tmp_path_factory.mktemp("layers")
    return functools.cache(lambda name: open_keras(save(one_layer(name), folder / f"{name}.keras")).grus["l"])


def ours(found, x, h_0):
    """The output and h_n of gru, time-major, in the dtype of x."""
    flip = (lambda a: a[::-1]) if found.backwards else (lambda a: a)
    params = jax.tree.map(lambda a: jnp.asarray(a, x.dtype), found.read())
    output, h_n = gru(params, flip(x), h_0, reset_after=found.config.reset_after, precision="highest")
    return {"output": np.asarray(flip(output)), "h_n": np.asarray(h_n)}


def in_numpy(found, x, h_0):
    """The output and h_n of a found GRU in float64, by the NumPy GRU."""
    cells = {}
    for cell, arrays in found.read().items():
        split = {key: np.stack(np.split(np.asarray(array, np.float64), 3, -1)) for key, array in arrays.items()}
        weights = {"W": split["kernel_ih"].swapaxes(1, 2), "R": split["kernel_hh"].swapaxes(1, 2)}
        cells[cell] = weights | {"b_W": split["bias_ih"], "b_R": split["bias_hh"]}
    wide = (array.astype(np.float64) for array in (x, h_0))
    return reference.run(cells, *wide, reset_after=found.config.reset_after, backwards=found.backwards)


def whole_model():
    """Functional: two GRUs in parallel, one in a nested model twice deep, and layers that are none."""
    x = Input((None, FEATURES))
    a, b = (GRU(UNITS, return_sequences=True, name=name)(x) for name in ("left", "right"))
    inner = keras.Sequential([Input((None, 2 * UNITS)), Bidirectional(GRU(UNITS, return_sequences=True), name="deep")])
    middle = keras.Sequential([Input((None, 2 * UNITS)), inner, LSTM(UNITS, name="lstm")], name="middle")
    joined = middle(keras.layers.Concatenate()([a, b]))
    return randomize(keras.Model(x, Dense(1, name="dense")(joined)))


@pytest.mark.parametrize("name", LAYERS)
def test_every_layer_comes_out_of_its_file_of_either_kind_as_keras_computes_it(tmp_path, name):
    model = one_layer(name)
    config = GRUConfig(
        *(FEATURES, UNITS),
        bias="no_bias" not in name,
        batch_first=True,
        bidirectional="bidirectional" in name,
        reset_after="before" not in name,
    )
    both = []
    for suffix in (".keras", ".h5"):
        contents = open_keras(save(model, tmp_path / f"model{suffix}"))
        assert (list(contents.grus), contents.refused) == (["l"], {})
        assert contents.grus["l"].config == config
        assert contents.grus["l"].backwards == (name == "backwards")
        both.append(contents.grus["l"])
    found, of_hdf5 = both
    chex.assert_trees_all_equal(found.read(), of_hdf5.read())
    x, h_0, *_ = inputs_for(config)
    # The very layer of the model, in float32.
    layer = model.layers[0]
    for part in (layer, *(getattr(layer, side, None) for side in ("forward_layer", "backward_layer"))):
        if part is not None:
            part.return_state = True
    output, *h_n = layer(x.swapaxes(0, 1), initial_state=[jnp.asarray(h) for h in h_0])
    output = np.flip(output, 1) if found.backwards else np.asarray(output)
    live = {"output": output.swapaxes(0, 1), "h_n": np.stack(h_n)}
    result = ours(found, x, h_0)
    for key, array in live.items():
        assert np.abs(result[key] - array).max() < FEW_ULP * np.finfo(np.float32).eps, key


@pytest.mark.parametrize("name", ["reset_before", "bidirectional", pytest.param("backwards", marks=pytest.mark.slow)])
def test_outputs_and_gradients_are_those_of_keras_in_both_dtypes(name, found_in_file):
    found = found_in_file(name)
    comparison = compare(found, inputs_for(found.config)[0])
    assert comparison.passed, comparison.verdicts
    wanted = {"output", "h_n", "d_x", "d_h_0"} | {f"d_{cell}/{key}" for cell, a in found.read().items() for key in a}
    for verdicts in comparison.verdicts.values():
        assert {verdict.name for verdict in verdicts} == wanted


@pytest.mark.parametrize("name", ["reset_before", "bidirectional", "backwards"])
def test_the_original_in_float64_is_float64_throughout(name, found_in_file):
    # Of itself Keras computes parts of a float64 layer in float32; the NumPy GRU shows that it doesn't here.
    found = found_in_file(name)
    inputs = [array.astype(np.float64) for array in inputs_for(found.config)]
    original, expected = found.original("float64", *inputs), in_numpy(found, *inputs[:2])
    for key in ("output", "h_n"):
        assert original[key].dtype == np.float64
        assert np.abs(original[key] - expected[key]).max() < 1e-14
    assert keras.backend.result_type("float64", float) == "float32"  # and Keras is left as it was


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A whole model, and suffix -> the path of its file."""
    model, folder = whole_model(), tmp_path_factory.mktemp("whole")
    return model, {suffix: save(model, folder / f"model{suffix}") for suffix in (".keras", ".h5")}


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_a_whole_model_gives_each_gru_its_own_weights_and_refuses_the_lstm(whole, suffix):
    model, path = whole[0], whole[1][suffix]
    contents = open_keras(path)
    middle = model.get_layer("middle")
    inner = middle.layers[0]
    layers = {"left": model.get_layer("left"), "right": model.get_layer("right")}
    layers[f"middle/{inner.name}/deep"] = inner.get_layer("deep")
    assert contents.grus.keys() == layers.keys()
    assert contents.refused == {"middle/lstm": "an LSTM, not a GRU."}
    assert contents.others["dense"] == "Dense"
    for name, layer in layers.items():
        config, params = from_keras(path, name)
        assert config == contents.grus[name].config
        jax.tree.map(np.testing.assert_array_equal, params, from_keras(layer)[1])


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.filterwarnings("ignore:from_keras. It reads x from the end")
def test_a_live_layer_gives_what_its_file_gives(name, tmp_path):
    model = one_layer(name)
    live, filed = from_keras(model.layers[0]), from_keras(save(model, tmp_path / "model.keras"))
    assert live[0] == filed[0]
    jax.tree.map(np.testing.assert_array_equal, live[1], filed[1])


def test_a_live_cell_is_a_gru_of_one_layer():
    cell = GRUCell(UNITS)
    cell.build((None, FEATURES))
    randomize(cell)
    config, params = from_keras(cell)
    x, h_0, *_ = inputs_for(config)
    _, h_n = gru(params, x[:1], h_0)
    np.testing.assert_allclose(h_n[0], cell(x[0], [jnp.asarray(h_0[0])])[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "path",
    [
        PUBLISHED[0],
        *(pytest.param(path, marks=pytest.mark.slow) for path in PUBLISHED[6::6]),
        *(pytest.param(path, marks=pytest.mark.grid) for path in PUBLISHED if path not in PUBLISHED[::6]),
    ],
)
def test_published_models_give_kerass_numbers_on_their_own_data(path):
    file = packaged_file("ao-compensation-model", f"ao_compensation_model/model/{path}/gru_model.keras")
    model = keras.saving.load_model(file, compile=False, safe_mode=True)
    data = packaged_file("ao-compensation-model", "ao_compensation_model/dataset/test/test.csv")
    with data.open(encoding="utf-8") as rows:
        table = np.array([[row["Hip_x"], row["Hip_vel"]] for row in csv.DictReader(rows, delimiter=";")], np.float32)
    # The published scaler is a pickle; this is what it was fitted to do.
    low, middle, high = np.percentile(table, [25, 50, 75], axis=0)
    steps = model.input_shape[1]
    windows = ((table - middle) / (high - low))[: 9 * steps].reshape(9, steps, 2).astype(np.float32)
    before = keras.Model(model.inputs, model.get_layer("gru").input)
    x = np.asarray(before(windows)).swapaxes(0, 1)

    contents = open_keras(file)
    assert list(contents.grus) == ["gru"]
    assert "Conv1D" in contents.others.values()
    found = contents.grus["gru"]
    h_0 = np.zeros((1, x.shape[1], found.config.hidden_size), np.float32)
    exact, result = in_numpy(found, x, h_0), ours(found, x, h_0)
    layer = model.get_layer("gru")
    layer.return_sequences = layer.return_state = True
    output, h_n = layer(x.swapaxes(0, 1))
    theirs = {"output": np.swapaxes(output, 0, 1), "h_n": np.stack([h_n])}
    for key in theirs:
        one_each = (np.moveaxis(array[key], 1, 0) for array in (result, theirs, exact))
        assert typical([judge(key, *arrays) for arrays in zip(*one_each, strict=True)]).passed
    if path == PUBLISHED[-1]:
        comparison = compare(found, x)  # with gradients, and in float64
        assert comparison.passed, comparison.verdicts


# Keras doesn't write bfloat16 to .h5 so that it can be told.
@pytest.mark.parametrize(("dtype", "suffix"), [("float16", ".keras"), ("float16", ".h5"), ("bfloat16", ".keras")])
def test_half_precision_keeps_its_dtype(tmp_path, dtype, suffix):
    _, params = from_keras(save(one_layer("gru", dtype=dtype), tmp_path / f"model{suffix}"))
    assert {str(a.dtype) for a in jax.tree.leaves(params)} == {dtype}


@pytest.mark.parametrize(
    ("options", "note"),
    [
        ({"go_backwards": True}, "reads x from the end"),
        ({"stateful": True}, "It is stateful"),
        ({"dropout": 0.25}, "dropout=0.25 acts inside its cell"),
        ({"recurrent_dropout": 0.5}, "recurrent_dropout=0.5 acts inside its cell"),
        ({"zero_output_for_mask": True}, "Its output is zero where a step is masked"),
        ({"dtype": "mixed_float16"}, "Its dtype policy is 'mixed_float16'"),
    ],
)
def test_what_is_to_be_done_besides_gru_is_said(options, note):
    layer = GRU(UNITS, **options)
    layer.build((BATCH, None, FEATURES))
    with pytest.warns(UserWarning, match=f"from_keras: .*{note}"):
        from_keras(layer)


def test_two_outputs_and_masks_are_said(tmp_path):
    two = Bidirectional(GRU(UNITS, return_sequences=True), merge_mode=None)
    two.build((None, None, FEATURES))
    with pytest.warns(UserWarning, match="two directions as two outputs"):
        from_keras(two)
    model = keras.Sequential([Input((None, FEATURES)), keras.layers.Masking(name="mask"), GRU(UNITS, name="l")])
    with pytest.warns(UserWarning, match="mask masks time steps: give seq_lengths"):
        from_keras(save(model, tmp_path / "model.keras"))


class Doubled(GRU):
    """A custom subclass, whose code is in no file."""

    def call(self, sequences, initial_state=None, mask=None, training=False):
        """Twice what GRU gives."""
        return 2 * super().call(sequences, initial_state, mask, training)


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (lambda: LSTM(UNITS), "an LSTM, not a GRU"),
        (lambda: keras.layers.SimpleRNN(UNITS), "a SimpleRNN, not a GRU"),
        (lambda: Bidirectional(LSTM(UNITS)), "a Bidirectional of an LSTM"),
        (lambda: RNN(keras.layers.LSTMCell(UNITS)), "an RNN of an LSTMCell"),
        (lambda: RNN([GRUCell(UNITS), GRUCell(UNITS)]), "an RNN of a StackedRNNCells"),
        (lambda: GRU(UNITS, activation="relu"), "activation 'relu'"),
        (lambda: GRU(UNITS, recurrent_activation="hard_sigmoid"), "recurrent_activation 'hard_sigmoid'"),
        (lambda: Bidirectional(GRU(UNITS), merge_mode="sum"), "merge_mode 'sum'"),
        (
            lambda: Bidirectional(GRU(UNITS), backward_layer=GRU(UNITS, reset_after=False, go_backwards=True)),
            "whose backward_layer is not its layer turned round",
        ),
        (
            lambda: Bidirectional(GRU(UNITS), backward_layer=GRU(UNITS, activation="relu", go_backwards=True)),
            "activation 'relu'",
        ),
        (lambda: Doubled(UNITS), "a Doubled, a class of somebody's own"),
        (lambda: keras.layers.TimeDistributed(GRU(UNITS)), "a TimeDistributed, which wraps a recurrent layer"),
    ],
)
def test_what_gru_does_not_compute_is_refused_by_name(tmp_path, layer, reason):
    layer = layer()
    shape = (None, None, FEATURES) if "Time" in reason else (None, FEATURES)
    model = keras.Sequential([Input(shape), layer])
    path = save(model, tmp_path / "model.keras")
    contents = open_keras(path)
    assert not contents.grus
    assert reason in contents.refused[layer.name]
    with pytest.raises(ValueError, match=f"no GRU in this file.*{reason}"):
        from_keras(path)
    with pytest.raises(ValueError, match=f"{layer.name}: .*{reason}"):
        from_keras(path, layer.name)


def test_live_layers_that_are_none_are_refused():
    for source, kind in ((Doubled(UNITS), "Doubled"), (GRU, "type"), (3, "int"), (np.zeros(3), "ndarray")):
        with pytest.raises(TypeError, match=f"expected a path or one of Keras's own recurrent layers, got .*{kind}"):
            from_keras(source)
    with pytest.raises(ValueError, match="expected a GRU, got an LSTM, not a GRU"):
        from_keras(LSTM(UNITS))
    with pytest.raises(ValueError, match="a layer with 0 weights: it has to be built"):
        from_keras(GRU(UNITS))


def test_names_are_asked_for_and_the_nearest_given(whole):
    path = whole[1][".keras"]
    with pytest.raises(ValueError, match=f"^from_keras: {path}: it holds 3 GRUs: name one, 'left', 'right', "):
        from_keras(path)
    with pytest.raises(ValueError, match=f"^from_keras: {path}: no GRU named 'rigth'. The nearest: 'right'"):
        from_keras(path, "rigth")


def test_another_backend_is_refused_for_the_original(found_in_file, monkeypatch):
    found = found_in_file("gru")
    monkeypatch.setattr(keras.backend, "backend", lambda: "torch")
    with pytest.raises(ValueError, match="Keras runs on torch here; set KERAS_BACKEND=jax"):
        found.original("float32", *inputs_for(found.config))
