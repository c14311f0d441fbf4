"""The states of a run, kept by Orbax: each is written under another name first, so what has its name is whole."""

import logging
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp

KEPT = 2


class CheckpointError(RuntimeError):
    """A state that can't be written, or read."""


class Checkpoints:
    """The newest states of one run."""

    def __init__(self, folder: Path):
        logging.getLogger("absl").setLevel(logging.CRITICAL)  # Orbax logs the errors that it raises
        options = ocp.CheckpointManagerOptions(
            max_to_keep=KEPT, enable_async_checkpointing=False, cleanup_tmp_directories=True
        )
        self._folder = folder.absolute()
        self._manager = ocp.CheckpointManager(self._folder, options=options)

    @property
    def steps(self) -> list[int]:
        """The steps whose states are there, the newest last."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: Any) -> None:
        """Keeps the state after `step` steps.

        Raises:
          CheckpointError: if it can't be written. Those before it are still there.
        """
        try:
            self._manager.save(step, args=ocp.args.StandardSave(state))
        except Exception as error:  # Orbax lets whatever its storage raises through.
            kept = [other for other in self.steps if other != step]
            last = f"That of step {kept[-1]} is the last good one" if kept else "There is none before it"
            raise CheckpointError(f"the state of step {step} can't be written: {_line(error)}. {last}.") from error

    def restore(self, like: Any) -> tuple[int, Any]:
        """Returns the newest step and its state, on the devices that the arrays of `like` lie on.

        Raises:
          CheckpointError: if there is none, or it is damaged.
        """
        if not self.steps:
            raise CheckpointError(f"{self._folder}: no state to resume from.")
        newest = self.steps[-1]
        try:
            return newest, self._manager.restore(newest, args=ocp.args.StandardRestore(like))
        except Exception as error:
            folder = self._folder / str(newest)
            others = f" Delete it to resume from step {self.steps[-2]}." if len(self.steps) > 1 else ""
            raise CheckpointError(f"{folder}: damaged, or of another run: {_line(error)}.{others}") from error


def _line(error: Exception) -> str:
    """The first line that says something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:300].rstrip(".")
