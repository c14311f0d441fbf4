"""The quantized GRU beside PyTorch's, run live."""

import functools
import itertools
import warnings

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from conftest import Case, random_inputs, random_params, torch_gru
from published import packaged_file

from gru_jax import GRUConfig, from_torch, layers, pack_padded_sequence, pad_packed_sequence, quantized
from gru_jax import gru as float_gru
from gru_jax.quantized.numbers import quantize_activations
from gru_jax.verify import judge

# PyTorch is retiring torch.ao, and says so wherever it is used.
pytestmark = pytest.mark.filterwarnings(
    "ignore:torch.ao.quantization is deprecated:DeprecationWarning",
    "ignore:torch.quantize_per_tensor, torch.quantize_per_channel:UserWarning",
)

STEP_BOUND = 1e-6  # one step from the same bits
RUN_BOUND = 1e-5  # a whole sequence, unless a number falls on the other side of a rounding boundary


def torch_quantized(module, dtype=torch.qint8, qconfig=None):
    """PyTorch's own quantization of an nn.GRU or GRUCell."""
    spec = {type(module)} if qconfig is None else {type(module): qconfig}
    holder = torch.nn.Sequential(module)
    options = {"dtype": dtype} if qconfig is None else {}
    return torch.ao.quantization.quantize_dynamic(holder, spec, **options)[0]


def per_channel(module):
    return torch_quantized(module, qconfig=torch.ao.quantization.per_channel_dynamic_qconfig)


def run_torch(case, module, inputs):
    """PyTorch's (output, h_n)."""
    x, h_0 = torch.tensor(inputs["x"]), torch.tensor(inputs["h_0"]) if case.h_0 else None
    if case.lengths == "dense":
        results = module(x, h_0)
    else:
        lengths = torch.tensor(inputs["lengths"])
        packed = torch.nn.utils.rnn.pack_padded_sequence(x, lengths, case.batch_first, enforce_sorted=False)
        packed, h_n = module(packed, h_0)
        output, _ = torch.nn.utils.rnn.pad_packed_sequence(packed, case.batch_first, total_length=case.size[0])
        results = output, h_n
    return [result.detach().numpy() for result in results]


def run_ours(case, qparams, inputs, **options):
    """Ours, from the same inputs."""
    call = functools.partial(quantized.gru, qparams, h_0=jnp.array(inputs["h_0"]) if case.h_0 else None, **options)
    x = jnp.array(inputs["x"])
    if case.lengths == "dense":
        return call(x, batch_first=case.batch_first)
    if case.lengths == "lengths":
        return call(x, batch_first=case.batch_first, seq_lengths=inputs["lengths"])
    packed, h_n = call(pack_padded_sequence(x, inputs["lengths"], case.batch_first, enforce_sorted=False))
    return pad_packed_sequence(packed, case.batch_first, total_length=case.size[0])[0], h_n


def distance(case, module, qparams, inputs):
    theirs, ours = run_torch(case, module, inputs), run_ours(case, qparams, inputs)
    return max(float(np.abs(a - np.asarray(b)).max()) for a, b in zip(theirs, ours, strict=True))


LENGTHS = ("dense", "lengths", "packed")
CASES = [
    Case((7, batch, 5, 4), layers, bidirectional, batch_first=batch == 3, h_0=batch != 8, lengths=LENGTHS[n % 3])
    for n, (batch, layers, bidirectional) in enumerate(itertools.product((1, 8, 3), (1, 3), (False, True)))
]


QUICK = [CASES[n] for n in (0, 4, 9, 11)]  # each option at least once


@pytest.mark.parametrize(
    "case", [*QUICK, *(pytest.param(case, marks=pytest.mark.slow) for case in CASES if case not in QUICK)], ids=str
)
def test_int8_gives_pytorchs_numbers(case):
    module = torch_quantized(torch_gru(case))
    _, qparams = quantized.from_torch(module)
    assert distance(case, module, qparams, random_inputs(case)) < RUN_BOUND


