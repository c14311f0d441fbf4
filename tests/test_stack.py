"""gru and stacked_step against live PyTorch."""

import functools
import itertools
import random

import chex
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from conftest import (
    HIGHEST,
    Case,
    assert_exact,
    compare,
    random_inputs,
    random_params,
    record_verdicts,
    run_torch,
    torch_gru,
)

from gru_jax import (
    GRUConfig,
    from_torch,
    gru,
    gru_step,
    pack_padded_sequence,
    pad_packed_sequence,
    stacked_step,
)
from gru_jax.verify import judge

# What tests have in common is compiled once: a call outside jit compiles for each config and each shape.
PARAMS, TWO_LAYERS, BOTH = map(
    random_params, (GRUConfig(5, 4), GRUConfig(5, 4, num_layers=2), GRUConfig(5, 4, bidirectional=True))
)
X = jnp.asarray(np.random.default_rng(1).standard_normal((3, 2, 5), np.float32))

SIZES = [(5, 3, 10, 20), (112, 32, 8, 50), (1000, 8, 96, 96), (7, 3, 5, 1), (7, 1, 5, 4), (1, 3, 5, 4), (1, 1, 1, 1)]
FLAGS = (True, False)
GRID = [
    Case(*values)
    for values in itertools.product(SIZES, (1, 2, 3), FLAGS, FLAGS, FLAGS, FLAGS, ("dense", "lengths", "packed"))
]
# Each option at least once, and each strategy: hoisted (1000 x 8), recomputed (64 rows), in blocks (1000 x 16), stored.
QUICK = [
    Case((1000, 8, 96, 96), lengths="lengths"),
    Case((1000, 16, 8, 64)),
    Case((112, 64, 8, 50), bias=False, lengths="lengths"),
    Case((112, 32, 8, 50), batch_first=True, lengths="packed", h_0=False),
    Case((5, 3, 10, 20), layers=2, bias=False, bidirectional=True, batch_first=True, h_0=False, lengths="lengths"),
    Case((7, 3, 5, 1), layers=3, bidirectional=True, lengths="packed"),
    Case((7, 1, 5, 4), layers=2, batch_first=True),
    Case((1, 3, 5, 4), bidirectional=True, batch_first=True, lengths="lengths", h_0=False),
    Case((1, 1, 1, 1), bias=False),
]
SLOW = [
    Case((1000, 8, 96, 96), lengths="lengths", bidirectional=True),
    Case((112, 32, 8, 50), layers=3, batch_first=True, lengths="packed", h_0=False),
    Case((5, 3, 10, 20), layers=2, bidirectional=True),
    Case((1000, 8, 96, 96)),
    Case((112, 32, 8, 50), layers=3, bidirectional=True),
    Case((5, 3, 10, 20), layers=2),
    Case((5, 3, 10, 20), layers=2, bias=False, bidirectional=True, h_0=False),
    Case((112, 64, 8, 50), layers=2, bidirectional=True),
    *random.Random(0).sample([case for case in GRID if case.size[0] < 100], 36),
]
REST = [case for case in GRID if case not in QUICK + SLOW]


@pytest.mark.parametrize(
    "case",
    [
        *QUICK,
        *(pytest.param(case, marks=pytest.mark.slow) for case in SLOW if case not in QUICK),
        *(pytest.param(case, marks=pytest.mark.grid) for case in REST),
    ],
    ids=str,
)
def test_outputs_states_and_all_gradients_are_pytorchs(case, dtype, record_property):
    verdicts = compare(case, dtype)
    record_verdicts(record_property, dtype, verdicts)
    assert_exact(verdicts)


def test_a_recomputing_gradient_is_pytorchs_too(dtype):
    assert_exact(compare(Case((17, 3, 5, 6), lengths="lengths"), dtype, remat=3))


