"""The original of a PyTorch file, against the very module that wrote it, and gru beside it."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from stock_cells import H, I, inputs, run_ours

from gru_jax.verify import judge
from gru_jax.weights.containers.pytorch import open_torch
from gru_jax.weights.pytorch import importer as pytorch


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
    "one": lambda: torch.nn.GRU(I, H),
    "deep": lambda: torch.nn.GRU(I, H, 2, bidirectional=True),
    "no bias": lambda: torch.nn.GRU(I, H, 2, bias=False),
    "cell": lambda: torch.nn.GRUCell(I, H),
    "cell without bias": lambda: torch.nn.GRUCell(I, H, bias=False),
}


@pytest.mark.parametrize("kind", MODULES)
def test_the_original_and_gru_both_give_what_the_module_that_wrote_the_file_gives(kind, dtype, tmp_path):
    torch.manual_seed(1)
    module = MODULES[kind]().to(getattr(torch, dtype))
    found = found_in(tmp_path, module)
    config = found.config
    given = inputs(config).values()
    own = live(module, dtype, *given)
    module.zero_grad()
    reference = live(module, "float64", *given)
    is_cell = isinstance(module, torch.nn.GRUCell)

    original = found.original(dtype, *given)
    names = {name: theirs(name).removesuffix("_l0") if is_cell else theirs(name) for name in original}
    assert set(names.values()) == own.keys()
    for name, array in original.items():
        expected = own[names[name]]
        assert array.dtype == dtype
        np.testing.assert_array_equal(array, expected.T if "kernel" in name else expected, err_msg=name)

    ours = run_ours(config, found.read(), *(jnp.asarray(a, dtype) for a in given))
    assert ours.keys() == original.keys()
    for name, array in ours.items():
        expected = reference[names[name]]
        verdict = judge(name, array, original[name], expected.T if "kernel" in name else expected)
        assert verdict.passed, verdict


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_weights_are_widened_to_run(dtype, tmp_path):
    module = torch.nn.GRU(I, H).to(dtype)
    given = inputs().values()
    original = found_in(tmp_path, module).original("float64", *given)
    np.testing.assert_array_equal(original["output"], live(module, "float64", *given)["output"])


def test_running_the_original_draws_no_random_number(tmp_path):
    found = found_in(tmp_path, torch.nn.GRU(I, H))
    before = torch.get_rng_state()
    found.original("float32", *inputs().values())
    assert torch.equal(torch.get_rng_state(), before)
