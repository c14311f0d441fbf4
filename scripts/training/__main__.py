"""Trains an encoder and a decoder GRU to spell English words out as phonemes, on the CMU Pronouncing Dictionary."""

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import Any, get_args

import jax
from flax import nnx
from rich.console import Console

from training import handover, launch, metrics
from training.checkpoints import CheckpointError
from training.run import Run, describe
from training.settings import FILE, Settings


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Reads the command line; a setting that is not given is no attribute."""
    parser = argparse.ArgumentParser(prog="scripts/train", description=__doc__)
    start = parser.add_mutually_exclusive_group()
    choices = ["scratch", "g2p-en"]
    start.add_argument(
        "--from", dest="source", choices=choices, default=argparse.SUPPRESS, help="random or published weights"
    )
    start.add_argument("--resume", action="store_true", help="go on with the run in --out, as it was begun")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="of the run; runs/scratch or runs/g2p-en by default")
    for field in dataclasses.fields(Settings):
        if "help" in field.metadata:
            kind = next(iter(get_args(field.type)), field.type)
            text = field.metadata["help"] + ("" if field.default is None else f" ({field.default})")
            flag = f"--{field.name.replace('_', '-')}"
            parser.add_argument(flag, type=kind, metavar="X", default=argparse.SUPPRESS, help=text)
    parser.add_argument("--processes", type=int, metavar="K", help="on this machine, as one run")
    parser.add_argument("--coordinator", metavar="HOST:PORT", help="of a run over several machines: where process 0 is")
    parser.add_argument("--process-id", type=int, metavar="K", help="which of its processes this one is")
    parser.add_argument("--num-processes", type=int, metavar="N", help="how many there are")
    return parser.parse_args(arguments)


def begin(settings: Settings, folder: Path) -> None:
    """Makes the folder of a new run; one that never came to a first step is made anew.

    Raises:
      ValueError: if there is one already.
    """
    if folder.exists() and (not folder.is_dir() or any(path.name != FILE for path in folder.iterdir())):
        raise ValueError(f"{folder} is there already: --resume goes on with a run, --out names another folder.")
    folder.mkdir(parents=True, exist_ok=True)
    settings.save(folder)


def train(settings: Settings, folder: Path, console: Console) -> int:
    """Trains, measures the test words, and hands the GRUs over to PyTorch. Returns 0 if PyTorch computes the same."""
    console.quiet = jax.process_index() > 0
    run = Run(settings, folder)
    words = len(run.words["training"][: settings.words])
    console.print(f"{words} words, {run.steps} steps on {jax.device_count()} devices, from step {run.step}; {folder}")
    run.train(console)
    rates = run.error_rates(run.words["test"])
    console.print(f"test: {describe(rates)}")
    if jax.process_index() > 0:
        return 0
    run.metrics.write(step=run.step, seconds=run.metrics.seconds, test=True, **rates)
    metrics.draw(folder / metrics.CHART, {folder.name: run.metrics.lines})
    speller = run.speller
    nnx.update(speller, jax.device_get(run.state["params"]))
    path = handover.write(folder, speller)
    comparisons = handover.verify(path, speller, run.words["test"])
    for prefix, comparison in comparisons.items():
        worst = max(comparison.verdicts["float32"], key=lambda verdict: verdict.distance / verdict.bound)
        distances = f"{worst.name} {worst.distance:.1e} from float64, PyTorch {worst.own:.1e}"
        console.print(f"{path}: {prefix}* {'PASS' if comparison.passed else 'FAIL'} ({distances})")
    return 0 if all(comparison.passed for comparison in comparisons.values()) else 1


def main(arguments: list[str] | None = None) -> int:
    """Returns 0, or 1 if the run broke off or its GRUs are not PyTorch's, or 2 if it can't begin."""
    options = parse(arguments)
    given = {name: value for name, value in vars(options).items() if name in Settings.__dataclass_fields__}
    folder: Path = options.out or Path("runs") / given.get("source", "scratch")
    cluster: list[Any] = [options.coordinator, options.process_id, options.num_processes]
    console = Console(highlight=False, soft_wrap=True)
    errors = Console(stderr=True, highlight=False, soft_wrap=True, markup=False)
    try:
        if cluster != [None] * 3 and (None in cluster or options.processes):
            raise ValueError("--coordinator, --process-id and --num-processes go together, without --processes.")
        if options.processes is not None and options.processes < 1:
            raise ValueError("expected --processes of at least 1.")
        if given.get("source") == "g2p-en" and given.keys() & {"embedding", "hidden", "layers"}:
            raise ValueError("g2p-en has its sizes: leave out embedding, hidden and layers.")
        if options.resume and given:
            raise ValueError(f"--resume goes on as the run was begun: leave out {', '.join(given)}.")
        settings = Settings.load(folder) if options.resume else Settings(**given)
        if not options.resume and not options.process_id:
            begin(settings, folder)
        if options.processes:
            return launch.on_this_machine(["--resume", "--out", str(folder)], options.processes)
        if options.coordinator:
            launch.join(*cluster)
        return train(settings, folder, console)
    except KeyboardInterrupt:
        errors.print(f"scripts/train: stopped. Go on with: scripts/train --resume --out {folder}")
        return 130
    except ValueError as error:
        errors.print(f"scripts/train: {error}")
        return 2
    except (OSError, CheckpointError, FloatingPointError) as error:
        errors.print(f"scripts/train: {error}")
        return 1


if __name__ == "__main__":
    sys.exit(main())
