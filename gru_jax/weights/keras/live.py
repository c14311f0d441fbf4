"""Builds and runs recurrent layers in Keras itself, on its JAX backend."""

import contextlib
import importlib
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gru_jax.weights.found import require
from gru_jax.weights.keras.config import Layer

Run = Callable[..., tuple[dict[str, np.ndarray], list[list[np.ndarray]]]]


def require_keras() -> Any:
    """Imports Keras, on JAX unless another backend was chosen: its default, TensorFlow, may not be installed."""
    os.environ.setdefault("KERAS_BACKEND", "jax")
    return require("keras", "keras")


@contextlib.contextmanager
def precision(keras: Any, dtype: str) -> Iterator[None]:
    """Lets JAX and Keras compute in float64 if that is the dtype.

    A Keras layer of dtype float64 computes tanh, matmul and more in float32 on every backend but TensorFlow, because a
    table maps float64 to float32 "to be aligned with JAX's default behavior". Within this context the table does not.
    """
    if dtype != "float64":
        yield
        return
    table = getattr(importlib.import_module("keras.src.backend.common.dtypes"), "BIT64_TO_BIT32_DTYPE", {})
    narrow = dict(table)
    table["float64"] = "float64"
    try:
        if keras.backend.result_type("float64", float) != "float64":
            raise ImportError(f"This needs a Keras that can be made to compute in float64, not {keras.__version__}.")
        with jax.enable_x64(True):
            yield
    finally:
        table.update(narrow)


def build(keras: Any, layer: Layer, dtype: str, name: str | None = None, **options: Any) -> Any:
    """Makes the Keras layer that `layer` describes, with Keras's own initial weights."""
    cell = {"units": layer.units, "use_bias": layer.bias, "reset_after": layer.reset_after, "dtype": dtype}
    options |= {"return_sequences": True}
    if layer.kind in ("RNN", "GRUCell"):
        return keras.layers.RNN(keras.layers.GRUCell(**cell), go_backwards=layer.backwards, dtype=dtype, **options)
    if layer.kind == "Bidirectional":
        return keras.layers.Bidirectional(keras.layers.GRU(**cell, **options), dtype=dtype, name=name)
    return keras.layers.GRU(**cell, go_backwards=layer.backwards, name=name, **options)


def prepare(layer: Layer, arrays: Sequence[Sequence[np.ndarray]], dtype: str) -> Run:
    """Builds a layer with the given weights, and returns a function that runs it.

    Args:
      layer: what the layer computes.
      arrays: its weights, per direction, as `set_weights` takes them.
      dtype: "float32" or "float64".

    Returns:
      A function of (x, h_0, d_output, d_h_n), as `Found.original` takes them. It returns output, h_n, d_x and d_h_0,
      time-major, and the gradients of the weights, in the structure of `arrays`.

    Raises:
      ValueError: if Keras was loaded with another backend than JAX.
      ImportError: if it is not installed, or can't compute in float64.
    """
    keras = require_keras()
    if keras.backend.backend() != "jax":
        raise ValueError(f"Keras runs on {keras.backend.backend()} here; set KERAS_BACKEND=jax to compare with it.")
    with precision(keras, dtype):
        rnn = build(keras, layer, dtype, return_state=True)
        rnn.build((None, None, arrays[0][0].shape[0]))
        rnn.set_weights([array.astype(dtype) for direction in arrays for array in direction])
        weights, fixed = ([v.value for v in vs] for vs in (rnn.trainable_variables, rnn.non_trainable_variables))

    def forward(weights: list[jax.Array], x: jax.Array, h_0: jax.Array) -> tuple[jax.Array, jax.Array]:
        batch_major = jnp.swapaxes(x, 0, 1)
        (output, *h_n), _ = rnn.stateless_call(weights, fixed, batch_major, initial_state=list(h_0))
        # With go_backwards, Keras leaves the output in the order in which it has read x.
        output = jnp.flip(output, 1) if layer.backwards else output
        return jnp.swapaxes(output, 0, 1), jnp.stack(h_n)

    @jax.jit
    def differentiate(weights: list[jax.Array], x: jax.Array, h_0: jax.Array, *cotangents: jax.Array) -> Any:
        (output, h_n), pull_back = jax.vjp(forward, weights, x, h_0)
        d_weights, d_x, d_h_0 = pull_back(cotangents)
        return {"output": output, "h_n": h_n, "d_x": d_x, "d_h_0": d_h_0}, d_weights

    def run(*inputs: np.ndarray) -> tuple[dict[str, np.ndarray], list[list[np.ndarray]]]:
        with precision(keras, dtype), jax.default_matmul_precision("highest"):
            results, flat = jax.device_get(differentiate(weights, *(jnp.asarray(array, dtype) for array in inputs)))
        each = len(layer.shapes)
        return results, [flat[i : i + each] for i in range(0, len(flat), each)]

    return run