@pytest.mark.slow
@pytest.mark.parametrize("remat", [True, 1, 3, 5, 100])
@pytest.mark.parametrize("lengths", ["dense", "lengths"])
def test_a_recomputing_gradient_of_a_stack_is_pytorchs_too(remat, lengths, dtype):
    assert_exact(compare(Case((17, 3, 5, 6), layers=2, bidirectional=True, lengths=lengths), dtype, remat=remat))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_as_close_to_float64_as_pytorchs(dtype):
    case = Case((20, 4, 8, 16), layers=2, bidirectional=True)
    module, inputs = torch_gru(case), random_inputs(case)
    module = module.to(getattr(torch, dtype))
    half = {name: torch.tensor(inputs[name]).to(getattr(torch, dtype)) for name in ("x", "h_0")}
    original = [a.detach().double().numpy() for a in module(half["x"], half["h_0"])]
    _, params = from_torch(module)
    reference = [a.detach().numpy() for a in module.double()(half["x"].double(), half["h_0"].double())]
    ours = gru(params, jnp.asarray(half["x"].float().numpy(), dtype), jnp.asarray(half["h_0"].float().numpy(), dtype))
    assert {a.dtype.name for a in ours} == {dtype}
    assert_exact([judge(n, *trio) for n, *trio in zip(("output", "h_n"), ours, original, reference, strict=True)])


def test_unbatched_input_is_pytorchs(dtype):
    case = Case((6, 1, 5, 4), layers=2, bidirectional=True)
    module, inputs = torch_gru(case), random_inputs(case)
    x, h_0 = inputs["x"][:, 0], inputs["h_0"][:, 0]
    run = lambda dtype: [
        a.detach().numpy().copy()
        for a in module.to(dtype)(torch.tensor(x, dtype=dtype), torch.tensor(h_0, dtype=dtype))
    ]
    _, params = from_torch({k: v.numpy().astype(dtype) for k, v in module.state_dict().items()})
    original, reference = run(getattr(torch, dtype)), run(torch.float64)
    for batch_first in FLAGS:
        ours = gru(params, x.astype(dtype), h_0.astype(dtype), batch_first=batch_first, precision=HIGHEST)
        assert_exact([judge(n, *trio) for n, *trio in zip(("output", "h_n"), ours, original, reference, strict=True)])


def test_the_last_output_is_h_n_for_one_direction():
    output, h_n = map(np.asarray, gru(TWO_LAYERS, X))
    chex.assert_trees_all_equal(output[-1], h_n[-1])


def test_h_n_is_the_forward_half_of_the_last_output_and_the_reverse_half_of_the_first():
    params = random_params(GRUConfig(5, 4, num_layers=2, bidirectional=True))
    output, h_n = map(np.asarray, gru(params, X))
    forward, reverse = h_n.reshape(2, 2, 2, 4)[-1]
    chex.assert_trees_all_equal(output[-1, :, :4], forward)
    chex.assert_trees_all_equal(output[0, :, 4:], reverse)


def test_the_twelve_matrices_and_vectors_computed_by_hand_in_numpy_give_the_layers_output(x64):
    module = torch.nn.GRU(5, 4).double()
    tensors = {name: tensor.detach().numpy() for name, tensor in module.state_dict().items()}
    w_ir, w_iz, w_in = np.split(tensors["weight_ih_l0"], 3)
    w_hr, w_hz, w_hn = np.split(tensors["weight_hh_l0"], 3)
    b_ir, b_iz, b_in = np.split(tensors["bias_ih_l0"], 3)
    b_hr, b_hz, b_hn = np.split(tensors["bias_hh_l0"], 3)
    x = np.random.default_rng(0).standard_normal((6, 2, 5))
    h, by_hand = np.zeros((2, 4)), []
    for x_t in x:
        r = 1 / (1 + np.exp(-(x_t @ w_ir.T + b_ir + h @ w_hr.T + b_hr)))
        z = 1 / (1 + np.exp(-(x_t @ w_iz.T + b_iz + h @ w_hz.T + b_hz)))
        n = np.tanh(x_t @ w_in.T + b_in + r * (h @ w_hn.T + b_hn))
        h = (1 - z) * n + z * h
        by_hand.append(h)
    output, _ = gru(from_torch(module)[1], x)
    np.testing.assert_allclose(output, by_hand, rtol=0, atol=1e-14)
    np.testing.assert_allclose(module(torch.tensor(x))[0].detach().numpy(), by_hand, rtol=0, atol=1e-14)


