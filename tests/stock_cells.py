"""A stock cell of a JAX library beside the same weights in gru_jax."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from conftest import random_params

from gru_jax import GRUConfig, gru
from gru_jax.verify import judge
from gru_jax.weights.jax import trees

L, N, I, H = 3, 2, 5, 4  # noqa: E741  (all different, and so few steps because a Python loop compiles each of them)


def random_like(tree, seed=0):
    """The tree with every array replaced by random numbers in float64, biases too."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: 0.5 * rng.standard_normal(leaf.shape), tree)


def cast(tree, dtype):
    return jax.tree.map(lambda leaf: np.array(leaf, dtype), tree)


def flat(tree):
    return trees.flatten("test", tree)


def own_cell(dtype, bias=True):
    return cast(random_params(GRUConfig(I, H, bias=bias))["l0"], dtype)


def inputs(config=GRUConfig(I, H)):  # noqa: B008  (a config is immutable)
    """What Found.original takes, in float64. Its sizes are always the same, so that tests share compiled programs."""
    rng = np.random.default_rng(1)
    states = (config.num_layers * config.num_directions, N, config.hidden_size)
    output = (L, N, config.num_directions * config.hidden_size)
    shapes = {"x": (L, N, config.input_size), "h_0": states, "d_output": output, "d_h_n": states}
    return {name: rng.standard_normal(shape) for name, shape in shapes.items()}


def run_ours(config, *arguments):
    """Our output, h_n and gradients, under the names of Found.original."""
    return _run_ours(config.reset_after, *arguments)


@functools.partial(jax.jit, static_argnums=0)
def _run_ours(reset_after, params, x, h_0, d_output, d_h_n):
    forward = lambda params, x, h_0: gru(params, x, h_0, reset_after=reset_after, precision="highest")
    (output, h_n), pull_back = jax.vjp(forward, params, x, h_0)
    d_params, d_x, d_h_0 = pull_back((d_output, d_h_n))
    gradients = {f"d_{cell}/{key}": g for cell, keys in d_params.items() for key, g in keys.items()}
    return {"output": output, "h_n": h_n, "d_x": d_x, "d_h_0": d_h_0, **gradients}


def run_stock(step, gradients, tree, dtype, given):
    """A stock cell as a user runs it, in a Python loop over time: step(tree, h, x) -> h.

    Its gradients are named by gradients(tree of gradients) -> {"kernel_ih": ...}.
    """
    with jax.enable_x64(dtype == "float64"):
        widened = jax.tree.map(lambda a: jnp.asarray(np.asarray(a), dtype), (tree, *given.values()))
        output, h_n, d_tree, d_x, d_h_0 = jax.tree.map(np.asarray, _loop(step, *widened))
        named = {f"d_l0/{name}": np.asarray(g) for name, g in gradients(d_tree).items()}
        return {"output": output, "h_n": h_n, "d_x": d_x, "d_h_0": d_h_0, **named}


@functools.partial(jax.jit, static_argnums=0)
def _loop(step, tree, x, h_0, d_output, d_h_n):
    def forward(tree, x, h_0):
        h, output = h_0[0], []
        for x_t in x:
            h = step(tree, h, x_t)
            output.append(h)
        return jnp.stack(output), h[None]

    (output, h_n), pull_back = jax.vjp(forward, tree, x, h_0)
    return output, h_n, *pull_back((d_output, d_h_n))


def assert_same_function(dtype, config, params, stock):
    """Judges our numbers by those of stock(dtype, inputs): output, h_n and every gradient that the library has."""
    given = {name: jnp.asarray(array, dtype) for name, array in inputs().items()}
    ours = run_ours(config, params, *given.values())
    reference, original = stock("float64", given), stock(dtype, given)
    assert {"output", "h_n", "d_x", "d_h_0", "d_l0/kernel_ih", "d_l0/kernel_hh"} <= reference.keys()
    for name in reference:
        verdict = judge(name, ours[name], original[name], reference[name])
        assert verdict.passed, verdict


def assert_original_is(found, stock):
    """Compares Found.original with stock(dtype, inputs), array by array."""
    given = {name: np.float32(array) for name, array in inputs().items()}
    for dtype, bound in (("float32", 1e-5), ("float64", 1e-13)):
        ours, theirs = found.original(dtype, *given.values()), stock(dtype, given)
        assert ours.keys() == theirs.keys()
        for name, array in ours.items():
            assert isinstance(array, np.ndarray)
            assert array.dtype == dtype
            np.testing.assert_allclose(array, theirs[name], rtol=0, atol=bound, err_msg=name)
