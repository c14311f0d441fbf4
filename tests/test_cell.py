"""gru_step against live torch.nn.GRUCell."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from conftest import HIGHEST, assert_exact, random_params

from gru_jax import GRUConfig, from_torch, gru_step
from gru_jax.verify import judge

CELL = random_params(GRUConfig(5, 4))["l0"]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("batch", [(), (7,)])
def test_gru_step_and_its_gradients_are_torch_grucells(bias, batch, dtype):
    torch.manual_seed(0)
    module, rng = torch.nn.GRUCell(10, 20, bias), np.random.default_rng(0)
    weights = {name: tensor.detach().numpy().astype(dtype) for name, tensor in module.state_dict().items()}
    h, x, d_h = (rng.standard_normal((*batch, size), np.float32) for size in (20, 10, 20))

    def run_torch(kind):
        leaves = [torch.tensor(a, dtype=kind, requires_grad=True) for a in (x, h)]
        new_h = module.to(kind)(*leaves)
        wanted = [*leaves, *module.parameters()]
        gradients = torch.autograd.grad((new_h * torch.tensor(d_h, dtype=kind)).sum(), wanted)
        return [a.detach().numpy().copy() for a in (new_h, *gradients)]

    original, reference = run_torch(getattr(torch, dtype)), run_torch(torch.float64)
    params = from_torch(weights)[1]["l0"]

    @jax.jit
    def differentiate(arguments, d_h):
        new_h, pull_back = jax.vjp(lambda *arguments: gru_step(*arguments, precision=HIGHEST), *arguments)
        return new_h, pull_back(d_h)

    h, x, d_h = (a.astype(dtype) for a in (h, x, d_h))
    new_h, (d_params, d_h_before, d_x) = differentiate((params, h, x), d_h)
    keys = ["kernel_ih", "kernel_hh", "bias_ih", "bias_hh"][: 4 if bias else 2]
    ours = [new_h, d_x, d_h_before, *(d_params[key].T for key in keys)]
    names = ["h", "d_x", "d_h", *keys]
    assert_exact([judge(*row) for row in zip(names, ours, original, reference, strict=True)])


def test_gru_step_takes_any_leading_axes():
    rng = np.random.default_rng(0)
    h, x = rng.standard_normal((2, 3, 6, 4), np.float32), rng.standard_normal((2, 3, 6, 5), np.float32)
    step = jax.jit(gru_step)
    rows = step(CELL, h.reshape(-1, 4), x.reshape(-1, 5))
    np.testing.assert_allclose(np.asarray(step(CELL, h, x)).reshape(-1, 4), rows, atol=1e-6)


@pytest.mark.parametrize("reset_after", [True, False])
def test_huge_inputs_saturate_and_their_gradients_stay_finite(reset_after):
    step = functools.partial(gru_step, reset_after=reset_after)
    run = jax.jit(lambda *arguments: (step(*arguments), jax.grad(lambda *at: step(*at).sum(), (0, 1, 2))(*arguments)))
    for scale in (1e4, 1e30):
        h, x = np.full((2, 4), scale, np.float32), np.full((2, 5), scale, np.float32)
        assert all(np.isfinite(a).all() for a in jax.tree.leaves(run(CELL, h, x)))


def test_a_nan_stays_in_its_own_row():
    h, x = np.zeros((3, 4), np.float32), np.ones((3, 5), np.float32)
    x[1, 0] = np.nan
    nans = np.isnan(jax.jit(gru_step)(CELL, h, x)).all(axis=1)
    np.testing.assert_array_equal(nans, [False, True, False])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((CELL, jnp.ones((2, 4)), jnp.ones((2, 6))), ValueError, r"x of shape \[..., I\] = \[2, 5\], got \[2, 6\]"),
        ((CELL, jnp.ones((2, 3)), jnp.ones((2, 5))), ValueError, r"h of shape \[..., H\] = \[2, 4\], got \[2, 3\]"),
        ((CELL, jnp.ones(4), jnp.ones((2, 5))), ValueError, "h and x share their leading axes"),
        ((CELL, jnp.ones((2, 4)), jnp.ones((2, 5), int)), TypeError, "x of a floating dtype, got int32"),
        ((CELL, None, jnp.ones((2, 5))), TypeError, "h to be a JAX or NumPy array, got NoneType"),
        (({"l0": CELL}, jnp.ones((2, 4)), jnp.ones((2, 5))), TypeError, "params/l0 to be a floating array, got dict"),
    ],
)
def test_gru_step_refuses_what_does_not_fit(arguments, error, message):
    with pytest.raises(error, match=f"^gru_step: expected {message}" if "share" not in message else message):
        gru_step(*arguments)
