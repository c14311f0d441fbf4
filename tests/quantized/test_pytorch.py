"""quantized.from_torch beside live PyTorch."""

import chex
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from gru_jax import GRUConfig, quantized

pytestmark = pytest.mark.filterwarnings(
    "ignore:torch.ao.quantization is deprecated:DeprecationWarning",
    "ignore:torch.quantize_per_tensor, torch.quantize_per_channel:UserWarning",
)


def quantize(*modules, dtype=torch.qint8):
    return torch.ao.quantization.quantize_dynamic(torch.nn.Sequential(*modules), {type(m) for m in modules}, dtype)


@pytest.mark.parametrize("dtype", [torch.qint8, torch.float16])
@pytest.mark.parametrize(("layers", "bidirectional"), [(1, False), (1, True), (2, False), (3, True)])
def test_a_module_and_its_state_dict_give_every_integer_scale_and_bias(layers, bidirectional, dtype):
    module = quantize(torch.nn.GRU(5, 4, layers, bidirectional=bidirectional), dtype=dtype)[0]
    config, qparams = quantized.from_torch(module)
    assert config == GRUConfig(5, 4, layers, bidirectional=bidirectional)
    chex.assert_trees_all_equal(quantized.from_torch(module.state_dict()), (config, qparams))
    weights, biases = (names[kind] for names, kind in zip([module._weight_bias()] * 2, ("weight", "bias"), strict=True))
    for cell, ours in qparams.items():
        for half in ("ih", "hh"):
            theirs = weights[f"weight_{half}_{cell}"]
            numbers = theirs.int_repr() if dtype == torch.qint8 else theirs.half()
            np.testing.assert_array_equal(ours[f"kernel_{half}"], numbers.numpy().T)
            np.testing.assert_array_equal(ours[f"bias_{half}"], biases[f"bias_{half}_{cell}"].detach())
            if dtype == torch.qint8:
                assert float(ours[f"scale_{half}"]) == theirs.q_scale()
                assert bool(ours["reduce_range"])


def test_a_module_tells_what_a_state_dict_does_not():
    module = quantize(torch.nn.GRU(5, 4, 2, batch_first=True, dropout=0.25))[0]
    assert quantized.from_torch(module)[0] == GRUConfig(5, 4, 2, batch_first=True, dropout=0.25)
    assert quantized.from_torch(module.state_dict())[0] == GRUConfig(5, 4, 2)


def test_two_cells_of_equal_sizes_need_to_be_told_apart():
    for bidirectional in (False, True):
        module = quantize(torch.nn.GRU(4, 4, 1 if bidirectional else 2, bidirectional=bidirectional))[0]
        config, qparams = quantized.from_torch(module)
        assert config.bidirectional == bidirectional
        with pytest.raises(ValueError, match="fit two layers and two directions alike"):
            quantized.from_torch(module.state_dict())
        told = quantized.from_torch(module.state_dict(), bidirectional=bidirectional)
        chex.assert_trees_all_equal(told, (config, qparams))


def test_a_prefix_picks_a_gru_or_a_cell_out_of_a_whole_model():
    model = quantize(torch.nn.GRU(5, 4), torch.nn.GRUCell(3, 2))
    for source in (model, model.state_dict()):
        assert quantized.from_torch(source, "0")[0] == GRUConfig(5, 4)
        assert quantized.from_torch(source, "1.")[0] == GRUConfig(3, 2)
        with pytest.raises(
            (ValueError, TypeError), match=r"Prefixes that hold a quantized recurrent layer: '0.', '1.'"
        ):
            quantized.from_torch(source, "2")


def test_reduce_range_is_the_models_own_unless_told_otherwise():
    module = quantize(torch.nn.GRU(5, 4))[0]
    assert not quantized.from_torch(module, reduce_range=False)[1]["l0"]["reduce_range"]
    matrices = [module._all_weight_values[0].param.__getstate__()[0][4][i] for i in (0, 1)]
    empty = torch.zeros(0)
    module._all_weight_values[0].param = torch.ops.quantized.make_quantized_cell_params_dynamic(
        *matrices, empty, empty, False
    )
    qparams = quantized.from_torch(module)[1]
    assert not qparams["l0"]["reduce_range"]
    # Small weights, so that no CPU overflows in PyTorch's 16-bit sums of two products.
    x = torch.rand(6, 3, 5)
    ours = quantized.gru(qparams, jnp.array(x.numpy()))[0]
    coarse = quantized.gru({"l0": {**qparams["l0"], "reduce_range": jnp.array(True)}}, jnp.array(x.numpy()))[0]
    theirs = module(x)[0].numpy()
    assert np.abs(ours - theirs).mean() < np.abs(coarse - theirs).mean()


