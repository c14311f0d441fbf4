"""Exports a ported GRU to a file that runs without gru_jax: any batch, any length, the weights inside or beside it.

By default the weights are in the file: it is all that a server needs, its inputs are x and seq_lengths alone, and no
file of weights can be forgotten or be another model's. `--weights beside` makes them the function's first argument, in
an .npz file of their own: for one function and several or changing weights, or for weights to be sharded over devices.

`serve` then answers requests in a process that can't import gru_jax, and its numbers are compared with gru_jax's. The
same function compiled for one shape, and an ONNX model for onnxruntime, are the other ways to serve.
"""

import argparse
import subprocess
import sys
from pathlib import Path

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from examples._models import NAMES, Model, open_model
from examples._ways import show_ways
from examples.serve import Arrays, answer, read_arrays
from gru_jax import gru
from gru_jax.params import GRUParams
from gru_jax.verify import judge, typical

SHAPES = [(1, 1), (1, 30), (3, 30), (16, 7), (64, 30)]  # N, L of the requests
# What the server's process runs: there, whatever would import gru_jax gets an ImportError.
WITHOUT_US = (
    "import runpy, sys; sys.modules['gru_jax'] = None; del sys.argv[0]; "
    "runpy.run_path(sys.argv[0], run_name='__main__')"
)


def forward(params: GRUParams, x: jax.Array, seq_lengths: jax.Array) -> tuple[jax.Array, jax.Array]:
    """What is served: x [N, L, I] and seq_lengths [N] -> output [N, L, D*H] and h_n [num_layers*D, N, H]."""
    return gru(params, x, seq_lengths=seq_lengths, batch_first=True, precision="highest")


def export(model: Model, folder: Path, beside: bool = False, platforms: list[str] | None = None) -> list[Path]:
    """Writes the function for any N and L of at least 1, and the weights if they go beside it; returns the files."""
    batch, steps = jax.export.symbolic_shape("N, L")
    x = jax.ShapeDtypeStruct((batch, steps, model.config.input_size), jnp.float32)
    seq_lengths = jax.ShapeDtypeStruct((batch,), jnp.int32)
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / "gru.jax"]
    if beside:
        exported = jax.export.export(jax.jit(forward), platforms=platforms)(model.params, x, seq_lengths)
        files.append(folder / "weights.npz")
        named: Arrays = {f"{cell}/{key}": a for cell, arrays in model.params.items() for key, a in arrays.items()}
        np.savez(files[1], **named)
    else:
        inside = jax.jit(lambda x, seq_lengths: forward(model.params, x, seq_lengths))
        exported = jax.export.export(inside, platforms=platforms)(x, seq_lengths)
    files[0].write_bytes(exported.serialize())
    return files


def make_requests(model: Model, shapes: list[tuple[int, int]]) -> Arrays:
    """Characters that the model knows, in sequences of 0 to L of them."""
    rng, requests = np.random.default_rng(0), Arrays()
    for i, (batch, steps) in enumerate(shapes):
        requests[f"x_{i}"] = model.embedding[rng.integers(len(model.embedding), size=(batch, steps))]
        requests[f"seq_lengths_{i}"] = np.linspace(steps, 0, batch).astype(np.int32)
    return requests


def ask(files: list[Path], requests: Arrays) -> Arrays:
    """Has `serve`, in a process of its own that gru_jax can't be imported in, answer the requests."""
    asked, answered = (files[0].with_name(f"{name}.npz") for name in ("requests", "answers"))
    np.savez(asked, **requests)
    weights = ["--weights", str(files[1])] if len(files) > 1 else []
    serve = [str(Path(__file__).with_name("serve.py")), str(files[0]), str(asked), str(answered), *weights]
    subprocess.run([sys.executable, "-I", "-c", WITHOUT_US, *serve], check=True)
    return read_arrays(answered)


def compute(params: GRUParams, requests: Arrays, dtype: str = "float32") -> Arrays:
    """What gru_jax itself answers."""
    with jax.enable_x64(dtype == "float64"):
        params = jax.tree.map(lambda a: jnp.asarray(a, dtype), params)
        function = jax.jit(lambda x, seq_lengths: forward(params, x.astype(dtype), seq_lengths))
        return answer(function, requests)


def show_answers(model: Model, files: list[Path], shapes: list[tuple[int, int]], console: Console) -> bool:
    """Prints how far the server's answers are from gru_jax's; returns whether they are as exact."""
    requests = make_requests(model, shapes)
    answers, ours = ask(files, requests), compute(model.params, requests)
    exact = compute(model.params, requests, "float64")
    columns = ("N, L", "largest difference", "to float64", "gru_jax's")
    table = Table("", *columns, title="A server's answers, beside gru_jax's", box=box.SIMPLE)
    passed = True
    for name in ("output", "h_n"):
        trios = [[arrays[f"{name}_{i}"] for arrays in (answers, ours, exact)] for i in range(len(shapes))]
        verdicts = [judge(name, *trio) for trio in trios]
        for i, (shape, verdict, (a, b, _)) in enumerate(zip(shapes, verdicts, trios, strict=True)):
            difference = "0, bit for bit" if np.array_equal(a, b) else f"{np.abs(a - b).max():.1e}"
            numbers = (f"{distance:.1e}" for distance in (verdict.distance, verdict.own))
            table.add_row("" if i else name, ", ".join(map(str, shape)), difference, *numbers)
        passed &= typical(verdicts).passed  # over a single request either may be unlucky
    console.print(table)
    console.print("[green]PASS[/]" if passed else "[red]FAIL[/]")
    return passed


def main(arguments: list[str] | None = None) -> int:
    """Returns 0, or 1 if the server's answers are other numbers, or 2 if nothing can be written."""
    parser = argparse.ArgumentParser(prog="scripts/example export", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", choices=NAMES, default="uzmorph", help="a published model (uzmorph)")
    parser.add_argument("--weights", choices=["inside", "beside"], default="inside", help="of the file (inside)")
    platforms = ["cpu", "cuda", "rocm", "tpu"]
    parser.add_argument("--platforms", nargs="+", choices=platforms, help="where the file can run (on what is here)")
    parser.add_argument("--out", type=Path, default=Path("runs/export"), metavar="FOLDER", help="(runs/export)")
    options, console = parser.parse_args(arguments), Console(highlight=False)
    model = open_model(options.model)
    try:
        files = export(model, options.out, options.weights == "beside", options.platforms)
    except (ImportError, OSError) as error:  # flatbuffers is not installed, or the folder is none
        print(f"scripts/example export: {error}", file=sys.stderr)
        return 2
    for path in files:
        console.print(f"{path}: {path.stat().st_size / 1e6:.2f} MB")
    passed = show_answers(model, files, SHAPES, console)
    whole = make_requests(model, SHAPES[-1:])
    whole["seq_lengths_0"][:] = SHAPES[-1][1]
    show_ways(forward, model, files, whole["x_0"], compute(model.params, whole, "float64")["output_0"], console)
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
