"""Answers requests with a GRU that `export` wrote to a file: all that a server needs is jax and numpy.

Each request is x [N, L, I] and seq_lengths [N], of any N and L: `x_0`, `seq_lengths_0`, `x_1`, ... in one .npz file.
The answers are `output_0` [N, L, D*H] and `h_n_0` [num_layers*D, N, H], and so on, in another. Each new shape is
compiled once, so a server that must not pause pads its batches to a few shapes: padding has no influence.
"""

import argparse
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.export
import numpy as np

Arrays = dict[str, Any]
Function = Callable[[np.ndarray, np.ndarray], tuple[jax.Array, jax.Array]]


def read(path: Path, weights: Path | None = None) -> Function:
    """Returns (x, seq_lengths) -> (output, h_n), with the weights in the file or those in a file of their own."""
    try:
        # Compiled here: `call` by itself would compile at every call.
        function = jax.jit(jax.export.deserialize(bytearray(path.read_bytes())).call)
    except OSError:
        raise
    except Exception as error:  # a damaged file fails as its bytes have it
        raise ValueError(f"{path} is no exported function: {error}") from error
    if weights is None:
        return function
    params: dict[str, dict[str, jax.Array]] = {}
    for name, array in read_arrays(weights).items():
        cell, _, key = name.partition("/")  # "l0_reverse/kernel_hh"
        params.setdefault(cell, {})[key] = jax.device_put(array)  # once, not at every call
    return lambda x, seq_lengths: function(params, x, seq_lengths)


def read_arrays(path: Path) -> Arrays:
    """Reads an .npz file."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return dict(file)
    except (AttributeError, EOFError, TypeError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is no .npz file of arrays.") from error


def answer(function: Function, requests: Arrays) -> Arrays:
    """Answers one request after the other."""
    answers: Arrays = {}
    for i in range(len(requests) // 2):
        output, h_n = function(requests[f"x_{i}"], requests[f"seq_lengths_{i}"])
        answers |= {f"output_{i}": np.asarray(output), f"h_n_{i}": np.asarray(h_n)}
    return answers


def main(arguments: list[str] | None = None) -> int:
    """Returns 0, or 2 if a file can't be read or the requests don't fit the function."""
    parser = argparse.ArgumentParser(prog="scripts/example serve", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("file", type=Path, help="that export wrote")
    parser.add_argument("requests", type=Path, help="an .npz file of x_0, seq_lengths_0, x_1, ...")
    parser.add_argument("answers", type=Path, help="an .npz file to write")
    parser.add_argument("--weights", type=Path, metavar="FILE", help="if they are not in the exported file")
    options = parser.parse_args(arguments)
    try:
        answers = answer(read(options.file, options.weights), read_arrays(options.requests))
        np.savez(options.answers, **answers)
    except (OSError, KeyError, TypeError, ValueError) as error:
        print(f"scripts/example serve: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
