"""Which of two orders of the same computation runs: the one place that decides, from static shapes alone.

Both choices were measured on a CPU; `scripts/bench` shows them against everything else.
"""

import math
from typing import NamedTuple

import jax


class Strategy(NamedTuple):
    """How a scan over time is arranged.

    Attributes:
      hoist: whether the input gates W_i x + b_i of all steps are computed before the loop, in one large matmul.
      recompute: whether a gradient computes each step's gates again from the states, which are the output anyhow,
        instead of storing them.
    """

    hoist: bool
    recompute: bool


def choose(x: jax.Array, h_0: jax.Array) -> Strategy:
    """Returns the strategy for x [L, ..., I] and h_0 [..., H]. A symbolic size, as in an export, counts as large.

    hoist: with few rows a step takes as long as reading its matrices takes, so W_ih is read once instead of L times.
      With many rows it takes as long as the arithmetic, and the hoisted [L, N, 3H] leaves the cache in between.

    recompute: what a stored gradient stores, and what it derives from that, are nine arrays of the output's size. With
      many rows they outgrow the cache, and moving them takes longer than two more matmuls, unless those are large.
    """
    rows, features = math.prod(h_0.shape[:-1]), x.shape[-1] + h_0.shape[-1]
    known = isinstance(rows, int)
    return Strategy(hoist=known and rows <= 8, recompute=not known or (rows >= 64 and features <= 512))
