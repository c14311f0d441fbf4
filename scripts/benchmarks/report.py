"""What the measurements look like: tables for the terminal, and one chart."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

OURS, TORCH, FLOOR = "gru_jax", "torch.nn.GRU", "two matmuls"
OTHERS_OF_OURS = {f"gru_jax {kind}" for kind in ("remat", "float32", "float16", "bfloat16")}
NOT_RIVALS = {OURS, FLOOR, *OTHERS_OF_OURS}
COLORS = {OURS: "#d1495b", TORCH: "#222222"}


def minimum(measured: dict[str, Any], name: str) -> float:
    """The least seconds of one contender."""
    return measured["seconds"][name]["minimum"]


def rival(measured: dict[str, Any]) -> str:
    """The fastest contender but gru_jax."""
    return min((n for n in measured["seconds"] if n not in NOT_RIVALS), key=lambda n: minimum(measured, n))


def geometric_mean(values: Iterable[float]) -> float:
    """The n-th root of the product."""
    logs = [math.log(value) for value in values]
    return math.exp(sum(logs) / len(logs))


def milliseconds(seconds: float) -> str:
    """Three significant digits."""
    return f"{seconds * 1e3:.3g}"


def print_times(console: Console, kind: str, rows: list[dict[str, Any]]) -> None:
    """Prints one kind of run: milliseconds a call, the ratios that matter, and their geometric means."""
    names = list(dict.fromkeys(name for row in rows for name in row["seconds"]))
    ratios = ["fastest other", "torch", "to floor"]
    table = Table("L,N,I,H", *names, *ratios, title=f"{kind}: milliseconds, the minimum", box=box.SIMPLE)
    means: dict[str, list[float]] = {ratio: [] for ratio in ratios}
    for row in rows:
        best = rival(row)
        cells = []
        for name in names:
            text = milliseconds(minimum(row, name)) if name in row["seconds"] else ""
            cells.append(f"[bold]{text}[/]" if name == min(best, OURS, key=lambda n: minimum(row, n)) else text)
        ours = minimum(row, OURS)
        values = {"fastest other": minimum(row, best) / ours}
        for ratio, name in (("torch", TORCH), ("torch", "torch.nn.GRUCell")):
            if name in row["seconds"]:
                values[ratio] = minimum(row, name) / ours
        if FLOOR in row["seconds"]:
            values["to floor"] = ours / minimum(row, FLOOR)
        for ratio, value in values.items():
            means[ratio].append(value)
        table.add_row(row["case"], *cells, *(f"{values[r]:.2f}" if r in values else "" for r in ratios))
    table.add_section()
    texts = [f"{geometric_mean(means[r]):.2f}" if means[r] else "" for r in ratios]
    table.add_row("geometric mean", *[""] * len(names), *texts)
    console.print(table)


def print_costs(console: Console, title: str, rows: list[dict[str, Any]]) -> None:
    """Prints compile times and temporaries."""
    table = Table("what", "contender", "compile, s", "temporaries, MB", "run, s", title=title, box=box.SIMPLE)
    for row in rows:
        run = f"{row['run']:.2f}" if "run" in row else ""
        table.add_row(row["label"], row["name"], f"{row['seconds']:.2f}", f"{row['bytes'] / 1e6:.1f}", run)
    console.print(table)


def draw(path: Path, results: dict[str, Any]) -> None:
    """Draws how many times faster than torch.nn.GRU each contender is, in every case."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    kinds = [kind for kind in ("forward", "gradient") if results.get(kind)]
    size = (2.5 + 5 * len(kinds), 6)
    figure, axes = plt.subplots(1, len(kinds), figsize=size, squeeze=False, sharey=True, layout="constrained")
    names = list(dict.fromkeys(n for kind in kinds for row in results[kind] for n in row["seconds"]))
    names = [n for n in names if n not in (FLOOR, "gru_jax remat")]
    palette = plt.get_cmap("tab20c")
    for axis, kind in zip(axes[0], kinds, strict=True):
        rows = results[kind]
        for i, name in enumerate(names):
            points = [
                (minimum(row, TORCH) / minimum(row, name), len(rows) - y)
                for y, row in enumerate(rows)
                if name in row["seconds"]
            ]
            if points:
                ours = name == OURS
                color = COLORS.get(name, palette(4 * (i % 5) + i // 5))
                area, order = (110, 3) if ours else (34, 2)
                axis.scatter(*zip(*points, strict=True), s=area, color=color, zorder=order, label=name)
        axis.axvline(1, color=COLORS[TORCH], linewidth=0.8, zorder=1)
        axis.set_xscale("log")
        ticks = [0.25, 0.5, 1, 2, 4, 8, 16, 32]
        axis.set_xticks(ticks, [f"{tick:g}x" for tick in ticks])
        axis.minorticks_off()
        axis.set_yticks(range(len(rows), 0, -1), [row["case"] for row in rows])
        axis.grid(axis="both", color="#e5e5e5", zorder=0)
        axis.set_title(kind)
        axis.set_xlabel("times faster than torch.nn.GRU")
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
    axes[0][0].set_ylabel("time steps, batch, input, hidden")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    figure.savefig(path, dpi=120)
    plt.close(figure)