def test_reset_before_is_the_original_papers_formula_computed_by_hand(x64):
    params = random_params(GRUConfig(5, 4, reset_after=False), jnp.float64)
    cell = {key: np.asarray(value) for key, value in params["l0"].items()}
    x = np.random.default_rng(0).standard_normal((6, 2, 5))
    h, by_hand = np.zeros((2, 4)), []
    for x_t in x:
        i_r, i_z, i_n = np.split(x_t @ cell["kernel_ih"] + cell["bias_ih"], 3, axis=-1)
        w_hr, w_hz, w_hn = np.split(cell["kernel_hh"], 3, axis=-1)
        b_hr, b_hz, b_hn = np.split(cell["bias_hh"], 3)
        r, z = 1 / (1 + np.exp(-(i_r + h @ w_hr + b_hr))), 1 / (1 + np.exp(-(i_z + h @ w_hz + b_hz)))
        h = (1 - z) * np.tanh(i_n + (r * h) @ w_hn + b_hn) + z * h
        by_hand.append(h)
    output, _ = gru(params, x, reset_after=False)
    np.testing.assert_allclose(output, by_hand, rtol=0, atol=1e-14)
    assert np.abs(np.asarray(gru(params, x)[0]) - by_hand).max() > 1e-3  # The two forms do differ.


@pytest.mark.parametrize("reset_after", FLAGS)
def test_layer_by_layer_over_the_sequence_equals_step_by_step_through_all_layers(reset_after, x64):
    params = random_params(GRUConfig(5, 4, num_layers=2), jnp.float64)
    x, h_0 = (np.random.default_rng(0).standard_normal(shape) for shape in ((6, 2, 5), (2, 2, 4)))

    def advance(h, x_t):
        y, h = stacked_step(params, h, x_t, reset_after=reset_after)
        return h, y

    h_n, output = jax.lax.scan(advance, h_0, x)
    chex.assert_trees_all_close((output, h_n), gru(params, x, h_0, reset_after=reset_after), rtol=0, atol=1e-14)


def test_a_missing_h_0_is_zeros_and_b_hn_counts_at_the_first_step():
    output, h_n = gru(PARAMS, X)
    chex.assert_trees_all_equal((output, h_n), gru(PARAMS, X, np.zeros((1, 2, 4), np.float32)))
    bias = np.array(PARAMS["l0"]["bias_hh"])
    bias[8:] = 0
    without, _ = gru({"l0": PARAMS["l0"] | {"bias_hh": bias}}, X)
    assert np.abs(np.asarray(output)[0] - np.asarray(without)[0]).max() > 1e-3


def test_length_zero_gives_h_0_and_zeros(dtype):
    params = random_params(GRUConfig(5, 4, bidirectional=True), dtype)
    h_0 = np.random.default_rng(0).standard_normal((2, 2, 4)).astype(dtype)
    output, h_n = map(np.asarray, gru(params, np.asarray(X, dtype), h_0, seq_lengths=np.array([0, 3])))
    np.testing.assert_array_equal(h_n[:, 0], h_0[:, 0])
    assert not output[:, 0].any()
    assert output[:, 1].all()


def test_traced_lengths_under_jit_equal_known_ones():
    lengths = np.array([2, 0])
    traced = jax.jit(lambda x, lengths: gru(BOTH, x, seq_lengths=lengths))(X, lengths)
    chex.assert_trees_all_equal(traced, jax.jit(lambda x: gru(BOTH, x, seq_lengths=lengths))(X))


