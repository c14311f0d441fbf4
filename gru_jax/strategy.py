"""Which of several orders of the same computation runs: the one place that decides, from static shapes alone.

Each choice was measured on a CPU, and `scripts/bench` shows them beside everything else. CACHE is the size of a usual
last-level cache: what outgrows it is moved at the speed of memory.
"""

import math
from typing import NamedTuple

import jax

CACHE = 32e6  # bytes


class Strategy(NamedTuple):
    """How a scan over time, and its derivative, are arranged.

    Attributes:
      hoist: whether the input gates W_i x + b_i of all steps are computed before the loop, in one large matmul.
      barrier: whether, where they are hoisted, a step reads its input gates before it computes anything from them.
      recompute: whether a derivative computes each step's gates again from x and the states, which are the output
        anyhow, instead of storing them.
      remat: whether a derivative runs the loop again, one block of steps after the other, instead of storing gates.
    """

    hoist: bool
    barrier: bool
    recompute: bool
    remat: bool


def choose(x: jax.Array, h_0: jax.Array) -> Strategy:
    """Returns the strategy for x [L, ..., I] and h_0 [..., H]. A symbolic size, as in an export, counts as large.

    hoist: with up to 8 rows a step takes as long as reading its matrices takes, so W_ih is read once instead of L
      times. With more rows, or steps, the hoisted [L, N, 3H] leaves the cache before it is used.

    barrier: XLA fuses the reading of the input gates with the gates themselves. In JAX 0.12 the fused code for a single
      row does one number at a time: 3.1 ms for (L, N, I, H) = (1000, 1, 96, 96), against 1.7 ms with a barrier between
      the two. In JAX 0.10, and with more rows, a barrier gains nothing.

    recompute, remat: what a derivative stores and what it makes of that are nine arrays of the output's size. Where
      they outgrow the cache, moving them takes longer than computing them again does, unless the matrices are large.
      From 64 rows on a step's matmuls are efficient by themselves, so each step is recomputed alone.
    """
    rows, features = math.prod(h_0.shape[:-1]), x.shape[-1] + h_0.shape[-1]
    states = x.shape[0] * math.prod(h_0.shape) * h_0.dtype.itemsize
    if not isinstance(states, int):
        return Strategy(hoist=False, barrier=False, recompute=not isinstance(rows, int), remat=False)
    recompute = rows >= 64 and features <= 512
    remat = not recompute and features <= 256 and 9 * states > CACHE
    hoist = rows <= 8 and 3 * states <= CACHE / 2
    return Strategy(hoist=hoist, barrier=rows == 1, recompute=recompute, remat=remat)
