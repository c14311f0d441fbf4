"""Sequences that begin anew within the scan over time: resets."""

import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from conftest import assert_exact, random_params
from flax import nnx as flax_nnx

from gru_jax import GRUConfig, from_torch, gru, linen, nnx, pack_padded_sequence
from gru_jax.verify import judge

PARAMS = random_params(GRUConfig(3, 4))
X = jax.random.normal(jax.random.key(1), (7, 5, 3))
RESETS = jax.random.bernoulli(jax.random.key(2), 0.3, (7, 5))


def in_pieces(module, x, h_0, lengths, resets):
    """PyTorch's output and h_n of one sequence after the other, each cut at its resets; the pieces run apart."""
    layers, directions = module.num_layers, 2 if module.bidirectional else 1
    h_0 = h_0.reshape(layers, directions, *h_0.shape[1:])
    outputs, states = [], []
    for n, length in enumerate(lengths):
        cuts = [0, *[t for t in range(1, length) if resets[t, n]], length]
        output, ends = [], []
        for begin, end in itertools.pairwise(cuts):
            h = torch.zeros_like(h_0[:, :, n])
            h[:, 0] += h_0[:, 0, n] * float(begin == 0 and not resets[0, n])
            h[:, 1:] += h_0[:, 1:, n] * float(
                end == length
            )  # the reverse direction begins at the end of the last piece
            piece, h = module(x[begin:end, n], h.reshape(layers * directions, -1))
            output.append(piece)
            ends.append(h.reshape(layers, directions, -1))
        outputs.append(torch.nn.functional.pad(torch.cat(output), (0, 0, 0, len(x) - length)))
        states.append(torch.cat([ends[-1][:, :1], ends[0][:, 1:]], 1).reshape(layers * directions, -1))
    return torch.stack(outputs, 1), torch.stack(states, 1)


@pytest.mark.parametrize(
    ("size", "layers", "bidirectional", "options"),
    [
        ((9, 4, 5, 6), 2, True, {}),
        ((9, 64, 5, 6), 1, False, {}),  # the gradient computes each step's gates again
        ((9, 12, 5, 6), 1, False, {"remat": 2}),
        pytest.param((9, 4, 5, 6), 1, False, {}, marks=pytest.mark.slow),
        pytest.param((9, 64, 5, 6), 2, True, {}, marks=pytest.mark.slow),
        pytest.param((9, 12, 5, 6), 2, True, {"remat": 2}, marks=pytest.mark.slow),
        pytest.param((9, 64, 5, 6), 1, True, {"remat": True}, marks=pytest.mark.slow),
    ],
)
def test_resets_give_the_numbers_and_gradients_of_pytorch_on_the_pieces_apart(
    x64, size, layers, bidirectional, options
):
    steps, batch, input_size, hidden_size = size
    torch.manual_seed(0)
    module = torch.nn.GRU(input_size, hidden_size, layers, bidirectional=bidirectional).double()
    directions = 2 if bidirectional else 1
    rng = np.random.default_rng(0)
    x, h_0, d_output, d_h_n = (
        rng.standard_normal(shape)
        for shape in [
            (steps, batch, input_size),
            (layers * directions, batch, hidden_size),
            (steps, batch, directions * hidden_size),
            (layers * directions, batch, hidden_size),
        ]
    )
    lengths, resets = rng.integers(1, steps + 1, batch), rng.random((steps, batch)) < 0.3
    x_torch, h_torch = (torch.tensor(a, requires_grad=True) for a in (x, h_0))
    output, h_n = in_pieces(module, x_torch, h_torch, lengths, resets)
    wanted = {"x": x_torch, "h_0": h_torch, **dict(module.named_parameters())}
    loss = (output * torch.tensor(d_output)).sum() + (h_n * torch.tensor(d_h_n)).sum()
    gradients = dict(zip(wanted, torch.autograd.grad(loss, list(wanted.values())), strict=True))

    run = lambda params, x, h_0: gru(params, x, h_0, seq_lengths=lengths, resets=jnp.asarray(resets), **options)

    @jax.jit
    def differentiate(arguments, cotangents):
        results, pull_back = jax.vjp(run, *arguments)
        return results, pull_back(cotangents)

    ours, (d_params, d_x, d_h_0) = differentiate((from_torch(module)[1], x, h_0), (d_output, d_h_n))
    d_ours = {f"{key.replace('kernel', 'weight')}_{cell}": g.T for cell, d in d_params.items() for key, g in d.items()}
    d_ours |= {"x": d_x, "h_0": d_h_0}
    pairs = [("output", ours[0], output), ("h_n", ours[1], h_n), *[(k, d_ours[k], g) for k, g in gradients.items()]]
    theirs = [(name, a, b.detach().numpy()) for name, a, b in pairs]
    assert_exact([judge(name, a, b, b) for name, a, b in theirs])