@pytest.mark.parametrize("bidirectional", [pytest.param(False, marks=pytest.mark.slow), True])
def test_weights_of_one_scale_a_column_give_pytorchs_numbers(bidirectional):
    case = Case((9, 4, 5, 6), 2, bidirectional)
    module = per_channel(torch_gru(case))
    _, qparams = quantized.from_torch(module)
    assert qparams["l1"]["scale_hh"].shape == (18,)
    assert distance(case, module, qparams, random_inputs(case)) < RUN_BOUND


@pytest.mark.parametrize("size", [(1, 1, 1, 1), (1, 1, 8, 20)], ids=str)
def test_quantizing_here_makes_pytorchs_integers_and_scales(size):
    for seed in range(20):
        module = torch_gru(Case(size, 2), seed)
        _, expected = quantized.from_torch(torch_quantized(module))
        chex.assert_trees_all_equal(quantized.quantize_dynamic(from_torch(module)[1]), expected)
        _, halves = quantized.from_torch(torch_quantized(module, torch.float16))
        chex.assert_trees_all_equal(quantized.quantize_dynamic(from_torch(module)[1], "float16"), halves)


def test_weights_beyond_the_range_of_float16_are_cut_as_pytorch_cuts_them():
    module = torch.nn.GRU(2, 2)
    with torch.no_grad():
        module.weight_hh_l0[0, 0], module.weight_hh_l0[1, 1], module.weight_ih_l0[0, 1] = 1e6, -7e4, 1e-8
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "FOUND weight out of range", UserWarning)
        _, expected = quantized.from_torch(torch_quantized(module, torch.float16))
    ours = quantized.quantize_dynamic(from_torch(module)[1], "float16")
    chex.assert_trees_all_equal(ours, expected)
    assert ours["l0"]["kernel_hh"][0, 0] == 65504


@pytest.mark.parametrize("case", CASES[::4], ids=str)
def test_float16_is_as_close_to_float64_as_pytorch_is(case):
    module = torch_quantized(torch_gru(case), torch.float16)
    _, qparams = quantized.from_torch(module)
    rounded = torch_gru(case)
    floats = quantized.to_float(qparams)
    with torch.no_grad():
        for name, weight in rounded.named_parameters():
            key, cell = name.rsplit("_l", 1)
            weight.copy_(torch.tensor(np.array(floats[f"l{cell}"][key.replace("weight", "kernel")].T)))
    inputs = random_inputs(case)
    wide = {name: a.astype(np.float64) if a.dtype == np.float32 else a for name, a in inputs.items()}
    reference = run_torch(case, rounded.double(), wide)
    results = run_ours(case, qparams, inputs), run_torch(case, module, inputs), reference
    for name, *arrays in zip(("output", "h_n"), *results, strict=True):
        verdict = judge(name, *arrays)
        assert verdict.passed, verdict


@pytest.mark.parametrize("size", [(1, 1, 1), (1, 37, 24), (5, 8, 3), (32, 24, 40)], ids=str)
def test_one_step_from_the_same_bits_is_pytorchs_within_1e_6(size):
    rows, input_size, hidden_size = size
    step = jax.jit(quantized.gru_step)
    for seed in range(25):
        rng = np.random.default_rng(seed)
        torch.manual_seed(seed)
        module = torch_quantized(torch.nn.GRUCell(input_size, hidden_size))
        _, qparams = quantized.from_torch(module)
        x = rng.standard_normal((rows, input_size), np.float32) * np.float32(10.0 ** rng.integers(-6, 3))
        h = rng.uniform(-1, 1, (rows, hidden_size)).astype(np.float32)
        theirs = module(torch.tensor(x), torch.tensor(h)).detach()
        np.testing.assert_allclose(step(qparams["l0"], h, x), theirs, rtol=0, atol=STEP_BOUND)


@pytest.mark.parametrize(
    "values", [[-1, 1], [-1, 0, 1], [-3, 3], [0, 1], [-2, 0], [0], [1e-7, -1e-7], [1e-40], [-0.7, 0.7], [1e-3, -1e30]]
)
def test_ranges_whose_zero_point_is_a_tie_or_degenerate_are_quantized_as_pytorch_does(values):
    torch.manual_seed(0)
    module = torch_quantized(torch.nn.GRUCell(16, 16))
    _, qparams = quantized.from_torch(module)
    rng = np.random.default_rng(0)
    x, h = (rng.choice(np.array(values, np.float32), (3, 16)) for _ in "xh")
    theirs = module(torch.tensor(x), torch.tensor(h)).detach().numpy()
    np.testing.assert_allclose(quantized.gru_step(qparams["l0"], h, x), theirs, rtol=1e-6, atol=STEP_BOUND)


