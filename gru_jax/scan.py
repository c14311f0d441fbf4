"""One layer, one direction, over time: `jax.lax.scan` of one step."""

import functools
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp

Inputs = TypeVar("Inputs")
Stored = TypeVar("Stored")


class Masks(NamedTuple):
    """Which steps of each sequence exist, and before which the state is zeroed: bools [L, ..., 1], or None for no mask.

    Attributes:
      present: False after the end of a sequence, where the state is held. So the last state of the scan is that of each
        sequence's own last step, and a flipped sequence starts at its own end: no gather, no stored history of states.
      resets: True where a sequence begins anew: the state is zeroed before that step.
    """

    present: jax.Array | None = None
    resets: jax.Array | None = None

    def begin(self, h: jax.Array) -> jax.Array:
        """Returns the states, zeroed where a sequence begins anew."""
        return h if self.resets is None else jnp.where(self.resets, 0, h)

    def end(self, h: jax.Array, new_h: jax.Array) -> jax.Array:
        """Returns the new states, or the old ones where a sequence has ended."""
        return new_h if self.present is None else jnp.where(self.present, new_h, h)

    def flip(self) -> "Masks":
        """Returns the masks of the sequences read backwards.

        A reset before step t separates the steps t - 1 and t. Read backwards, it stands before step t - 1.
        """
        flip = functools.partial(jnp.flip, axis=0)
        resets = self.resets
        if resets is not None:
            resets = jnp.concatenate([jnp.zeros_like(resets[:1]), flip(resets[1:])])
        return Masks(None if self.present is None else flip(self.present), resets)


def scan_time(
    step: Callable[[jax.Array, Inputs], tuple[jax.Array, Stored]],
    h_0: jax.Array,
    inputs: Inputs,
    masks: Masks,
    *,
    unroll: int,
) -> tuple[jax.Array, Stored, jax.Array]:
    """Scans `step` over the first axis of every array in `inputs`.

    Args:
      step: (h [..., H], the inputs at t) -> (h [..., H], what else to store of the step, None for nothing).
      h_0: [..., H], the state before the first step.
      inputs: a pytree of [L, ...].
      masks: where states are held or zeroed.
      unroll: steps in one iteration of the compiled loop.

    Returns:
      states: [L, ..., H], the state after each step.
      stored: what `step` stored, stacked over the steps.
      h_n: [..., H], the last state, or h_0 where L is 0.
    """

    def body(h: jax.Array, at_t: tuple[Inputs, Masks]) -> tuple[jax.Array, tuple[jax.Array, Stored]]:
        inputs_t, masks_t = at_t
        new_h, stored = step(masks_t.begin(h), inputs_t)
        new_h = masks_t.end(h, new_h)
        return new_h, (new_h, stored)

    h_n, (states, stored) = jax.lax.scan(body, h_0, (inputs, masks), unroll=unroll)
    return states, stored, h_n


def scan_blocks(
    scan: Callable[[jax.Array, Inputs], tuple[jax.Array, jax.Array]], size: int, h_0: jax.Array, inputs: Inputs
) -> tuple[jax.Array, jax.Array]:
    """Runs `scan`, (h, inputs) -> (states, h), over one block of `size` steps after the other; the last is the rest.

    Returns (states [L, ..., H], h_n [..., H]), as `scan` over all the steps would.
    """
    steps = jax.tree.leaves(inputs)[0].shape[0]
    count = steps // size if isinstance(steps, int) else 0  # a symbolic number of steps, in an export, is one block
    if count <= 1:
        return scan(h_0, inputs)
    whole = count * size

    def scan_block(h: jax.Array, block: Inputs) -> tuple[jax.Array, jax.Array]:
        states, h = scan(h, block)
        return h, states

    blocks = jax.tree.map(lambda a: a[:whole].reshape(count, size, *a.shape[1:]), inputs)
    h, states = jax.lax.scan(scan_block, h_0, blocks)
    states = states.reshape(whole, *states.shape[2:])
    if whole == steps:
        return states, h
    rest, h = scan(h, jax.tree.map(lambda a: a[whole:], inputs))
    return jnp.concatenate([states, rest]), h
