"""from_flax, to_linen, to_nnx and what is found of Flax's cells, against live Flax."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import random_params
from flax import linen, nnx, serialization
from flax.core import meta
from stock_cells import (
    H,
    I,
    L,
    N,
    assert_original_is,
    assert_same_function,
    cast,
    flat,
    own_cell,
    random_like,
    run_stock,
)

from gru_jax import GRUConfig
from gru_jax.weights.jax import flax


@functools.cache
def linen_init():
    return zeros_of(linen.GRUCell(H).init, jax.random.key(0), jnp.zeros((N, H)), jnp.zeros((N, I)))["params"]


def linen_tree(dtype="float32"):
    return cast(random_like(linen_init()), dtype)


def linen_step(tree, h, x):
    return linen.GRUCell(H).apply({"params": tree}, h, x)[0]


def linen_gradients(tree):
    join = lambda half, kind: jnp.concatenate([tree[f"{half}{gate}"][kind] for gate in "rzn"], -1)
    return {"kernel_ih": join("i", "kernel"), "kernel_hh": join("h", "kernel"), "bias_ih": join("i", "bias")}


@functools.cache
def nnx_init():
    return zeros_of(lambda: nnx.to_pure_dict(nnx.state(nnx.GRUCell(I, H, rngs=nnx.Rngs(0)))))


def nnx_tree(dtype="float32"):
    return cast(random_like(nnx_init()), dtype)


def live_nnx(tree):
    cell = nnx.eval_shape(lambda: nnx.GRUCell(I, H, rngs=nnx.Rngs(0)))  # no numbers, which would have to be compiled
    nnx.update(cell, tree)
    return cell


def nnx_step(tree, h, x):
    return live_nnx(tree)(h, x)[0]


def nnx_gradients(tree):
    dense_i, dense_h = tree["dense_i"], tree["dense_h"]
    return {"kernel_ih": dense_i["kernel"], "kernel_hh": dense_h["kernel"], "bias_ih": dense_i["bias"]}


TREES = {"linen": linen_tree, "nnx": nnx_tree}
RUNS = {
    "linen": functools.partial(run_stock, linen_step, linen_gradients),
    "nnx": functools.partial(run_stock, nnx_step, nnx_gradients),
}
EXPORTS = {"linen": flax.to_linen, "nnx": flax.to_nnx}
both_kinds = pytest.mark.parametrize("kind", ["linen", "nnx"])


def test_the_trees_have_the_shape_that_the_documentation_gives():
    shapes = lambda tree: jax.tree.map(np.shape, tree)
    assert shapes(linen_tree()) == {
        **{f"i{gate}": {"kernel": (I, H), "bias": (H,)} for gate in "rzn"},
        **{f"h{gate}": {"kernel": (H, H)} for gate in "rz"},
        "hn": {"kernel": (H, H), "bias": (H,)},
    }
    assert shapes(nnx_tree()) == {
        "dense_i": {"kernel": (I, 3 * H), "bias": (3 * H,)},
        "dense_h": {"kernel": (H, 3 * H)},
    }


@both_kinds
def test_a_stock_cell_computes_the_same_here(kind, dtype):
    tree = TREES[kind](dtype)
    config, params = flax.from_flax(tree)
    assert config == GRUConfig(I, H)
    assert {str(a.dtype) for a in jax.tree.leaves(params)} == {dtype}
    assert_same_function(dtype, config, params, functools.partial(RUNS[kind], tree))


@both_kinds
def test_the_original_of_a_found_cell_is_the_stock_cell(kind):
    tree = TREES[kind]()
    grus, refused = flax.find(flat({"params": {"rnn": {"cell": tree}}, "step": np.zeros(())}))
    assert (list(grus), refused) == (["params.rnn.cell."], {})
    found = grus["params.rnn.cell."]
    assert found.framework == f"flax.{kind}.GRUCell"
    assert set(found.names) == {f"params.rnn.cell.{name}" for name in flat(tree)}
    chex.assert_trees_all_equal((found.config, found.read()), flax.from_flax(tree))
    assert_original_is(found, functools.partial(RUNS[kind], tree))


@both_kinds
def test_a_cell_without_any_bias_is_one_of_zeros(kind, dtype):
    tree = TREES[kind](dtype)
    bare = {name: {"kernel": part["kernel"]} for name, part in tree.items()}
    zeros = {name: part | ({"bias": 0 * part["bias"]} if "bias" in part else {}) for name, part in tree.items()}

    def stock(*run):
        return {name: array for name, array in RUNS[kind](zeros, *run).items() if name != "d_l0/bias_ih"}

    config, params = flax.from_flax(bare)
    assert config == GRUConfig(I, H, bias=False)
    assert_same_function(dtype, config, params, stock)
    assert_original_is(flax.find(flat(bare))[0][""], stock)


@pytest.mark.parametrize("half", ["float16", "bfloat16"])
@both_kinds
def test_half_precision_keeps_its_dtype_and_its_original_runs_on_the_widened_numbers(kind, half):
    tree = TREES[kind](jnp.dtype(half))
    found = flax.find(flat(tree))[0][""]
    assert {str(a.dtype) for a in jax.tree.leaves(found.read())} == {half}
    assert_original_is(found, functools.partial(RUNS[kind], tree))


def test_a_live_nnx_cell_and_its_state_import_as_their_dict_does_and_are_not_aliased():
    tree = nnx_tree()
    cell = live_nnx(jax.tree.map(jnp.asarray, tree))
    imports = [flax.from_flax(source) for source in (cell, nnx.state(cell), nnx.state(cell, nnx.Param), tree)]
    before = jax.tree.map(np.array, imports[0][1])
    tree["dense_i"]["kernel"] += 1
    for config, params in imports:
        assert config == GRUConfig(I, H)
        chex.assert_trees_all_equal(params, before)


def test_boxed_parameters_are_unboxed():
    tree = jax.tree.map(lambda a: meta.Partitioned(a, (None,) * a.ndim), linen_tree())
    chex.assert_trees_all_equal(flax.from_flax(tree), flax.from_flax(linen_tree()))


def test_the_attribute_that_writers_of_pytrees_add_is_no_part_of_a_name():
    tree = nnx_tree()
    boxed = {name: {key: {"value": a} for key, a in part.items()} for name, part in tree.items()}
    found = flax.find(flat({"rnn": boxed}))[0]["rnn."]
    assert set(found.names) == {f"rnn.{name}" for name in flat(boxed)}
    chex.assert_trees_all_equal(found.read(), flax.from_flax(tree)[1])


def zeros_of(make, *args):
    """Zeros in place of what make(*args) would compute."""
    return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), jax.eval_shape(make, *args))


CELLS = [
    (linen.LSTMCell(H), "an LSTM"),
    (linen.OptimizedLSTMCell(H), "an LSTM"),
    (linen.MGUCell(H), "a minimal gated unit"),
    (linen.MGUCell(H, reset_gate=False), "a minimal gated unit"),
    (linen.SimpleCell(H), "a plain RNN"),
    (linen.ConvLSTMCell(H, (3,)), "a convolutional LSTM"),
    (nnx.LSTMCell, "an LSTM"),
    (nnx.OptimizedLSTMCell, "an LSTM"),
    (nnx.SimpleCell, "a plain RNN"),
]


@pytest.mark.parametrize("input_size", [I, H, 3 * H])
@pytest.mark.parametrize(
    ("cell", "kind"), CELLS, ids=[getattr(cell, "__name__", type(cell).__name__) for cell, _ in CELLS]
)
def test_other_cells_are_refused_by_name(cell, kind, input_size):
    if isinstance(cell, type):
        live = nnx.eval_shape(lambda: cell(input_size, H, rngs=nnx.Rngs(0)))
        with pytest.raises(TypeError, match=f"from_flax: expected a flax.nnx.GRUCell, got .*{cell.__name__}"):
            flax.from_flax(live)
        tree = zeros_of(lambda: nnx.to_pure_dict(nnx.state(live, nnx.Param)))
    else:
        x = jnp.zeros((N, 6, input_size) if isinstance(cell, linen.ConvLSTMCell) else (N, input_size))
        tree = zeros_of(cell.init, jax.random.key(0), cell.initialize_carry(jax.random.key(0), x.shape), x)["params"]
    grus, refused = flax.find(flat({"cell": tree}))
    assert (grus, list(refused)) == ({}, ["cell."])
    assert refused["cell."].startswith(f"{kind}, not a GRU")
    with pytest.raises(ValueError, match=f"from_flax: expected the parameters of one GRU cell, got: {kind}"):
        flax.from_flax(tree)


class Model(linen.Module):
    """A whole model: two GRU cells, an LSTM and a Dense."""

    @linen.compact
    def __call__(self, x):
        """[N, L, I] -> [N, L, H]."""
        x = linen.Dense(I)(x)
        x = linen.Bidirectional(linen.RNN(linen.GRUCell(H)), linen.RNN(linen.GRUCell(H)))(x)
        return linen.RNN(linen.OptimizedLSTMCell(H))(x)


def test_every_cell_of_a_whole_model_is_found_and_the_rest_left_alone():
    variables = zeros_of(Model().init, jax.random.key(0), jnp.zeros((2, L, I)))
    grus, refused = flax.find(flat({**variables, "other": {"ir": {"kernel": np.zeros((2, 2))}}}))
    assert (len(grus), len(refused)) == (2, 1)
    for prefix, found in grus.items():
        tree = functools.reduce(lambda node, name: node[name], prefix[:-1].split("."), variables)
        chex.assert_trees_all_equal((found.config, found.read()), flax.from_flax(tree))
    with pytest.raises(ValueError, match=r"It holds them at 'params\..*, 'params\..*: pass that part"):
        flax.from_flax(variables)


def test_a_refusal_lists_a_few_problems_only():
    others = {f"other{i}": {"scale": np.ones(3)} for i in range(100)}
    assert "unexpected: other15.scale [3]; and 92 more." in flax.find(flat(linen_tree() | others))[1][""]


def test_a_stacked_cell_is_refused():
    tree = jax.tree.map(lambda a: np.stack([a, a]), linen_tree())
    grus, refused = flax.find(flat(tree))
    assert not grus
    assert "expected ir.kernel to be a matrix, got shape [2, 5, 4]" in refused[""]


ONES = functools.partial(np.ones, dtype=np.float32)


@pytest.mark.parametrize(
    ("make", "name", "array", "reason"),
    [
        (linen_tree, "iz.bias", None, "missing: iz.bias [4]."),
        (linen_tree, "hn.bias", None, "missing: hn.bias [4]."),
        (linen_tree, "in.kernel", None, "missing: in.kernel [5, 4]."),
        (linen_tree, "hr.kernel", None, "missing: hr.kernel [4, 4]."),
        (linen_tree, "hr.bias", ONES(4), "unexpected: hr.bias [4]."),
        (linen_tree, "norm.scale", ONES(4), "unexpected: norm.scale [4]."),
        (linen_tree, "hn.kernel", ONES((4, 5)), "wrong shape: hn.kernel, expected [4, 4], got [4, 5]."),
        (linen_tree, "iz.kernel", ONES((2, 5, 4)), "expected iz.kernel to be a matrix, got shape [2, 5, 4]."),
        (linen_tree, "in.bias", np.ones(4, np.float16), "cell.in.bias float16"),
        (linen_tree, "in.bias", np.ones(4, np.int8), "expected cell.in.bias of dtype float16, bfloat16, float32"),
        (nnx_tree, "dense_h.bias", ONES(12), "unexpected: dense_h.bias [12]."),
        (nnx_tree, "dense_i.bias", ONES(4), "wrong shape: dense_i.bias, expected [12], got [4]."),
        (nnx_tree, "dense_h.kernel", ONES((4, 9)), "wrong shape: dense_h.kernel, expected [4, 12], got [4, 9]."),
        (nnx_tree, "dense_h.kernel", ONES((4, 8)), "wrong shape: dense_h.kernel, expected [4, 12], got [4, 8]."),
        (nnx_tree, "dense_h.kernel", ONES(4), "expected dense_h.kernel to be a matrix, got shape [4]."),
        (nnx_tree, "dense_i.kernel", ONES((0, 12)), "expected input_size to be at least 1, got 0."),
    ],
)
def test_a_cell_that_does_not_fit_exactly_is_refused_in_one_line(make, name, array, reason):
    tensors = {key: tensor for key, tensor in flat(make()).items() if key != name}
    tensors |= {} if array is None else flat({name: array})
    grus, refused = flax.find({f"cell.{key}": tensor for key, tensor in tensors.items()})
    assert (grus, list(refused)) == ({}, ["cell."])
    assert reason in refused["cell."]
    assert "\n" not in refused["cell."]


def test_what_is_no_tree_of_one_cell_is_answered_with_what_to_do():
    for wrong in (3, None, [1], jnp.ones(3), linen.GRUCell(H)):
        with pytest.raises(TypeError, match="from_flax: expected a dict of arrays, a flax.nnx.GRUCell or its state"):
            flax.from_flax(wrong)
    with pytest.raises(TypeError, match="from_flax: expected ir.kernel to be a JAX or NumPy array, got list"):
        flax.from_flax({"ir": {"kernel": [1.0]}})
    with pytest.raises(ValueError, match=r"It holds them at 'params\.'"):
        flax.from_flax({"params": linen_tree()})
    with pytest.raises(ValueError, match="at the top of the tree. It holds none inside"):
        flax.from_flax({"Dense_0": {"kernel": jnp.ones((3, 4))}})
    endless = {}
    endless["a"] = endless
    with pytest.raises(ValueError, match="from_flax: .*a tree without end"):
        flax.from_flax(endless)
    relu = nnx.eval_shape(lambda: nnx.GRUCell(I, H, activation_fn=nnx.relu, rngs=nnx.Rngs(0)))
    with pytest.raises(TypeError, match="with sigmoid and tanh, got other activations"):
        flax.from_flax(relu)


@pytest.mark.parametrize("bias", [True, False])
@both_kinds
def test_a_cell_of_ours_computes_the_same_in_a_stock_cell(kind, bias, dtype):
    cell = own_cell(dtype, bias)
    if bias:
        # Sums of these biases are exact, so that folding them changes no number in float32 either.
        cell |= {name: np.round(cell[name] * 256) / 256 for name in ("bias_ih", "bias_hh")}
    if bias and kind == "nnx":
        cell["bias_hh"][2 * H :] = 0
    tree = EXPORTS[kind](cell)
    assert {str(a.dtype) for a in jax.tree.leaves(tree)} == {dtype}

    def stock(*run):
        return {n: a for n, a in RUNS[kind](tree, *run).items() if n.removeprefix("d_l0/") in cell or "/" not in n}

    params = {"l0": jax.tree.map(jnp.asarray, cell)}
    assert_same_function(dtype, GRUConfig(I, H, bias=bias), params, stock)


def test_biases_are_added_in_float64_and_rounded_once():
    cell = own_cell("float32")
    cell["bias_hh"][2 * H :] = 0
    exact = np.float64(cell["bias_ih"]) + np.float64(cell["bias_hh"])
    for tree in (flax.to_linen(cell), flax.to_nnx(cell)):
        _, params = flax.from_flax(tree)
        np.testing.assert_array_equal(params["l0"]["bias_ih"], exact.astype(np.float32))
        np.testing.assert_array_equal(params["l0"]["kernel_ih"], cell["kernel_ih"])
        assert not np.any(params["l0"]["bias_hh"])


@both_kinds
def test_what_comes_from_a_stock_cell_goes_back_bit_for_bit(kind):
    tree = TREES[kind]()
    chex.assert_trees_all_equal(EXPORTS[kind](flax.from_flax(tree)[1]["l0"]), tree)


def test_nnx_has_no_bias_of_the_new_gate_inside_the_reset():
    with pytest.raises(ValueError, match="to_nnx: expected b_hn, the last third of bias_hh, to be zero"):
        flax.to_nnx(own_cell("float32"))


@both_kinds
def test_what_a_stock_cell_can_not_compute_is_refused(kind):
    to_stock, cell = EXPORTS[kind], own_cell("float32")
    with pytest.raises(ValueError, match=f"expected a GRU with reset_after=True, as flax.{kind}.GRUCell has it"):
        to_stock(cell, reset_after=False)
    with pytest.raises(ValueError, match=rf"to_{kind}: (?s:.*)missing: bias_hh"):
        to_stock({name: a for name, a in cell.items() if name != "bias_hh"})
    with pytest.raises(TypeError, match=f"to_{kind}: expected params/l0 to be a floating array, got dict"):
        to_stock({"l0": cell})
    large = {name: np.full(a.shape, 4e4 if name.startswith("bias") else 0, np.float16) for name, a in cell.items()}
    large["bias_hh"][2 * H :] = 0
    with pytest.raises(ValueError, match=rf"to_{kind}: bias_ih \+ bias_hh overflows float16"):
        to_stock(large)


@both_kinds
def test_a_saved_file_holds_a_stock_cell_for_each_of_ours(kind, tmp_path):
    save = {"linen": flax.save_linen, "nnx": flax.save_nnx}[kind]
    config = GRUConfig(I, H, num_layers=2, bidirectional=True)
    params = random_params(config)
    if kind == "nnx":
        for cell in params.values():
            cell["bias_hh"] = jnp.asarray(np.where(np.arange(3 * H) < 2 * H, cell["bias_hh"], 0))
    save(tmp_path / "cells.msgpack", config, params)
    tree = serialization.msgpack_restore((tmp_path / "cells.msgpack").read_bytes())
    chex.assert_trees_all_equal(tree, {name: EXPORTS[kind](cell) for name, cell in params.items()})
    grus, refused = flax.find(flat(tree))
    assert (set(grus), refused) == ({f"{name}." for name in params}, {})
    with pytest.raises(ValueError, match="got reset_after=False"):
        save(tmp_path / "other.msgpack", GRUConfig(I, H, reset_after=False), {"l0": params["l0"]})
    assert not (tmp_path / "other.msgpack").exists()
