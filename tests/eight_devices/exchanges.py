"""What the tests on eight devices share: inputs, meshes, and every exchange in a compiled function."""

import re
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding

from gru_jax import GRUConfig, gru
from gru_jax.params import param_shapes

KINDS = "all-reduce|all-gather|all-to-all|collective-permute|collective-broadcast|reduce-scatter"
close = lambda a, b: chex.assert_trees_all_close(jax.device_get(a), jax.device_get(b), rtol=1e-4, atol=1e-5)


def inputs(size, deep=False):
    """params, x, lengths and h_0; `deep` has lengths, h_0, 2 layers and 2 directions."""
    steps, batch, input_size, hidden_size = size
    rng = np.random.default_rng(0)  # JAX would compile for every shape
    array = lambda *shape: jnp.asarray(rng.uniform(-1, 1, shape), jnp.float32)
    shapes = param_shapes(GRUConfig(input_size, hidden_size, 2 if deep else 1, bidirectional=deep))
    params = {name: {key: array(*shape) / 3 for key, shape in cell.items()} for name, cell in shapes.items()}
    x = array(steps, batch, input_size)
    if not deep:
        return params, x, None, None
    return params, x, jnp.asarray(rng.integers(0, steps + 1, batch)), array(4, batch, hidden_size)


def forward(params, x, lengths=None, h_0=None):
    return gru(params, x, h_0, seq_lengths=lengths)


def loss(*args):
    """A mean over the batch, so that the mean over devices is that of all."""
    output, h_n = forward(*args)
    return jnp.mean(jnp.sum(output**2, axis=(0, 2))) + jnp.mean(jnp.sum(h_n**2, axis=(0, 2)))


def mesh_of(kind=AxisType.Auto, **axes):
    return jax.make_mesh(tuple(axes.values()), tuple(axes), axis_types=(kind,) * len(axes))


def put(mesh, tree, spec):
    return jax.device_put(tree, NamedSharding(mesh, spec))


def compiled(function, *args, **options):
    return jax.jit(function, **options).lower(*args).compile()


class Collective(NamedTuple):
    """One exchange: its kind, the shapes that a device gets, sorted and without 1s, and whether a loop repeats it."""

    kind: str
    shapes: list[tuple[int, ...]]
    in_loop: bool


def collectives(compiled):
    """Every collective of a compiled function, as its HLO has it."""
    hlo = compiled.as_text()
    bodies = dict(re.findall(r"^(?:ENTRY )?%([\w.-]+) .*?\{$(.*?)^\}", hlo, re.M | re.S))
    in_loops, more = set(), set(re.findall(r" while\(.*body=%([\w.-]+)", hlo))
    while more:
        in_loops |= more
        more = {name for loop in more for name in re.findall(r"=%([\w.-]+)", bodies[loop])} - in_loops
    found = []
    for name, body in bodies.items():
        for result, kind in re.findall(rf" = (.*?) ({KINDS})(?:-start)?\(", body):
            shapes = [[int(n) for n in s.split(",")] for s in re.findall(r"\w\d+\[([\d,]+)\]", result)]
            found.append(Collective(kind, [sort(shape) for shape in shapes], name in in_loops))
    return found


def sort(shape):
    return tuple(sorted(n for n in shape if n > 1))


def shapes_of(tree):
    return sorted(sort(array.shape) for array in jax.tree.leaves(tree))


def exchanged(found):
    return sorted(shape for collective in found for shape in collective.shapes)