def test_what_stands_in_the_padding_reaches_neither_outputs_nor_gradients():
    params = random_params(GRUConfig(5, 4, num_layers=2, bidirectional=True))
    x = np.random.default_rng(0).standard_normal((6, 2, 5)).astype(np.float32)
    lengths = np.array([3, 6])
    loss = lambda params, x: sum(jnp.sum(a**2) for a in gru(params, x, seq_lengths=lengths))
    run = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
    clean = run(params, x)
    for garbage in (np.nan, np.inf, 1e38):
        x[3:, 0] = garbage
        chex.assert_trees_all_equal(run(params, x), clean)


@pytest.mark.parametrize("enforce_sorted", FLAGS)
def test_a_packed_sequence_comes_back_packed_in_the_same_layout(enforce_sorted):
    case = Case((6, 3, 5, 4), bidirectional=True)
    module, inputs = torch_gru(case), random_inputs(case)
    lengths = [6, 4, 1] if enforce_sorted else [4, 1, 6]
    theirs = torch.nn.utils.rnn.pack_padded_sequence(
        torch.tensor(inputs["x"]), torch.tensor(lengths), enforce_sorted=enforce_sorted
    )
    theirs, their_h_n = module(theirs, torch.tensor(inputs["h_0"]))
    packed = pack_padded_sequence(inputs["x"], lengths, enforce_sorted=enforce_sorted)
    ours, h_n = gru(from_torch(module)[1], packed, inputs["h_0"], precision=HIGHEST)
    np.testing.assert_allclose(ours.data, theirs.data.detach().numpy(), rtol=0, atol=1e-6)
    np.testing.assert_allclose(h_n, their_h_n.detach().numpy(), rtol=0, atol=1e-6)
    for field in ("batch_sizes", "sorted_indices", "unsorted_indices"):
        np.testing.assert_equal(getattr(ours, field), getattr(packed, field))
    np.testing.assert_array_equal(ours.batch_sizes, theirs.batch_sizes)


def test_a_packed_sequence_of_length_zero_gives_h_0():
    x, h_0 = np.ones((2, 3, 5), np.float32), np.random.default_rng(0).standard_normal((1, 3, 4), np.float32)
    for lengths, enforce_sorted in (([2, 1, 0], True), ([0, 2, 0], False), ([0, 0, 0], True)):

        @jax.jit
        def run(x, h_0, lengths=lengths, enforce_sorted=enforce_sorted):
            return gru(PARAMS, pack_padded_sequence(x, lengths, enforce_sorted=enforce_sorted), h_0)

        output, h_n = run(x, h_0)
        empty = np.array(lengths) == 0
        chex.assert_trees_all_equal(np.asarray(h_n)[:, empty], h_0[:, empty])
        np.testing.assert_array_equal(pad_packed_sequence(output)[1], lengths)


@pytest.mark.parametrize("size", [(0, 3), (4, 0)])
def test_no_steps_and_no_batch_are_allowed(size):
    for remat in (None, True, 2):

        def loss(params, remat=remat):
            results = gru(params, jnp.ones((*size, 5)), remat=remat)
            return sum(map(jnp.sum, results)), results

        gradient, (output, h_n) = jax.jit(jax.grad(loss, has_aux=True))(BOTH)
        assert output.shape == (*size, 8)
        chex.assert_trees_all_equal(h_n, np.zeros((2, size[1], 4)))
        chex.assert_trees_all_equal(gradient, jax.tree.map(np.zeros_like, BOTH))


