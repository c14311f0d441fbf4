"""Which strategy runs where."""

import jax
import jax.export
import jax.numpy as jnp
import pytest
from conftest import equations, random_params

from gru_jax import GRUConfig, gru
from gru_jax.strategy import Strategy, choose


def chosen(steps, batch, input_size, hidden_size):
    shape = lambda *sizes: jax.ShapeDtypeStruct(sizes, jnp.float32)
    return choose(shape(steps, *batch, input_size), shape(*batch, hidden_size))


STORED = Strategy(hoist=False, barrier=False, recompute=False, remat=False)


@pytest.mark.parametrize("batch", [(), (1,), (8,), (2, 4)])
def test_few_rows_are_hoisted_and_stored_and_one_row_has_a_barrier(batch):
    assert chosen(1000, batch, 96, 96) == STORED._replace(hoist=True, barrier=batch in ((), (1,)))


def test_many_rows_are_recomputed_unless_their_matrices_are_large():
    assert chosen(112, (1024,), 8, 50) == STORED._replace(recompute=True)
    assert chosen(100, (32,), 256, 256) == chosen(100, (64,), 512, 512) == STORED


def test_long_sequences_of_few_rows_run_again_block_by_block_and_are_not_hoisted():
    assert chosen(100_000, (8,), 96, 96) == STORED._replace(remat=True)
    assert chosen(100_000, (1,), 512, 512) == STORED._replace(barrier=True)


def test_symbolic_sizes_are_not_hoisted():
    steps, batch = jax.export.symbolic_shape("L, N")
    assert chosen(steps, (batch,), 8, 50) == STORED._replace(recompute=True)
    assert chosen(steps, (8,), 8, 50) == STORED


def test_hoisting_takes_the_input_matrix_out_of_the_loop():
    params = random_params(GRUConfig(5, 4))
    for batch, matmuls in ((2, 1), (9, 2)):
        jaxpr = jax.make_jaxpr(lambda x: gru(params, x))(jnp.ones((6, batch, 5)))
        (loop,) = [equation for equation in equations(jaxpr) if equation.primitive.name == "scan"]
        inside = [equation.primitive.name for equation in equations(loop.params["jaxpr"].jaxpr)]
        assert inside.count("dot_general") == matmuls


def test_one_row_reads_its_input_gates_before_it_computes_with_them():
    params = random_params(GRUConfig(5, 4))
    for batch, barriers in ((1, 1), (2, 0)):
        jaxpr = jax.make_jaxpr(lambda x: gru(params, x))(jnp.ones((6, batch, 5)))
        assert [e.primitive.name for e in equations(jaxpr)].count("optimization_barrier") == barriers