def test_forward_mode_and_reverse_mode_agree_on_resets(x64):
    x, params = X.astype(float), jax.tree.map(lambda a: a.astype(float), PARAMS)
    run = lambda x, h_0: gru(params, x, h_0, resets=RESETS)
    h_0 = jnp.ones((1, 5, 4))
    forward, reverse = jax.jit(lambda *at: (jax.jacfwd(run, (0, 1))(*at), jax.jacrev(run, (0, 1))(*at)))(x, h_0)
    chex.assert_trees_all_close(forward, reverse, atol=1e-14)


def test_a_reset_at_the_first_step_replaces_h_0_by_zeros():
    resets = jnp.zeros((7, 5), bool).at[0, 2].set(True)
    output, _ = gru(PARAMS, X, jnp.ones((1, 5, 4)), resets=resets)
    expected, _ = gru(PARAMS, X, jnp.ones((1, 5, 4)).at[:, 2].set(0))
    chex.assert_trees_all_equal(output, expected)


def test_resets_in_the_padding_count_for_nothing():
    lengths, both = jnp.array([7, 3, 0, 5, 1]), random_params(GRUConfig(3, 4, bidirectional=True))
    in_padding = jnp.arange(7)[:, None] >= lengths
    h_0 = jnp.ones((2, 5, 4))
    with_them = gru(both, X, h_0, seq_lengths=lengths, resets=RESETS | in_padding)
    without = gru(both, X, h_0, seq_lengths=lengths, resets=RESETS & ~in_padding)
    chex.assert_trees_all_equal(with_them, without)


def test_resets_may_be_traced_mapped_over_batch_first_and_unbatched():
    expected, h_n = gru(PARAMS, X, resets=RESETS)
    traced = jax.jit(lambda r: gru(PARAMS, X, resets=r))(RESETS)
    chex.assert_trees_all_close(traced, (expected, h_n), rtol=1e-6, atol=1e-6)
    mapped = jax.vmap(lambda x, r: gru(PARAMS, x, resets=r), in_axes=1, out_axes=1)(X, RESETS)
    chex.assert_trees_all_close(mapped, (expected, h_n), rtol=1e-6, atol=1e-6)
    swapped, _ = gru(PARAMS, X.swapaxes(0, 1), resets=RESETS.T, batch_first=True)
    chex.assert_trees_all_close(swapped.swapaxes(0, 1), expected, rtol=1e-6, atol=1e-6)
    one, _ = gru(PARAMS, X[:, 0], resets=np.asarray(RESETS[:, 0]))
    chex.assert_trees_all_close(one, expected[:, 0], rtol=1e-6, atol=1e-6)


def test_the_modules_pass_resets_on():
    expected = gru(PARAMS, X, resets=RESETS)
    chex.assert_trees_all_equal(linen.GRU(3, 4).apply({"params": PARAMS}, X, resets=RESETS), expected)
    module = nnx.GRU(3, 4, rngs=flax_nnx.Rngs(0))
    flax_nnx.update(module, PARAMS)
    chex.assert_trees_all_equal(module(X, resets=RESETS), expected)


@pytest.mark.parametrize(
    ("resets", "batch_first", "error", "message"),
    [
        (RESETS.astype(float), False, TypeError, "gru: expected resets to be an array of bools, got float32. Try"),
        ([[True] * 5] * 7, False, TypeError, "expected resets to be an array of bools, got list."),
        (RESETS.T, False, ValueError, r"expected resets of shape \[L, N\] = \[7, 5\], got \[5, 7\]."),
        (RESETS.T, True, ValueError, r"expected resets of shape \[N, L\] = \[7, 5\], got \[5, 7\]."),
    ],
)
def test_resets_of_another_kind_or_shape_are_refused(resets, batch_first, error, message):
    with pytest.raises(error, match=message):
        gru(PARAMS, X, resets=resets, batch_first=batch_first)


def test_resets_beside_a_pack_are_refused():
    packed = pack_padded_sequence(X, [7, 5, 4, 2, 1])
    with pytest.raises(ValueError, match="expected no resets beside a PackedSequence. Give padded x and seq_lengths."):
        gru(PARAMS, packed, resets=RESETS)