def test_dropout_zeroes_elements_of_what_a_layer_hands_up_and_scales_the_rest():
    steps, batch, hidden, rate = 200, 8, 16, 0.25
    # The second layer shows what it reads: its z is 0 and its n is tanh(x / 8).
    kernel_ih, kernel_hh = np.zeros((2, hidden, 3 * hidden), np.float32)
    kernel_ih[:, 2 * hidden :] = np.eye(hidden) / 8
    closed = np.repeat(np.array([0, -1e9, 0], np.float32), hidden)
    params = random_params(GRUConfig(3, hidden))
    params["l1"] = {"kernel_ih": kernel_ih, "kernel_hh": kernel_hh, "bias_ih": closed, "bias_hh": closed}
    x = np.random.default_rng(0).standard_normal((steps, batch, 3), np.float32)

    output, h_n = gru(params, x, dropout=rate, dropout_key=jax.random.key(2))
    handed_up, h_n_of_first = gru({"l0": params["l0"]}, x)
    np.testing.assert_array_equal(np.asarray(h_n)[:1], h_n_of_first)  # h_n is taken before dropout.
    ratio = 8 * np.arctanh(output) / np.asarray(handed_up)
    kept = np.abs(ratio) > 0.5
    np.testing.assert_allclose(ratio[kept], 1 / (1 - rate), rtol=1e-3)
    np.testing.assert_allclose(ratio[~kept], 0, atol=1e-6)
    assert abs(kept.mean() - (1 - rate)) < 0.012  # four standard deviations over 25,600 elements
    for axis in range(3):  # Elementwise: along no axis is the mask shared.
        assert (kept != np.take(kept, [0], axis)).mean() > 0.2


@pytest.mark.parametrize("bidirectional", FLAGS)
def test_dropout_of_one_hands_up_zeros_as_in_pytorch(bidirectional):
    module = torch.nn.GRU(5, 4, 3, dropout=1.0, bidirectional=bidirectional).train()
    x = np.random.default_rng(0).standard_normal((6, 2, 5), np.float32)
    theirs = [a.detach().numpy() for a in module(torch.tensor(x))]
    ours = gru(from_torch(module)[1], x, dropout=1.0, dropout_key=jax.random.key(0), precision=HIGHEST)
    chex.assert_trees_all_close(list(ours), theirs, rtol=0, atol=1e-6)


def test_dropout_draws_anew_for_each_key_and_never_after_the_last_layer():
    run = lambda key: np.asarray(gru(TWO_LAYERS, X, dropout=0.5, dropout_key=jax.random.key(key))[0])
    chex.assert_trees_all_equal(run(0), run(0))
    assert np.abs(run(0) - run(1)).max() > 1e-3
    assert run(0).all()


def test_dropout_leaves_one_layer_alone_and_warns():
    with pytest.warns(UserWarning, match="no effect with num_layers=1"):
        with_dropout = gru(PARAMS, X, dropout=0.5, dropout_key=jax.random.key(0))
    chex.assert_trees_all_equal(with_dropout, gru(PARAMS, X))


def test_arrays_of_different_dtypes_are_promoted():
    params = random_params(GRUConfig(5, 4), jnp.bfloat16)
    output, h_n = gru(params, jnp.ones((3, 2, 5), jnp.float32))
    assert output.dtype == h_n.dtype == jnp.float32
    assert gru(params, jnp.ones((3, 2, 5), jnp.bfloat16), jnp.zeros((1, 2, 4), jnp.float32))[0].dtype == jnp.float32


def test_precision_reaches_every_matmul():
    params = random_params(GRUConfig(5, 4, num_layers=2, bidirectional=True))
    for reset_after in FLAGS:
        loss = lambda params, reset_after=reset_after: gru(
            params, jnp.ones((3, 2, 5)), precision="highest", reset_after=reset_after
        )[0].sum()
        text = str(jax.make_jaxpr(jax.grad(loss))(params))
        assert text.count("dot_general[") == text.count("precision=(Precision.HIGHEST, Precision.HIGHEST)") > 0


def test_a_call_outside_jit_compiles_once(caplog):
    for calls in range(2):
        caplog.clear()
        with jax.log_compiles():
            gru(PARAMS, X, unroll=2)  # no other test here has this unroll, or had compiled it before
        compiled = [record.getMessage() for record in caplog.records if "Compiling" in record.getMessage()]
        assert bool(compiled) == (calls == 0)


