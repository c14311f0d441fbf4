"""Three ways to serve whole sequences of one shape: how soon each is ready, how long a call takes, how far off."""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from examples._models import Model
from examples.serve import read
from gru_jax.weights.onnx import to_onnx

CALLS = 20


def exported(files: list[Path], x: np.ndarray, seq_lengths: np.ndarray) -> Callable[[], Any]:
    """The function in the file, compiled for this shape when it is first called."""
    function = read(*files)
    return lambda: function(x, seq_lengths)


def compiled(forward: Callable, model: Model, x: np.ndarray, seq_lengths: np.ndarray) -> jax.stages.Compiled:
    """The function compiled for this shape before any call; another shape is an error, not a pause to compile."""
    return jax.jit(forward).lower(model.params, x, seq_lengths).compile()


def in_onnxruntime(model: Model, x: np.ndarray) -> Callable[[], Any]:
    """An ONNX model of any shape, without lengths: PyTorch's exporter writes none either."""
    import onnxruntime

    config = dataclasses.replace(model.config, batch_first=True)
    session = onnxruntime.InferenceSession(to_onnx(config, model.params).SerializeToString())
    h_0 = np.zeros((config.num_layers * config.num_directions, len(x), config.hidden_size), np.float32)
    return lambda: session.run(None, {"x": x, "h_0": h_0})


def show_ways(
    forward: Callable, model: Model, files: list[Path], x: np.ndarray, exact: np.ndarray, console: Console
) -> dict[str, float]:
    """Prints a table of the ways to serve x [N, L, I], whose output is `exact`; returns how far each is from that."""
    seq_lengths, distances = np.full(x.shape[0], x.shape[1], np.int32), {}
    table = Table(
        *("served as", "ready after, s", "a call, ms", "to float64"),
        title=f"Whole sequences, N, L = {x.shape[0]}, {x.shape[1]}",
        box=box.SIMPLE,
    )

    def measure(name: str, make: Callable[[], Callable[[], Any]]) -> None:
        started = time.perf_counter()
        run = make()
        output = np.asarray(run()[0])
        ready, seconds = time.perf_counter() - started, []
        for _ in range(CALLS):
            started = time.perf_counter()
            jax.block_until_ready(run())
            seconds.append(time.perf_counter() - started)
        distances[name] = float(np.abs(output - exact).max())
        table.add_row(name, f"{ready:.2f}", f"{np.median(seconds) * 1e3:.2f}", f"{distances[name]:.1e}")

    def ahead() -> Callable[[], Any]:
        function = compiled(forward, model, x, seq_lengths)
        memory = function.memory_analysis()
        if memory is not None:
            sizes = (memory.argument_size_in_bytes, memory.output_size_in_bytes, memory.temp_size_in_bytes)
            arguments, results, temporaries = (f"{size / 1e6:.2f}" for size in sizes)
            table.caption = f"Compiled: MB of arguments {arguments}, results {results}, temporaries {temporaries}"
        return lambda: function(model.params, x, seq_lengths)

    measure("the exported file", lambda: exported(files, x, seq_lengths))
    measure("compiled ahead", ahead)
    try:
        measure("ONNX, in onnxruntime", lambda: in_onnxruntime(model, x))
    except ImportError as error:
        table.add_row("ONNX, in onnxruntime", str(error))
    console.print(table)
    return distances
