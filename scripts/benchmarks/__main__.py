"""Times gru_jax beside the GRUs that a Python user could pick, on the CPU: see README.md, "Speed and memory"."""

import argparse
import json
import os
import platform
import statistics
import sys
import time
import warnings
from importlib import metadata
from pathlib import Path
from typing import Any

import contenders
import jax
import measure
import report
from cases import COMPILED, LONG, QUANTIZED, SEQUENCES, STREAMS, Case, make_data
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

PACKAGES = ["jax", "torch", "flax", "equinox", "dm-haiku", "keras", "onnxruntime"]


def summarize(rounds: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    """The minimum and the median of every contender's seconds."""
    return {
        name: {"minimum": min(r[name] for r in rounds), "median": statistics.median(r[name] for r in rounds)}
        for name in rounds[0]
    }


def jobs(rounds: int) -> list[tuple[str, str, Any]]:
    """Everything that can be measured: (kind, label, a function that measures it)."""

    def timed(case: Case, runs: Any) -> dict[str, Any]:
        seconds = summarize(list(measure.time_in_turns(runs(), rounds)))
        return {"case": str(case), "seconds": seconds}

    def cost(name: str, case: Case, gradient: bool, label: str) -> dict[str, Any]:
        return {"label": label, "name": name, **measure.compile_cost(name, case, gradient)}

    def long(name: str, case: Case, label: str) -> dict[str, Any]:
        result = cost(name, case, True, label)
        if case.size[0] == LONG[-1] and name != "flax.linen":
            build = (contenders.SEQUENCES | contenders.RECOMPUTING)[name]
            function, arguments = measure.jitted(build, case, make_data(case), True)
            jax.block_until_ready(function(*arguments))
            start = time.perf_counter()
            jax.block_until_ready(function(*arguments))
            result["run"] = time.perf_counter() - start
        return result

    found: list[tuple[str, str, Any]] = []
    for kind, gradient in (("forward", False), ("gradient", True)):
        for case in SEQUENCES:
            runs = lambda case=case, gradient=gradient: measure.sequence_runs(case, gradient)
            found.append((kind, str(case), lambda case=case, runs=runs: timed(case, runs)))
    for case in STREAMS:
        runs = lambda case=case: measure.stream_runs(case)
        found.append(("stream", str(case), lambda case=case, runs=runs: timed(case, runs)))
    for case in QUANTIZED:
        runs = lambda case=case: measure.quantized_runs(case)
        found.append(("quantized", str(case), lambda case=case, runs=runs: timed(case, runs)))
    for case in COMPILED:
        for gradient in (False, True):
            label = f"{'gradient' if gradient else 'forward'} {case}"
            for name in ("gru_jax", *(["gru_jax remat"] if gradient else []), "flax.linen", "flax.nnx", "equinox"):
                found.append(("compile", label, lambda n=name, c=case, g=gradient, label=label: cost(n, c, g, label)))
    for steps in LONG:
        case = Case((steps, 8, 96, 96))
        for name in ("gru_jax", "gru_jax remat", "flax.linen"):
            found.append(("memory", f"{steps} steps", lambda n=name, c=case, s=steps: long(n, c, f"{s} steps")))
    return found


def machine() -> dict[str, Any]:
    """What the numbers were taken on."""
    return {
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        **{package: metadata.version(package) for package in PACKAGES},
    }


def main(arguments: list[str] | None = None) -> int:
    """Measures, prints, and writes what it was asked to."""
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7, help="turns that each contender gets (default 7)")
    parser.add_argument("--cases", nargs="+", default=[""], metavar="TEXT", help="only cases whose name holds a TEXT")
    parser.add_argument("--list", action="store_true", help="print the names of the cases and stop")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers to FILE")
    parser.add_argument("--chart", type=Path, metavar="FILE", help="draw the chart into FILE, a PNG")
    options = parser.parse_args(arguments)
    if options.rounds < 1:
        parser.error(f"--rounds: expected at least 1, got {options.rounds}")
    chosen = [job for job in jobs(options.rounds) if any(text in f"{job[0]} {job[1]}" for text in options.cases)]
    if not chosen:
        parser.error(f"--cases: no case's name holds {' or '.join(options.cases)}; see --list")
    if options.list:
        print("\n".join(dict.fromkeys(f"{kind} {label}" for kind, label, _ in chosen)))
        return 0

    warnings.filterwarnings("ignore", category=DeprecationWarning)
    console = Console(width=max(150, Console().width))
    results: dict[str, Any] = {"machine": machine(), "rounds": options.rounds}
    columns = (TextColumn("{task.description:48}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=len(chosen))
        for kind, label, run in chosen:
            progress.update(task, description=f"{kind} {label}")
            results.setdefault(kind, []).append(run())
            progress.advance(task)
            jax.clear_caches()
            if options.json:
                options.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    for kind in ("forward", "gradient", "stream", "quantized"):
        if kind in results:
            report.print_times(console, kind, results[kind])
    for kind in ("compile", "memory"):
        if kind in results:
            report.print_costs(console, kind, results[kind])
    if options.chart:
        report.draw(options.chart, results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