def test_unroll_changes_nothing():
    for unroll in (2, 5):  # which do not divide the three steps
        chex.assert_trees_all_close(gru(TWO_LAYERS, X, unroll=unroll), gru(TWO_LAYERS, X), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((PARAMS, jnp.ones((3, 2, 6))), ValueError, r"gru: expected x of shape \[L, N, I\] = \[any, any, 5\], got"),
        ((PARAMS, jnp.ones((3, 6))), ValueError, r"gru: expected x of shape \[L, I\] = \[any, 5\], got \[3, 6\]"),
        ((PARAMS, jnp.ones((5,))), ValueError, r"expected x of shape \[L, N, I\]"),
        ((PARAMS, jnp.ones((1, 3, 2, 5))), ValueError, r"got \[1, 3, 2, 5\]"),
        ((PARAMS, jnp.ones((3, 2, 5), int)), TypeError, "gru: expected x of a floating dtype, got int32"),
        ((PARAMS, [[1.0]]), TypeError, "gru: expected x to be a JAX or NumPy array, got list"),
        ((PARAMS, torch.ones(3, 2, 5)), TypeError, "got Tensor"),
        ((PARAMS, X, jnp.ones((2, 2, 4))), ValueError, r"h_0 of shape \[num_layers\*D, N, H\] = \[1, 2, 4\], got"),
        ((PARAMS, X[:, 0], jnp.ones((1, 1, 4))), ValueError, r"h_0 of shape \[num_layers\*D, H\] = \[1, 4\], got"),
        ((PARAMS, X, [[0.0]]), TypeError, "expected h_0 to be a JAX or NumPy array"),
        ((PARAMS["l0"], X), TypeError, r"gru: expected \w+ to be a dict of arrays, got .*GRUParams is "),
        (([PARAMS], X), TypeError, "gru: expected params to be a dict of arrays, got list"),
    ],
)
def test_gru_refuses_what_does_not_fit(arguments, error, message):
    with pytest.raises(error, match=message):
        gru(*arguments)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"seq_lengths": [1, 4]}, ValueError, r"seq_lengths within 0..L = 0..3, got \[4\]"),
        ({"seq_lengths": [-1, 3]}, ValueError, r"within 0..L = 0..3, got \[-1\]"),
        ({"seq_lengths": [1, 2, 3]}, ValueError, r"seq_lengths of shape \[N\] = \[2\], got \[3\]"),
        ({"seq_lengths": 2}, ValueError, r"seq_lengths of shape \[N\] = \[2\], got \[\]"),
        ({"seq_lengths": [1.0, 2.0]}, TypeError, "expected seq_lengths to be integers, got float64"),
        ({"dropout": 0.5}, ValueError, "expected a dropout_key with dropout=0.5, got None"),
        ({"dropout": 1.5}, ValueError, "expected dropout within 0..1, the probability of a zero, got 1.5"),
        ({"dropout": True}, TypeError, "expected dropout to be a Python number, got bool"),
        ({"batch_first": 1}, TypeError, "expected batch_first to be a bool, got int"),
        ({"reset_after": None}, TypeError, "expected reset_after to be a bool, got NoneType"),
        ({"unroll": 0}, ValueError, "expected unroll to be at least 1, got 0"),
        ({"unroll": True}, TypeError, "expected unroll to be an integer, got bool"),
        ({"remat": 0}, ValueError, "expected remat to be at least 1, got 0"),
        ({"remat": "all"}, TypeError, "expected remat to be an integer, got str"),
    ],
)
def test_gru_refuses_options_that_do_not_fit(options, error, message):
    with pytest.raises(error, match=f"^gru: .*{message}"):
        gru(TWO_LAYERS, X, **options)


def test_gru_refuses_lengths_beside_a_pack():
    with pytest.raises(ValueError, match="no seq_lengths beside a PackedSequence"):
        gru(PARAMS, pack_padded_sequence(X, [3, 2]), seq_lengths=[3, 2])


