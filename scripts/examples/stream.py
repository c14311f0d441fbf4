"""Streams frames through a GRU one at a time: the latency of a frame, and that the numbers are the whole sequence's.

A live source waits for each result, so what counts is how long one call takes. What may shorten it:

    donated   the step writes the new state where the old one was
    ahead     `jax.jit(...).lower(...).compile()`: nothing is compiled when the first frame comes
    sync      the step runs in the thread that calls it. By default JAX hands it to another one and returns at once,
              which gains nothing where the caller waits. The flag is read when the CPU client is made: set it before
              the first array is, as is done here in a process of its own
"""

import argparse
import functools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from examples._models import NAMES, open_model
from gru_jax import GRUConfig, gru, infer_config, init_params, stacked_step
from gru_jax.params import GRUParams
from gru_jax.verify import judge

CHUNKS, ROUNDS = (1, 10, 64), 3
Step = Callable[[GRUParams, jax.Array, np.ndarray], tuple[jax.Array, jax.Array]]

step = jax.jit(stacked_step)
donating_step = jax.jit(stacked_step, donate_argnames="h")


def first_state(params: GRUParams) -> jax.Array:
    """Zeros [num_layers, H]."""
    config = infer_config(params)
    return jnp.zeros((config.num_layers, config.hidden_size))


def frame_by_frame(step: Step, params: GRUParams, frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Feeds frames [L, I] one at a time; returns the outputs [L, H] and the seconds [L] that each took."""
    h, outputs, seconds = first_state(params), [], []
    for frame in frames:
        started = time.perf_counter()
        y, h = step(params, h, frame)  # a donated state is gone after the call, so its name goes to the new one
        outputs.append(np.asarray(y))  # waits
        seconds.append(time.perf_counter() - started)
    return np.stack(outputs), np.array(seconds)


def chunk_by_chunk(params: GRUParams, frames: np.ndarray, size: int) -> np.ndarray:
    """Feeds frames [L, I] in chunks of `size`, the last one shorter; returns the outputs [L, H]."""
    run, h, outputs = jax.jit(gru), first_state(params), []
    for first in range(0, len(frames), size):
        output, h = run(params, frames[first : first + size], h)
        outputs.append(output)
    return np.concatenate(outputs)


def show_equality(params: GRUParams, frames: np.ndarray, console: Console) -> bool:
    """Prints how far each way is from the whole sequence; returns whether all are as exact as that is."""
    ways = {"frame by frame": frame_by_frame(donating_step, params, frames)[0]}
    ways |= {f"chunks of {size}": chunk_by_chunk(params, frames, size) for size in CHUNKS}
    whole = np.asarray(jax.jit(gru)(params, frames)[0])
    with jax.enable_x64(True):
        wide = functools.partial(jnp.asarray, dtype=jnp.float64)
        exact = np.asarray(jax.jit(gru)(jax.tree.map(wide, params), wide(frames))[0])
    columns = ("fed", "largest difference", "to float64", "the whole's", "verdict")
    table = Table(*columns, title=f"{len(frames)} frames, beside the whole sequence at once", box=box.SIMPLE)
    passed = True
    for name, outputs in ways.items():
        verdict = judge(name, outputs, whole, exact)
        numbers = (f"{d:.1e}" for d in (np.abs(outputs - whole).max(), verdict.distance, verdict.own))
        table.add_row(name, *numbers, "[green]PASS[/]" if verdict.passed else "[red]FAIL[/]")
        passed &= verdict.passed
    console.print(table)
    return passed


def latencies(params: GRUParams, frames: np.ndarray) -> dict[str, list[float]]:
    """The median and the 99th percentile of a frame's microseconds, for each way to compile the step."""
    ahead = donating_step.lower(params, first_state(params), frames[0]).compile()
    ways: dict[str, Step] = {"jit": step, "jit, donated": donating_step, "ahead, donated": ahead}
    # All take turns. The first round compiles, and warms up.
    rounds = [{name: frame_by_frame(way, params, frames)[1] for name, way in ways.items()} for _ in range(ROUNDS + 1)]
    seconds = {name: np.concatenate([one[name] for one in rounds[1:]]) for name in ways}
    return {name: np.percentile(each * 1e6, [50, 99]).tolist() for name, each in seconds.items()}


def show_latencies(arguments: list[str], console: Console) -> None:
    """Prints the latencies with and without asynchronous dispatch, each measured in a process of its own."""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)}
    command = [sys.executable, "-m", "examples.stream", *arguments, "--measure"]
    measured = [
        json.loads(subprocess.run([*command, dispatch], env=environment, stdout=subprocess.PIPE, check=True).stdout)
        for dispatch in ("async", "sync")
    ]
    columns = ("step", "async: median", "99 %", "sync: median", "99 %")
    table = Table(*columns, title="Microseconds a frame, its result waited for", box=box.SIMPLE)
    for name in measured[0]:
        table.add_row(name, *(f"{microseconds:.0f}" for way in measured for microseconds in way[name]))
    console.print(table)


def open_source(options: argparse.Namespace) -> tuple[GRUParams, np.ndarray]:
    """A published model and characters that it knows, or random weights and random numbers; frames are [L, I]."""
    rng = np.random.default_rng(0)
    if options.frames < 1:
        raise ValueError(f"expected --frames of at least 1, got {options.frames}.")
    if options.hidden is not None:
        layers = 1 if options.layers is None else options.layers
        params = init_params(jax.random.key(0), GRUConfig(options.hidden, options.hidden, layers))
        return params, rng.standard_normal((options.frames, options.hidden), np.float32)
    if options.layers is not None:
        raise ValueError(f"{options.model} has its layers: --layers goes with --hidden.")
    _, params, embedding = open_model(options.model)
    return params, embedding[rng.integers(len(embedding), size=options.frames)]


def main(arguments: list[str] | None = None) -> int:
    """Returns 0, or 1 if streaming gives other numbers, or 2 if the model can't be streamed."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(prog="scripts/example stream", description=(__doc__ or "").splitlines()[0])
    model = parser.add_mutually_exclusive_group()
    model.add_argument("--model", choices=NAMES, default="g2p-en", help="a published model (g2p-en)")
    model.add_argument("--hidden", type=int, metavar="H", help="random weights of H features in its place")
    parser.add_argument("--layers", type=int, metavar="K", help="of random weights (1)")
    parser.add_argument("--frames", type=int, default=1000, metavar="L", help="how many (1000)")
    parser.add_argument("--measure", choices=["async", "sync"], help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.measure:
        jax.config.update("jax_cpu_enable_async_dispatch", options.measure == "async")
    try:
        params, frames = open_source(options)
        if options.measure:
            print(json.dumps(latencies(params, frames)))
            return 0
        passed = show_equality(params, frames, Console())
        show_latencies(arguments, Console())
    except ValueError as error:  # a bidirectional model is refused by stacked_step
        print(f"scripts/example stream: {error}", file=sys.stderr)
        return 2
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