def first_difference(qparams, x, h_0, theirs, ours):
    """The first step that differs, and how far what it rounded lay from a rounding boundary, in quantization steps."""
    cell = qparams["l0"]
    t = int(np.argmax(np.abs(theirs - ours).max(axis=(1, 2)) > 1e-6))
    before = [h_0 if t == 0 else states[t - 1] for states in (theirs, ours)]
    # Compiled, as in the loop: computed one operation after the other it rounds once more.
    quantize = jax.jit(quantize_activations, static_argnums=2)
    integers, offsets, scales = zip(*(quantize(h, cell["reduce_range"], None) for h in before), strict=True)
    if int(offsets[0].item()) != int(offsets[1].item()):  # The zero point is rounded too, and moves every integer.
        unrounded = min(before[0].min(), 0) / scales[0]
    else:
        moved = np.asarray(integers[0] != integers[1])
        assert moved.any(), f"step {t} differs and no integer does"
        unrounded = (before[0] / np.asarray(scales[0]))[moved]
    return float(np.abs(np.abs(unrounded) % 1 - 0.5).max())


def assert_strays_only_on_boundaries(case, modules, share=0.05):
    """All runs but a share are within RUN_BOUND, and in the others the first difference is on a rounding boundary."""
    strayed = 0
    for seed, module in enumerate(modules):
        _, qparams = quantized.from_torch(module)
        inputs = random_inputs(case, seed)
        theirs, ours = run_torch(case, module, inputs)[0], np.asarray(run_ours(case, qparams, inputs)[0])
        if np.abs(theirs - ours).max() > RUN_BOUND:
            strayed += 1
            assert first_difference(qparams, inputs["x"], inputs["h_0"][0], theirs, ours) < 1e-4
    assert strayed <= share * len(modules)


def test_whole_sequences_stray_only_where_a_number_lies_on_a_rounding_boundary():
    case = Case((60, 4, 24, 32))
    assert_strays_only_on_boundaries(case, [torch_quantized(torch_gru(case, seed)) for seed in range(100)])


@pytest.mark.parametrize(("name", "share"), [("uzmorph-bigru", 0.05), ("g2p-en", 0.25)])
def test_trained_weights_stray_only_there_too(name, share):
    """g2p-en's states reach -1 and 1, where the zero point, 63.5, lies on a boundary itself: a last bit moves it."""
    cell = trained_cell(name)
    hidden_size, input_size = cell["weight_hh"].shape[1], cell["weight_ih"].shape[1]
    module = torch.nn.GRU(input_size, hidden_size)
    module.load_state_dict({f"{key}_l0": array for key, array in cell.items()})
    case = Case((20, 2, input_size, hidden_size))
    assert_strays_only_on_boundaries(case, [torch_quantized(module)] * 100, share)


def trained_cell(name):
    """The tensors of one cell of a published model, under the names of a GRUCell."""
    kinds = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    if name == "uzmorph-bigru":
        path = packaged_file(name, "uzmorph_bigru/data/morph_bigru.pth")
        held = torch.load(path, weights_only=True)
        return {kind: held[f"gru.{kind}_l1"] for kind in kinds}
    held = np.load(packaged_file(name, "g2p_en/checkpoint20.npz"), allow_pickle=False)
    return {kind: torch.from_numpy(held[f"enc_{kind.replace('weight', 'w').replace('bias', 'b')}"]) for kind in kinds}


def test_a_cell_gives_pytorchs_numbers_not_those_of_its_leftover_biases():
    torch.manual_seed(0)
    for module in (torch_quantized(torch.nn.GRUCell(5, 4)), per_channel(torch.nn.GRUCell(5, 4))):
        _, qparams = quantized.from_torch(module)
        x, h = torch.randn(3, 5), torch.randn(3, 4)
        theirs = module(x, h).detach().numpy()
        np.testing.assert_allclose(
            quantized.gru_step(qparams["l0"], h.numpy(), x.numpy()), theirs, rtol=0, atol=STEP_BOUND
        )


