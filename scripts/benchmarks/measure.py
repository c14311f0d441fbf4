"""Builds every contender of a case, checks that they compute the same numbers, and times them in turns."""

import functools
import time
from collections.abc import Callable, Iterator
from typing import Any

import contenders
import jax
import jax.numpy as jnp
import natives
import numpy as np
from cases import Case, make_data

SLOT = 0.02  # seconds that one contender is timed for in one round
Runs = dict[str, Callable[[], np.ndarray]]


def jitted(
    build: Callable[..., Any], case: Case, data: dict[str, Any], gradient: bool, **options: Any
) -> tuple[Any, tuple[Any, ...]]:
    """Returns the compilable forward, or gradient of parameters and x, of a JAX contender, and its arguments."""
    parameters, forward = build(case, data["weights"], **options)
    x, d_output = jnp.asarray(data["x"]), jnp.asarray(data["d_output"])
    lengths = None if data["lengths"] is None else jnp.asarray(data["lengths"])
    parameters = jax.tree.map(jnp.asarray, parameters)
    if not gradient:
        return jax.jit(forward), (parameters, x, lengths)
    loss = lambda parameters, x, lengths, d_output: jnp.vdot(forward(parameters, x, lengths), d_output)
    return jax.jit(jax.grad(loss, argnums=(0, 1))), (parameters, x, lengths, d_output)


def sequence_runs(case: Case, gradient: bool) -> Runs:
    """Every contender's run over whole sequences: its output, or the gradient of x."""
    data, runs = make_data(case), {}
    sequences = contenders.SEQUENCES | (contenders.RECOMPUTING if gradient else {})
    for name, build in sequences.items():
        if not (case.ragged and name in contenders.NO_LENGTHS):
            function, arguments = jitted(build, case, data, gradient)
            runs[name] = functools.partial(_run, function, arguments, gradient)
    runs["torch.nn.GRU"] = natives.torch_gru(case, data, gradient)
    if not gradient:
        runs["onnxruntime"] = natives.onnxruntime_gru(case, data)
    lengths = np.full(case.size[1], case.size[0]) if data["lengths"] is None else data["lengths"]
    present = np.arange(case.size[0])[:, None] < lengths
    results = {name: np.asarray(run())[present] for name, run in runs.items() if name not in contenders.OTHER_FORMULA}
    check(case, results, "torch.nn.GRU")
    if "dm-haiku" in runs:
        function, arguments = jitted(contenders.gru_jax_gru, case, data, gradient, reset_after=False)
        original = _run(function, arguments, gradient)
        check(case, {"dm-haiku": np.asarray(runs["dm-haiku"]()), "reset_after=False": np.asarray(original)}, "dm-haiku")
    return runs


def _run(function: Any, arguments: tuple[Any, ...], gradient: bool) -> jax.Array:
    results = jax.block_until_ready(function(*arguments))
    return results[1] if gradient else results


def quantized_runs(case: Case) -> Runs:
    """The int8 GRUs, and in other precisions ours and PyTorch's: the output."""
    data, runs = make_data(case), {}
    for name, build in contenders.QUANTIZED.items():
        function, arguments = jitted(build, case, data, gradient=False)
        runs[name] = functools.partial(_run, function, arguments, False)
    runs["torch.nn.GRU"] = natives.torch_quantized(case, data)
    runs["torch float32"] = natives.torch_gru(case, data, gradient=False)
    # A last bit may move a number across a rounding boundary, and bfloat16 has 8 bits: all are near one another.
    check(case, {name: run() for name, run in runs.items()}, "torch float32", 0.1)
    return runs


def check(case: Case, results: dict[str, Any], reference: str, share: float = 1e-3) -> None:
    """Raises unless all results are those of the reference, to a share of its largest."""
    bound = share * np.abs(results[reference]).max()
    for name, result in results.items():
        distance = np.abs(np.asarray(result) - results[reference]).max()
        if not distance < bound:
            raise AssertionError(f"{case}: {name} is {distance:.1e} from {reference}: not the same numbers.")


def stream_runs(case: Case) -> Runs:
    """One step a call, every state waited for before the next call, as in a live loop: the last state."""
    data = make_data(case)
    frames, h_0 = list(data["x"]), jnp.zeros((case.size[1], case.size[3]))
    runs = {}
    for name, build in contenders.STEPS.items():
        parameters, step = build(case, data["weights"])
        runs[name] = functools.partial(_stream, jax.jit(step), jax.tree.map(jnp.asarray, parameters), h_0, frames)
    runs["torch.nn.GRUCell"] = natives.torch_stream(case, data)
    runs["onnxruntime"] = natives.onnxruntime_stream(case, data)
    check(case, {name: run() for name, run in runs.items()}, "torch.nn.GRUCell")
    return runs


def _stream(step: Any, parameters: Any, h: jax.Array, frames: list[np.ndarray]) -> jax.Array:
    for x in frames:
        h = jax.block_until_ready(step(parameters, h, x))
    return h


def time_in_turns(runs: Runs, rounds: int) -> Iterator[dict[str, float]]:
    """Yields, for each round, the seconds that one call of each contender took, A B C B C A ..."""
    names = list(runs)
    for turn in range(rounds):
        seconds = {}
        start = turn % len(names)
        for name in names[start:] + names[:start]:  # so that nobody always follows the same neighbor
            run = runs[name]
            began = time.perf_counter()
            run()  # Not counted: whoever ran before left other data in the caches, and threads that still spin.
            calls = max(1, round(SLOT / (time.perf_counter() - began)))
            began = time.perf_counter()
            for _ in range(calls):
                run()
            seconds[name] = (time.perf_counter() - began) / calls
        yield seconds


def compile_cost(name: str, case: Case, gradient: bool) -> dict[str, float]:
    """Seconds to trace and compile a JAX contender, and bytes of temporaries in what is compiled."""
    function, arguments = jitted((contenders.SEQUENCES | contenders.RECOMPUTING)[name], case, make_data(case), gradient)
    seconds, bytes_ = [], 0
    for _ in range(3):
        jax.clear_caches()
        began = time.perf_counter()
        compiled = function.lower(*arguments).compile()
        seconds.append(time.perf_counter() - began)
        bytes_ = compiled.memory_analysis().temp_size_in_bytes
    return {"seconds": min(seconds), "bytes": bytes_}
