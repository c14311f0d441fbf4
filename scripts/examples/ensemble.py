"""Trains 16 GRUs at once by `jax.vmap`, and one after the other: the same losses, and the time of each.

The parameters of all are one tree whose arrays have one more axis, and so are the states of the optimizer, so an update
of all is `jax.vmap` of the update of one. On a CPU that pays where the GRUs are so small that dispatching their
operations takes longer than computing them; try `--hidden 64`, where it does not. The task is the adding problem
(Hochreiter and Schmidhuber 1997, "Long Short-Term Memory"): of L random numbers two are marked, and their sum is to be
told at the end.
"""

import argparse
import functools
import operator
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich import box
from rich.console import Console
from rich.table import Table

from gru_jax import GRUConfig, gru, init_params

TOLERANCE, JUDGED = 1e-4, 100  # of losses that begin near 1, and updates: longer training amplifies any last bit
optimizer = optax.adam(0.01)


# A tree of "gru", the GRUParams, and "weight" [H] and "bias" [], which read the sum off the last state.
Learner = dict[str, Any]


class Batch(NamedTuple):
    """Sequences x [L, N, 2], numbers and marks, and their sums y [N]. Several batches have one more axis in front."""

    x: np.ndarray
    y: np.ndarray


def adding_problem(rng: np.random.Generator, batches: int, steps: int, batch: int) -> Batch:
    """Draws batches: x [B, L, N, 2], y [B, N]."""
    numbers = rng.random((batches, steps, batch), np.float32)
    # The two largest of a random permutation are at two random places.
    marks = rng.random((batches, steps, batch)).argsort(axis=1) >= steps - 2
    return Batch(np.stack([numbers, marks], -1).astype(np.float32), (numbers * marks).sum(1))


def begin(key: jax.Array, hidden: int) -> Learner:
    """Draws the parameters of one learner."""
    bound = hidden**-0.5
    weight = jax.random.uniform(jax.random.fold_in(key, 1), (hidden,), minval=-bound, maxval=bound)
    return {"gru": init_params(key, GRUConfig(2, hidden)), "weight": weight, "bias": jnp.zeros(())}


def predict(learner: Learner, x: jax.Array) -> jax.Array:
    """The sums [N] of x [L, N, 2]."""
    _, h_n = gru(learner["gru"], x)
    return h_n[-1] @ learner["weight"] + learner["bias"]


def update(learner: Learner, state: optax.OptState, batch: Batch) -> tuple[Learner, optax.OptState, jax.Array]:
    """One update of one learner; returns its loss before it, too."""

    def loss_of(learner: Learner) -> jax.Array:
        return jnp.mean((predict(learner, jnp.asarray(batch.x)) - batch.y) ** 2)

    loss, gradient = jax.value_and_grad(loss_of)(learner)
    changes, state = optimizer.update(gradient, state)
    return jax.tree.map(jnp.add, learner, changes), state, loss


def train(update: Callable, learner: Learner, state: optax.OptState, batches: Batch) -> tuple[Learner, jax.Array]:
    """Goes through batches [B, ...]; returns the trained learner and the losses [B]: of one or, vmapped, of all."""

    def advance(carry: tuple, batch: Batch) -> tuple[tuple, jax.Array]:
        learner, state, loss = update(*carry, batch)
        return (learner, state), loss

    (learner, _), losses = jax.lax.scan(advance, (learner, state), batches)
    return learner, losses


def train_together(learners: Learner, batches: Batch) -> tuple[Learner, jax.Array]:
    """All at once on the same batches: losses [B, M]. Batches of their own would be `in_axes=(0, 0, 0)`."""
    return train(jax.vmap(update, in_axes=(0, 0, None)), learners, jax.vmap(optimizer.init)(learners), batches)


def train_one(learner: Learner, batches: Batch) -> tuple[Learner, jax.Array]:
    """One of them: losses [B]."""
    return train(update, learner, optimizer.init(learner), batches)


def compare(members: int, hidden: int, updates: int, steps: int, batch: int, console: Console) -> bool:
    """Trains both ways and prints their times and losses; returns whether the losses are the same."""
    rng = np.random.default_rng(0)
    batches, fresh = adding_problem(rng, updates, steps, batch), adding_problem(rng, 1, steps, 1000)
    learners = jax.jit(jax.vmap(functools.partial(begin, hidden=hidden)))(jax.random.split(jax.random.key(0), members))
    each = [jax.tree.map(operator.itemgetter(i), learners) for i in range(members)]
    begun = time.perf_counter()
    together = jax.jit(train_together).lower(learners, batches).compile()
    between = time.perf_counter()
    one = jax.jit(train_one).lower(each[0], batches).compile()
    compiling = {"vmap": between - begun, "a loop": time.perf_counter() - between}

    begun = time.perf_counter()
    trained, losses = jax.block_until_ready(together(learners, batches))
    between = time.perf_counter()
    losses_of_loop = np.stack([np.asarray(one(learner, batches)[1]) for learner in each], axis=1)
    running = {"vmap": between - begun, "a loop": time.perf_counter() - between}

    columns = ("trained by", "compiled, s", "run, s", "both, s")
    table = Table(*columns, title=f"{members} GRUs, {updates} updates of each", box=box.SIMPLE)
    for way, seconds in running.items():
        table.add_row(way, *(f"{number:.2f}" for number in (compiling[way], seconds, compiling[way] + seconds)))
    console.print(table)
    predicted = jax.jit(jax.vmap(predict, in_axes=(0, None)))(trained, fresh.x[0])  # [M, N]
    own, mean = (np.mean((p - fresh.y[0]) ** 2, axis=-1) for p in (predicted, predicted.mean(0)))
    console.print(f"Loss on 1000 fresh sequences: {own.min():.1e} to {own.max():.1e}; of the mean of all {mean:.1e}.")
    different = np.abs(losses - losses_of_loop).max(axis=1)  # [B]
    early, late = different[:JUDGED].max(), different.max()
    judged = min(JUDGED, updates)
    console.print(f"Largest difference of losses, vmap and loop: {early:.1e} in {judged} updates, {late:.1e} in all.")
    return bool(early <= TOLERANCE)


def main(arguments: list[str] | None = None) -> int:
    """Returns 0, or 1 if the losses differ, or 2 if a size is none."""
    parser = argparse.ArgumentParser(prog="scripts/example ensemble", description=(__doc__ or "").splitlines()[0])
    sizes = {"members": (16, 1), "hidden": (16, 1), "updates": (400, 1), "steps": (30, 2), "batch": (16, 1)}
    for name, (default, _) in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=default, metavar="X", help=f"({default})")
    options = vars(parser.parse_args(arguments))
    for name, (_, least) in sizes.items():
        if options[name] < least:
            print(
                f"scripts/example ensemble: expected --{name} of at least {least}, got {options[name]}.",
                file=sys.stderr,
            )
            return 2
    return 0 if compare(**options, console=Console(highlight=False, soft_wrap=True)) else 1


if __name__ == "__main__":
    sys.exit(main())
