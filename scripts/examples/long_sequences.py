"""The gradient through 100,000 steps: stored, recomputed and truncated; its memory, its time, what truncation loses.

    remat=False   stores the gates of every step; not run where that takes more than `--limit` GB
    remat=True    stores a state every sqrt(L) steps and runs the steps between again: the same gradient. For a sequence
                  as long as this one it is what `gru` does by default
    by chunks     computes the loss, too, again, chunk by chunk: the same gradient, with no array of L steps in memory
    truncated     the gradient ends where its chunk of K steps begins, as if the state there were given

The weights are random, but the units remember up to about T steps, by the biases of their update gates (Tallec and
Ollivier 2018, https://arxiv.org/abs/1804.11188): in a GRU that forgets at once there is nothing to truncate.
"""

import argparse
import math
import sys
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from gru_jax import GRUConfig, gru, init_params
from gru_jax.params import GRUParams

INPUTS = 8
SIZES = (100, 1000, 10000)
SAME = 1e-4  # relative distance of two float32 gradients that are the same but for rounding
Loss = Callable[[GRUParams, jax.Array, jax.Array], tuple[jax.Array, jax.Array]]


def square_loss(
    params: GRUParams, h: jax.Array, x: jax.Array, remat: bool | None = None
) -> tuple[jax.Array, jax.Array]:
    """A sum over the steps of x [K, N, I], as any loss with a term at each step is, and the state after them."""
    output, h = gru(params, x, h, remat=remat)
    return jnp.sum(output**2), h


def truncated_gradient(loss: Loss, params: GRUParams, h: jax.Array, x: jax.Array, size: int) -> GRUParams:
    """Truncated backpropagation through time: states are exact, gradients reach back to where their chunk begins.

    Args:
      loss: (params, h, chunk [K, ...]) -> (the sum over the chunk's steps, the state after them).
      params: what is differentiated by.
      h: the state before the first step.
      x: [L, ...].
      size: K, the steps of a chunk; the last chunk is the rest.

    Returns:
      The gradient of the sum over all steps but for what goes by way of earlier chunks, in the memory of one chunk.
    """

    def add_chunk(carry: tuple[jax.Array, GRUParams], chunk: jax.Array) -> tuple[tuple[jax.Array, GRUParams], None]:
        h, total = carry
        # Within its chunk the state is a given number anyhow; stop_gradient keeps that so if this is differentiated.
        gradient, h = jax.grad(loss, has_aux=True)(params, jax.lax.stop_gradient(h), chunk)
        return (h, jax.tree.map(jnp.add, total, gradient)), None

    chunks, rest = split(x, size)
    carry, _ = jax.lax.scan(add_chunk, (h, jax.tree.map(jnp.zeros_like, params)), chunks)
    if len(rest):
        carry, _ = add_chunk(carry, rest)
    return carry[1]


def loss_by_chunks(loss: Loss, params: GRUParams, h: jax.Array, x: jax.Array, size: int) -> jax.Array:
    """The sum over all steps; its gradient is the whole one, and keeps nothing of a chunk but the state before it."""
    # Needed outside loops only; it would hinder fusion in one.
    again = jax.checkpoint(loss, prevent_cse=False)

    def add_chunk(carry: tuple[jax.Array, jax.Array], chunk: jax.Array) -> tuple[tuple[jax.Array, jax.Array], None]:
        h, total = carry
        value, h = again(params, h, chunk)
        return (h, total + value), None

    chunks, rest = split(x, size)
    carry, _ = jax.lax.scan(add_chunk, (h, jnp.zeros(())), chunks)
    if len(rest):
        carry, _ = add_chunk(carry, rest)
    return carry[1]


def split(x: jax.Array, size: int) -> tuple[jax.Array, jax.Array]:
    """Returns x [L, ...] as chunks [L // size, size, ...], and the steps that are left."""
    if not 1 <= size <= len(x):
        raise ValueError(f"expected chunks of 1 to L = {len(x)} steps, got {size}.")
    whole = len(x) - len(x) % size
    return x[:whole].reshape(-1, size, *x.shape[1:]), x[whole:]


