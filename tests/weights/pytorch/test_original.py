"""The original of a PyTorch file, against the very module that wrote it, and gru beside it."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from stock_cells import run_ours

from gru_jax.verify import judge
from gru_jax.weights.containers.pytorch import open_torch
from gru_jax.weights.pytorch import importer as pytorch

L, N, INPUT, H = 7, 3, 5, 4


def cotangents(layers, directions, seed=0):
    rng = np.random.default_rng(seed)
    rows = layers * directions
    return [rng.standard_normal(shape) for shape in ((L, N, INPUT), (rows, N, H), (L, N, directions * H), (rows, N, H))]


def found_in(tmp_path, module):
    torch.save({"model": {"rnn": module.state_dict()}}, tmp_path / "a.pt")
    ((_, found),) = pytorch.find(open_torch(tmp_path / "a.pt").by_name)[0].items()
    return found


def live(module, dtype, x, h_0, d_output, d_h_n):
    """The module's own output, h_n and gradients, under its own names."""
    kind = getattr(torch, dtype)
    module = module.to(kind)
    tensor = lambda a: torch.tensor(a, dtype=kind)
    x, h_0 = tensor(x).requires_grad_(), tensor(h_0).requires_grad_()
    if isinstance(module, torch.nn.GRUCell):
        states = [h_0[0]]
        for x_t in x:
            states.append(module(x_t, states[-1]))
        output, h_n = torch.stack(states[1:]), states[-1][None]
    else:
        output, h_n = module(x, h_0)
    ((output * tensor(d_output)).sum() + (h_n * tensor(d_h_n)).sum()).backward()
    gradients = {f"d_{name}": parameter.grad for name, parameter in module.named_parameters()}
    results = {"output": output, "h_n": h_n, "d_x": x.grad, "d_h_0": h_0.grad} | gradients
    return {name: a.detach().numpy() for name, a in results.items()}


def theirs(name):
    """The module's name: "d_weight_ih_l0" of "d_l0/kernel_ih"."""
    if "/" not in name:
        return name
    cell, key = name.removeprefix("d_").split("/")
    return f"d_{key.replace('kernel', 'weight')}_{cell}"


MODULES = {
    "one": lambda: torch.nn.GRU(INPUT, H),
    "deep": lambda: torch.nn.GRU(INPUT, H, 2, bidirectional=True),
    "no bias": lambda: torch.nn.GRU(INPUT, H, 2, bias=False),
    "cell": lambda: torch.nn.GRUCell(INPUT, H),
    "cell without bias": lambda: torch.nn.GRUCell(INPUT, H, bias=False),
}


@pytest.mark.parametrize("kind", MODULES)
def test_the_original_and_gru_both_give_what_the_module_that_wrote_the_file_gives(kind, dtype, tmp_path):
    torch.manual_seed(1)
    module = MODULES[kind]().to(getattr(torch, dtype))
    found = found_in(tmp_path, module)
    config = found.config
    inputs = cotangents(config.num_layers, config.num_directions)
    own = live(module, dtype, *inputs)
    module.zero_grad()
    reference = live(module, "float64", *inputs)
    is_cell = isinstance(module, torch.nn.GRUCell)

    original = found.original(dtype, *inputs)
    names = {name: theirs(name).removesuffix("_l0") if is_cell else theirs(name) for name in original}
    assert set(names.values()) == own.keys()
    for name, array in original.items():
        expected = own[names[name]]
        assert array.dtype == dtype
        np.testing.assert_array_equal(array, expected.T if "kernel" in name else expected, err_msg=name)

    ours = run_ours(config, found.read(), *(jnp.asarray(a, dtype) for a in inputs))
    assert ours.keys() == original.keys()
    for name, array in ours.items():
        expected = reference[names[name]]
        verdict = judge(name, array, original[name], expected.T if "kernel" in name else expected)
        assert verdict.passed, verdict


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_weights_are_widened_to_run(dtype, tmp_path):
    module = torch.nn.GRU(INPUT, H).to(dtype)
    inputs = cotangents(1, 1)
    original = found_in(tmp_path, module).original("float64", *inputs)
    np.testing.assert_array_equal(original["output"], live(module, "float64", *inputs)["output"])


def test_running_the_original_draws_no_random_number(tmp_path):
    found = found_in(tmp_path, torch.nn.GRU(INPUT, H))
    before = torch.get_rng_state()
    found.original("float32", *cotangents(1, 1))
    assert torch.equal(torch.get_rng_state(), before)