def test_stacked_step_refuses_two_directions_and_wrong_shapes():
    with pytest.raises(ValueError, match="stacked_step: expected params of one direction, got l0_reverse"):
        stacked_step(BOTH, jnp.zeros((1, 2, 4)), X[0])
    with pytest.raises(ValueError, match=r"h of shape \[num_layers, ..., H\] = \[1, 2, 4\], got \[2, 4\]"):
        stacked_step(PARAMS, jnp.zeros((2, 4)), X[0])
    with pytest.raises(ValueError, match=r"x of shape \[..., I\] = \[2, 5\], got \[2, 6\]"):
        stacked_step(PARAMS, jnp.zeros((1, 2, 4)), jnp.ones((2, 6)))


def test_one_step_of_gru_is_gru_step():
    run = functools.partial(gru_step, PARAMS["l0"])
    chex.assert_trees_all_close(gru(PARAMS, X[:1])[0][0], run(jnp.zeros((2, 4)), X[0]), rtol=0, atol=1e-7)


def test_the_measure_can_fail():
    """A wrong gate order, a dropped bias and a small slip are all far outside the rule."""
    case = Case((5, 3, 10, 20))
    module, inputs = torch_gru(case), random_inputs(case)
    original, reference = (run_torch(case, module, inputs, dtype)["output"] for dtype in ("float32", "float64"))
    _, params = from_torch(module.float())
    cell = params["l0"]
    swapped = cell | {"kernel_hh": jnp.roll(cell["kernel_hh"], 20, axis=1)}
    unbiased = cell | {"bias_hh": cell["bias_hh"].at[40:].set(0)}
    slipped = cell | {"bias_hh": cell["bias_hh"] * (1 + 1e-4)}
    for wrong in (swapped, unbiased, slipped):
        assert not judge("output", gru({"l0": wrong}, inputs["x"], inputs["h_0"])[0], original, reference).passed


@pytest.mark.parametrize("kind", [jax.sharding.AxisType.Auto, jax.sharding.AxisType.Explicit])
def test_a_batch_on_a_mesh_needs_no_h_0_of_its_own(kind):
    mesh = jax.make_mesh((1,), ("data",), axis_types=(kind,))
    over_batch = jax.sharding.PartitionSpec(None, "data")
    if kind == jax.sharding.AxisType.Auto:
        run = jax.shard_map(gru, mesh=mesh, in_specs=(jax.P(), over_batch), out_specs=(over_batch, over_batch))
        chex.assert_trees_all_close(jax.jit(run)(BOTH, X), gru(BOTH, X), rtol=0, atol=1e-6)
        return
    loss = lambda params, x: sum(jnp.sum(a**2) for a in gru(params, x))
    run = lambda x: jax.jit(jax.grad(loss))(BOTH, x)
    with jax.set_mesh(mesh):
        gradients = run(jax.device_put(X, jax.sharding.NamedSharding(mesh, over_batch)))
    chex.assert_trees_all_close(jax.device_get(gradients), run(X), rtol=0, atol=1e-5)


def test_symbolic_sizes_can_be_exported_forward_and_gradient():
    steps, batch = jax.export.symbolic_shape("l, n")
    args = PARAMS, jax.ShapeDtypeStruct((steps, batch, 5), jnp.float32)
    loss = lambda params, x: jnp.sum(gru(params, x)[0] ** 2)
    for function, sizes in ((gru, [(70, 4)]), (jax.grad(loss), [(3, 2), (70, 4)])):
        function = jax.jit(function)
        exported = jax.export.export(function)(*args)
        for size in sizes:
            x = np.ones((*size, 5), np.float32)
            chex.assert_trees_all_close(exported.call(PARAMS, x), function(PARAMS, x), rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="expected remat=None with a symbolic number of steps, L = l, got 2"):
        jax.export.export(jax.jit(lambda params, x: gru(params, x, remat=2)))(*args)


def test_lengths_of_any_integer_dtype_go_through_strict_promotion():
    lengths = [np.array([1, 3], dtype) for dtype in (np.uint8, np.int16, np.int64)]
    with jax.numpy_dtype_promotion("strict"):
        for given in lengths:
            chex.assert_trees_all_equal(gru(PARAMS, X, seq_lengths=given), gru(PARAMS, X, seq_lengths=[1, 3]))