def remembering(params: GRUParams, steps: int) -> GRUParams:
    """Chrono initialization: z = 1 - 1/t, so that units remember about t steps, t within 2..`steps`."""
    cell, hidden = params["l0"], params["l0"]["kernel_hh"].shape[0]
    z = slice(hidden, 2 * hidden)
    bias = np.log(np.random.default_rng(1).uniform(1, steps - 1, hidden))
    return {"l0": {**cell, "bias_ih": cell["bias_ih"].at[z].set(bias), "bias_hh": cell["bias_hh"].at[z].set(0)}}


def measure(way: Callable[..., GRUParams], args: tuple, limit: float) -> tuple[float, float, np.ndarray | None]:
    """Returns the MB of the compiled gradient's temporaries, its seconds, and all its numbers if MB is within limit."""
    compiled = jax.jit(way).lower(*args).compile()
    memory = compiled.memory_analysis()
    size = memory.temp_size_in_bytes / 1e6 if memory else 0.0
    if size > limit:
        return size, 0.0, None
    started = time.perf_counter()
    leaves = jax.tree.leaves(jax.block_until_ready(compiled(*args)))
    seconds = time.perf_counter() - started
    return size, seconds, np.concatenate([np.ravel(leaf).astype(np.float64) for leaf in leaves])


def main(arguments: list[str] | None = None) -> int:
    """Returns 0, or 1 if whole gradients differ, or 2 if the sizes don't fit together."""
    parser = argparse.ArgumentParser(prog="scripts/example long_sequences", description=(__doc__ or "").splitlines()[0])
    sizes = {"steps": (100_000, 1), "batch": (4, 1), "hidden": (64, 1), "memory": (1000, 2)}  # by default, and at least
    for name, (default, _) in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=default, metavar="X", help=f"({default})")
    parser.add_argument("--chunks", type=int, nargs="+", metavar="K", help="to truncate to (100 1000 10000)")
    parser.add_argument("--limit", type=float, default=1.0, metavar="GB", help="of what remat=False may take (1)")
    options = parser.parse_args(arguments)
    steps, batch, hidden, memory = (getattr(options, name) for name in sizes)
    try:
        for name, (_, least) in sizes.items():
            if getattr(options, name) < least:
                raise ValueError(f"expected --{name} of at least {least}, got {getattr(options, name)}.")
        x = jnp.asarray(np.random.default_rng(0).standard_normal((steps, batch, INPUTS), np.float32))
        chunks = options.chunks or [size for size in SIZES if size <= steps] or [steps]
        for size in chunks:
            split(x, size)
    except ValueError as error:
        print(f"scripts/example long_sequences: {error}", file=sys.stderr)
        return 2
    params = remembering(init_params(jax.random.key(0), GRUConfig(INPUTS, hidden)), memory)
    args = params, jnp.zeros((1, batch, hidden)), x
    size = chunks[0]
    whole: dict[str, Callable[..., GRUParams]] = {
        "remat=True": jax.grad(lambda params, h, x: square_loss(params, h, x, True)[0]),
        "remat=False": jax.grad(lambda params, h, x: square_loss(params, h, x, False)[0]),
        f"by chunks of {size}": jax.grad(lambda params, h, x: loss_by_chunks(square_loss, params, h, x, size)),
    }
    truncated = {
        f"truncated to {size}": lambda params, h, x, size=size: truncated_gradient(square_loss, params, h, x, size)
        for size in chunks
    }
    columns = ("gradient", "temporaries, MB", "seconds", "cosine", "relative norm")
    title = f"L, N, H = {steps}, {batch}, {hidden}; units remember up to {memory} steps"
    table, reference, passed = Table(*columns, title=title, box=box.SIMPLE), None, True
    for name, way in (whole | truncated).items():
        megabytes, seconds, gradient = measure(way, args, options.limit * 1e3 if name == "remat=False" else math.inf)
        if gradient is None:
            table.add_row(name, f"{megabytes:.1f}", "not run")
            continue
        reference = gradient if reference is None else reference
        norm, full = np.linalg.norm(gradient), np.linalg.norm(reference)
        numbers = (f"{gradient @ reference / norm / full:.4f}", f"{norm / full:.4f}")
        table.add_row(name, f"{megabytes:.1f}", f"{seconds:.2f}", *numbers)
        passed &= name in truncated or bool(np.linalg.norm(gradient - reference) <= SAME * full)
    Console().print(table)
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