ONE = quantized.quantize_dynamic(random_params(GRUConfig(5, 4)))
QPARAMS = quantized.quantize_dynamic(random_params(GRUConfig(5, 4, bidirectional=True)))
X = jax.random.normal(jax.random.key(1), (7, 3, 5))
H_0 = jax.random.normal(jax.random.key(2), (2, 3, 4))


def test_by_default_a_sequence_depends_on_its_neighbours_and_per_example_it_does_not():
    x = X.at[:, 1].multiply(30)
    alone = quantized.gru(QPARAMS, x[:, 0], H_0[:, 0])
    assert np.abs(np.asarray(quantized.gru(QPARAMS, x, H_0)[0])[:, 0] - alone[0]).max() > 1e-3
    apart = quantized.gru(QPARAMS, x, H_0, per_example=True)
    chex.assert_trees_all_close(tuple(np.asarray(a)[:, 0] for a in apart), alone, atol=1e-6)


@pytest.mark.parametrize("per_example", [False, True])
def test_vmap_over_sequences_is_each_sequence_alone(per_example):
    mapped = jax.vmap(
        functools.partial(quantized.gru, QPARAMS, per_example=per_example), in_axes=(1, 1), out_axes=(1, 1)
    )(X, H_0)
    chex.assert_trees_all_close(mapped, quantized.gru(QPARAMS, X, H_0, per_example=True), atol=1e-6)
    for n in range(3):
        alone = quantized.gru(QPARAMS, X[:, n], H_0[:, n])
        chex.assert_trees_all_close((mapped[0][:, n], mapped[1][:, n]), alone, atol=1e-6)


def test_per_example_a_length_hides_what_lies_beyond_it_and_nothing_else():
    lengths = [7, 2, 2]
    output, h_n = quantized.gru(QPARAMS, X, H_0, seq_lengths=lengths, per_example=True)
    for n, length in enumerate(lengths):
        alone = quantized.gru(QPARAMS, X[:length, n], H_0[:, n])
        chex.assert_trees_all_close((output[:length, n], h_n[:, n]), alone, atol=1e-6)
    assert not output[2:, 1].any()


@pytest.mark.parametrize("padding", [1e6, jnp.nan])
def test_what_stands_in_the_padding_widens_no_range(padding):
    lengths = jnp.array([7, 0, 4])
    filled = jnp.where((jnp.arange(7)[:, None] < lengths)[..., None], X, padding)
    chex.assert_trees_all_equal(
        quantized.gru(QPARAMS, filled, H_0, seq_lengths=lengths), quantized.gru(QPARAMS, X, H_0, seq_lengths=lengths)
    )
    assert jnp.array_equal(quantized.gru(QPARAMS, filled, H_0, seq_lengths=lengths)[1][:, 1], H_0[:, 1])


def test_jit_and_scan_give_the_same_numbers_as_a_plain_call():
    chex.assert_trees_all_close(jax.jit(quantized.gru)(ONE, X), quantized.gru(ONE, X), atol=1e-6)

    def body(h, x):
        h = quantized.gru_step(ONE["l0"], h, x, per_example=True)
        return h, h

    h_n, states = jax.lax.scan(body, H_0[0], X[:1].repeat(4, 0))
    expected = quantized.gru(ONE, X[:1].repeat(4, 0), H_0[:1], per_example=True)
    chex.assert_trees_all_close((states, h_n[None]), expected, atol=1e-6)


def test_a_plain_call_compiles_once():
    quantized.gru(QPARAMS, X)
    compiled = layers._layers._cache_size()
    quantized.gru(QPARAMS, X)
    assert layers._layers._cache_size() == compiled


def test_int8_takes_a_quarter_of_the_bytes_and_float16_half():
    params = random_params(GRUConfig(256, 256, 2))
    bytes_of = lambda tree: sum(a.nbytes for a in jax.tree.leaves(tree))
    assert bytes_of(quantized.quantize_dynamic(params)) < 0.26 * bytes_of(params)
    assert bytes_of(quantized.quantize_dynamic(params, "float16")) < 0.51 * bytes_of(params)


