"""Opens any file that holds a trained GRU, says what is inside, converts it, and proves it.

    gru-jax inspect model.pt
    gru-jax convert model.pt gru.safetensors
    gru-jax verify model.onnx --prefix GRU_0

Each has options of its own: gru-jax convert --help.

Exit code 0: done, or proven; 1: not proven; 2: refused, with the reason in one line.
"""

import argparse
import sys
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from gru_jax.params import GRUConfig
from gru_jax.verify import Comparison, compare
from gru_jax.weights.checkpoint import load, open_checkpoint
from gru_jax.weights.found import Contents, choose, naming, require
from gru_jax.weights.writers import FORMATS, format_of, write

SHOWN = 12  # other things of a file that are listed before the rest is counted
REFUSALS = (ValueError, TypeError, OSError, ImportError, MemoryError, RecursionError, OverflowError)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    options = _parser().parse_args(arguments)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = lambda message, *_: _say("warning", message)
        try:
            return options.run(options)
        except REFUSALS as error:
            _say("error", str(error) or type(error).__name__)
            return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("gru-jax", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def add(run, help_: str) -> argparse.ArgumentParser:
        command = commands.add_parser(run.__name__, help=help_, description=f"{help_[0].upper()}{help_[1:]}.")
        command.add_argument("file", type=Path, metavar="FILE", help="a checkpoint of any format")
        names = "rename tensors first, for a GRU that is stored under names of its own: enc_w_ih=encoder.weight_ih"
        command.add_argument("--map", nargs="+", action="extend", type=_pair, default=[], metavar="A=B", help=names)
        command.set_defaults(run=run)
        return command

    add(inspect, "list the GRUs of a file, and what else is in it")
    of_one = [add(convert, "write a GRU in another format"), add(verify, "run a GRU here and in its own framework")]
    for command in of_one:
        command.add_argument("--prefix", metavar="P", help="which GRU, where there are several, as inspect names it")
    of_one[0].add_argument("out", type=Path, metavar="OUT", help="the file, or for Orbax the folder, to write")
    of_one[0].add_argument("--to", choices=FORMATS, help="the format; by default OUT's suffix tells")
    of_one[0].add_argument("--force", action="store_true", help="overwrite OUT")
    of_one[1].add_argument("--inputs", type=Path, metavar="X.npy", help="real inputs [L, N, I] or [L, I]")
    of_one[1].add_argument("--plot", type=Path, metavar="PNG", help="draw the error over time steps")
    return parser


def _pair(text: str) -> tuple[str, str]:
    old, equals, new = text.partition("=")
    if not (old and equals and new):
        raise argparse.ArgumentTypeError(f"expected OLD=NEW, got {text!r}")
    return old, new


def inspect(options: argparse.Namespace) -> int:
    """Prints what is in a file."""
    with _progress(f"Opening {options.file.name}"):
        contents = open_checkpoint(options.file, dict(options.map))
    console = _console()
    columns = ("prefix", "input", "hidden", "layers", "directions", "bias", "reset", "made by", "notes")
    table = Table(*columns, title=f"{options.file.name}: {contents.format}", box=box.SIMPLE, title_justify="left")
    for prefix, found in contents.grus.items():
        table.add_row(escape(prefix or '""'), *_describe(found.config), found.framework, escape(" ".join(found.notes)))
    for prefix, reason in contents.refused.items():
        table.add_row(escape(prefix or '""'), *["-"] * 6, "", f"[red]refused[/]: {escape(reason)}")
    console.print(table)
    _print_others(console, contents)
    if not contents.grus:
        with naming(options.file):
            choose(contents, None)  # which says why
    return 0


def _describe(config: GRUConfig) -> list[str]:
    sizes = [config.input_size, config.hidden_size, config.num_layers, config.num_directions]
    return [*map(str, sizes), "yes" if config.bias else "no", "after" if config.reset_after else "before"]


def _print_others(console: Console, contents: Contents) -> None:
    """Prints the first of the other things in a file, and how many there are of the rest, by where they are."""
    names = list(contents.others)
    for name in names[:SHOWN]:
        console.print(f"  {escape(name)}: {escape(contents.others[name])}", highlight=False)
    rest = Counter(name.rpartition(".")[0] or name for name in names[SHOWN:])
    if rest:
        places = ", ".join(f"{place} ({count})" for place, count in rest.most_common(SHOWN))
        console.print(f"  and {len(names) - SHOWN} more, at {escape(places)}", highlight=False)


def convert(options: argparse.Namespace) -> int:
    """Writes one GRU in another format."""
    form = options.to or format_of(options.out)
    if options.out.exists() and not options.force:
        raise FileExistsError(f"{options.out} exists; --force overwrites it.")
    with _progress(f"Converting {options.file.name}"):
        config, params = load(options.file, options.prefix, names=dict(options.map))
        write(form, options.out, config, params)
    sizes = ", ".join(f"{name} {value}" for name, value in vars(config).items())
    _console().print(f"{options.out}: {FORMATS[form].title}, {sizes}", highlight=False, markup=False, soft_wrap=True)
    return 0


def verify(options: argparse.Namespace) -> int:
    """Runs one GRU here and in its own framework; 0 if everything is the original's, else 1."""
    x = None if options.inputs is None else _load_inputs(options.inputs)
    with _progress(f"Verifying {options.file.name}"):
        contents = open_checkpoint(options.file, dict(options.map))
        with naming(options.file):
            _, found = choose(contents, options.prefix)
        comparison = compare(found, x)
    columns = ("dtype", "array", "gru_jax", found.framework, "allowed", "verdict")
    table = Table(*columns, title="Largest distance to the original in float64", box=box.SIMPLE, title_justify="left")
    for dtype, verdicts in comparison.verdicts.items():
        for i, verdict in enumerate(verdicts):
            numbers = (f"{number:.1e}" for number in (verdict.distance, verdict.own, verdict.bound))
            outcome = "[green]PASS[/]" if verdict.passed else "[red]FAIL[/]"
            table.add_row("" if i else dtype, verdict.name, *numbers, outcome, end_section=i == len(verdicts) - 1)
    console = _console()
    console.print(table)
    console.print("[green]PASS[/]" if comparison.passed else "[red]FAIL[/]")
    if options.plot:
        _plot(options.plot, comparison)
    return 0 if comparison.passed else 1


def _load_inputs(path: Path) -> np.ndarray:
    """Reads a .npy file: mapped, so that a header that claims more than the file holds is an error and no memory."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        if isinstance(array, np.ndarray):
            return array
        raise ValueError("It is an archive of several.")
    except (ValueError, EOFError, SyntaxError, OverflowError) as error:
        raise ValueError(f"{path}: expected an array of numbers in a .npy file. {error}") from error


def _plot(path: Path, comparison: Comparison) -> None:
    """Draws the largest error of the float32 output at each time step."""
    matplotlib = require("matplotlib", "plot")
    matplotlib.use("Agg")
    figure, axis = require("matplotlib.pyplot", "plot").subplots(figsize=(8, 4), layout="constrained")
    for (name, errors), style in zip(comparison.errors.items(), ("-", "--"), strict=True):
        axis.plot(np.arange(1, len(errors) + 1), errors, style, label=name)
    axis.set(xlabel="time step", ylabel="largest error of output", title="float32 against the original in float64")
    axis.legend()
    figure.savefig(path, dpi=120)


@contextmanager
def _progress(what: str) -> Iterator[None]:
    """Shows on a terminal what is being done, and for how long."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        progress.add_task(what, total=None)
        yield


def _console() -> Console:
    """stdout, wide enough for every column where it is no terminal."""
    return Console(width=None if sys.stdout.isatty() else 160)


def _say(kind: str, message: object) -> None:
    """Prints one line on stderr."""
    lines = [line.strip() for line in str(message).splitlines() if line.strip()]
    print(f"gru-jax: {kind}: {' '.join(lines)}", file=sys.stderr)
