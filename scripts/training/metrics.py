"""What a run measured: one JSON object a line, and a picture of it."""

import json
from pathlib import Path
from typing import Any

FILE, CHART = "metrics.jsonl", "curves.png"


class Metrics:
    """The lines of one run, appended as they come; each has the step that it was measured at, and the seconds so far.

    Args:
      folder: of the run; None to keep the lines in memory alone, where another process writes them.
      step: where the run goes on. What was measured behind it is cut off, and measured again.
    """

    def __init__(self, folder: Path | None, step: int):
        self._path = folder and folder / FILE
        self.lines: list[dict[str, Any]] = []
        if folder and self._path:
            self.lines = [line for line in read(folder) if 0 < step >= line["step"] and "test" not in line]
            cut = self._path.with_suffix(".tmp")
            cut.write_text("".join(json.dumps(line) + "\n" for line in self.lines), encoding="utf-8")
            cut.replace(self._path)

    @property
    def seconds(self) -> float:
        """How long the run had taken at the last line."""
        return self.lines[-1]["seconds"] if self.lines else 0.0

    def write(self, **line: Any) -> None:
        """Appends a line."""
        self.lines.append(line)
        if self._path:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")


def read(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run; a last one that a crash has cut short is left out."""
    path = folder / FILE
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return [json.loads(line) for line in text.split("\n")[:-1]]


def draw(path: Path, runs: dict[str, list[dict[str, Any]]]) -> None:
    """Draws the loss and the error rates of runs, by name, against their minutes."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for i, (name, lines) in enumerate(runs.items()):
        losses = [(line["seconds"] / 60, line["loss"]) for line in lines if "loss" in line]
        left.plot(*zip(*losses, strict=True) if losses else ((), ()), color=f"C{i}", label=name)
        for kind, style in (("word", "-"), ("phoneme", "--")):
            key = f"{kind}_error_rate"
            rates = [(line["seconds"] / 60, 100 * line[key]) for line in lines if key in line and "test" not in line]
            right.plot(
                *zip(*rates, strict=True) if rates else ((), ()), f"C{i}{style}", marker=".", label=f"{name}, {kind}s"
            )
    left.set(xlabel="minutes", ylabel="loss", yscale="log", title="training: cross-entropy of a phoneme")
    right.set(xlabel="minutes", ylabel="% wrong", ylim=(0, 100), title="validation: said unlike the dictionary")
    for axis in (left, right):
        axis.grid(alpha=0.3)
        axis.legend()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