def test_hidden_sizes_beyond_what_float32_sums_exactly_are_pytorchs_too():
    case = Case((3, 2, 1500, 700))
    module = torch_quantized(torch_gru(case))
    with torch.no_grad():
        _, qparams = quantized.from_torch(module)
    assert distance(case, module, qparams, random_inputs(case)) < RUN_BOUND


def test_a_gru_without_biases_which_pytorch_refuses_is_that_of_zero_biases():
    with pytest.raises(AssertionError, match="mod.bias must be True"):
        torch_quantized(torch.nn.GRU(5, 4, bias=False))
    params = random_params(GRUConfig(5, 4, bias=False))
    zeros = {"l0": {**params["l0"], "bias_ih": jnp.zeros(12), "bias_hh": jnp.zeros(12)}}
    without, with_zeros = (quantized.gru(quantized.quantize_dynamic(p), X) for p in (params, zeros))
    chex.assert_trees_all_close(without, with_zeros, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_quantized_from_its_float32_and_computed_in_float32(dtype):
    params = random_params(GRUConfig(5, 4), dtype)
    wide = jax.tree.map(lambda a: a.astype(jnp.float32), params)
    for kind in ("int8", "float16"):
        qparams = quantized.quantize_dynamic(params, kind)
        chex.assert_trees_all_equal(qparams, quantized.quantize_dynamic(wide, kind))
        output, h_n = quantized.gru(qparams, X.astype(dtype))
        assert output.dtype == h_n.dtype == jnp.float32


@pytest.mark.parametrize("kind", ["int8", "float16"])
def test_quantized_parameters_work_in_x64_too(kind, x64):
    qparams = quantized.quantize_dynamic(random_params(GRUConfig(5, 4), jnp.float64), kind)
    assert {a.dtype.itemsize for a in jax.tree.leaves(qparams)} <= {1, 2, 4}
    assert quantized.gru(qparams, jnp.ones((3, 2, 5)))[0].dtype == jnp.float32


def test_to_float_is_what_the_integers_stand_for():
    params = random_params(GRUConfig(5, 4, 2))
    for dtype, error in (("int8", 0.5 / 255), ("float16", 2**-11)):
        floats = quantized.to_float(quantized.quantize_dynamic(params, dtype))
        chex.assert_trees_all_equal_shapes_and_dtypes(floats, params)
        chex.assert_trees_all_close(floats, params, atol=1.01 * error)
        assert jnp.abs(float_gru(floats, X)[0] - float_gru(params, X)[0]).max() < 0.02


def test_an_int8_gradient_is_refused_and_a_float16_one_is_that_of_the_rounded_weights():
    with pytest.raises(TypeError, match="expected no differentiation of an int8 GRU: rounding has no gradient"):
        jax.grad(lambda x: quantized.gru(QPARAMS, x)[0].sum())(X)
    halves = quantized.quantize_dynamic(random_params(GRUConfig(5, 4)), "float16")
    ours = jax.grad(lambda x: quantized.gru(halves, x)[0].sum())(X)
    chex.assert_trees_all_close(
        ours, jax.grad(lambda x: float_gru(quantized.to_float(halves), x)[0].sum())(X), atol=1e-6
    )


def test_no_steps_give_an_empty_output_and_h_0():
    output, h_n = quantized.gru(QPARAMS, X[:0], H_0)
    assert output.shape == (0, 3, 8)
    assert jnp.array_equal(h_n, H_0)


def test_reduce_range_travels_with_the_parameters():
    wide = quantized.quantize_dynamic(random_params(GRUConfig(5, 4)), reduce_range=False)
    narrow = {"l0": {**wide["l0"], "reduce_range": jnp.array(True)}}
    exact = float_gru(quantized.to_float(wide), X)[0]
    errors = [jnp.abs(quantized.gru(qparams, X)[0] - exact).mean() for qparams in (wide, narrow)]
    assert 1.5 < errors[1] / errors[0] < 3  # a bit less of the activations doubles the error


def without(key):
    return {"l0": {name: a for name, a in ONE["l0"].items() if name != key}}


@pytest.mark.parametrize(
    ("qparams", "error", "message"),
    [
        (random_params(GRUConfig(5, 4)), TypeError, "in int8, or every one in float16, got float32"),
        ({"l0": {**ONE["l0"], "kernel_ih": jnp.ones((5, 12), jnp.float16)}}, TypeError, "got float16 and int8"),
        (without("scale_ih"), ValueError, r"missing: l0/scale_ih \[\]"),
        (without("reduce_range"), ValueError, r"missing: l0/reduce_range \[\]"),
        (without("kernel_hh"), ValueError, r"l0/kernel_hh of shape \[H, 3H\]"),
        ({"l0": {**ONE["l0"], "scale_hh": jnp.ones(5)}}, ValueError, r"wrong shape: l0/scale_hh, expected \[\], got"),
        ({"l0": {**ONE["l0"], "zero": jnp.ones(5)}}, ValueError, r"unexpected: l0/zero \[5\]"),
        (
            {"l0": {**ONE["l0"], "scale_hh": jnp.ones((), jnp.int32)}},
            TypeError,
            "l0/scale_hh of dtype float32, got int",
        ),
        ({"l0": {**ONE["l0"], "reduce_range": 1}}, TypeError, "l0/reduce_range of dtype bool, got int"),
        (
            {"l0": {**ONE["l0"], "bias_hh": jnp.ones(12, jnp.float16)}},
            TypeError,
            "expected l0/bias_hh of dtype float32, got float16",
        ),
        ({"l0": 3}, TypeError, "expected l0 to be a dict of arrays, got int"),
        (ONE["l0"], TypeError, "expected kernel_ih to be a dict of arrays"),
        (None, TypeError, "expected params to be a dict of arrays, got NoneType"),
    ],
)
def test_parameters_that_do_not_hold_together_are_refused(qparams, error, message):
    for name, call in (("quantized.gru", lambda: quantized.gru(qparams, X)), ("to_float", None)):
        with pytest.raises(error, match=f"(?s)^{name}: .*{message}"):
            call() if call else quantized.to_float(qparams)


def test_arguments_of_the_wrong_kind_are_refused():
    with pytest.raises(ValueError, match="quantize_dynamic: expected dtype 'int8' or 'float16', got 'int4'"):
        quantized.quantize_dynamic(random_params(GRUConfig(5, 4)), "int4")
    with pytest.raises(TypeError, match="quantize_dynamic: expected reduce_range to be a bool"):
        quantized.quantize_dynamic(random_params(GRUConfig(5, 4)), reduce_range=1)
    with pytest.raises(TypeError, match="quantize_dynamic: expected l0/kernel_ih to be a floating array, got int8"):
        quantized.quantize_dynamic(ONE)
    with pytest.raises(TypeError, match="quantized.gru: expected per_example to be a bool"):
        quantized.gru(ONE, X, per_example=1)
    with pytest.raises(ValueError, match=r"quantized.gru: expected x of shape \[L, N, I\]"):
        quantized.gru(ONE, X[..., :3])
    with pytest.raises(ValueError, match=r"quantized.gru: expected h_0 of shape"):
        quantized.gru(ONE, X, H_0)
    with pytest.raises(ValueError, match="quantized.gru: expected no seq_lengths beside a PackedSequence"):
        quantized.gru(ONE, pack_padded_sequence(X, [7, 7, 7]), seq_lengths=[7, 7, 7])
    with pytest.raises(ValueError, match="quantized.gru: expected unroll to be at least 1"):
        quantized.gru(ONE, X, unroll=0)
    with pytest.raises(ValueError, match=r"quantized.gru_step: expected x of shape"):
        quantized.gru_step(ONE["l0"], H_0[0], X[0, :, :3])
    with pytest.raises(ValueError, match=r"quantized.gru_step: expected h of shape"):
        quantized.gru_step(ONE["l0"], H_0[0, :2], X[0])
    with pytest.raises(TypeError, match=r"quantized.gru_step: expected h of a floating dtype, got int32"):
        quantized.gru_step(ONE["l0"], H_0[0].astype(int), X[0])