@pytest.mark.parametrize(
    ("module", "message"),
    [(torch.nn.LSTM(5, 4), "got an LSTM"), (torch.nn.LSTMCell(5, 4), "an LSTM"), (torch.nn.RNNCell(5, 4), "plain RNN")],
)
def test_other_recurrent_layers_are_refused_by_name(module, message):
    small = quantize(module)[0]
    with pytest.raises(ValueError, match=message):
        quantized.from_torch(small.state_dict())
    with pytest.raises(TypeError, match="expected a torch.ao.nn.quantized.dynamic.GRU or GRUCell at prefix ''"):
        quantized.from_torch(small)


def test_float_grus_and_other_things_are_refused():
    module = torch.nn.GRU(5, 4)
    with pytest.raises(TypeError, match="gru_jax.from_torch takes a float GRU"):
        quantized.from_torch(module)
    with pytest.raises(ValueError, match="found none.*gru_jax.from_torch takes a float GRU"):
        quantized.from_torch(module.state_dict())
    for wrong in (None, 3, torch.nn.GRU):
        with pytest.raises(TypeError, match="expected a PyTorch module or a state_dict, got"):
            quantized.from_torch(wrong)
    with pytest.raises(TypeError, match="expected prefix to be a str"):
        quantized.from_torch(module, None)
    with pytest.raises(TypeError, match="expected bidirectional to be a bool"):
        quantized.from_torch(module, bidirectional=2)


def changed(change):
    state_dict = dict(quantize(torch.nn.GRU(5, 4, 3))[0].state_dict())
    change(state_dict)
    return state_dict


KEY = "_all_weight_values.1.param"


@pytest.mark.parametrize(
    ("state_dict", "error", "message"),
    [
        (lambda: changed(lambda s: s.pop(KEY)), ValueError, r"expected cells 0, 1, ... at prefix '', got \[0, 2\]"),
        (lambda: changed(lambda s: s.update({KEY: 3})), TypeError, f"expected {KEY} to hold two packed matrices"),
        (lambda: changed(lambda s: s.update({KEY: torch.ones(3)})), TypeError, f"expected {KEY} to hold two packed"),
        (
            lambda: changed(lambda s: s.update({KEY: quantize(torch.nn.GRU(5, 4))[0]._all_weight_values[0].param})),
            ValueError,
            r"of input sizes \[5, 5, 4\] and hidden size 4, are not those of one GRU",
        ),
        (
            lambda: {"_packed_weight_ih": 3, "_packed_weight_hh": 3},
            TypeError,
            "PyTorch's packed weights, got int",
        ),
    ],
)
def test_what_does_not_hold_together_is_refused(state_dict, error, message):
    with pytest.raises(error, match=message):
        quantized.from_torch(state_dict())


def test_weights_with_a_zero_point_are_refused():
    weight = torch.quantize_per_tensor(torch.randn(12, 4), 0.1, 5, torch.qint8)
    packed = torch.ops.quantized.linear_prepack(weight, None)
    with pytest.raises(ValueError, match="to be quantized to int8 symmetrically.*zero points up to 5"):
        quantized.from_torch({"_packed_weight_ih": packed, "_packed_weight_hh": packed})


def test_the_model_and_the_imported_parameters_do_not_share_memory():
    module = quantize(torch.nn.GRU(5, 4))[0]
    _, qparams = quantized.from_torch(module)
    bias = module._weight_bias()["bias"]["bias_ih_l0"]
    before = np.array(qparams["l0"]["bias_ih"])
    with torch.no_grad():
        bias.add_(1)
    np.testing.assert_array_equal(qparams["l0"]["bias_ih"], before)
