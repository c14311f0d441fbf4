"""One run: steps, what is measured between them, and the states to go on from."""

import functools
import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from flax import nnx
from jax.sharding import NamedSharding
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from training import data, model
from training.checkpoints import Checkpoints
from training.metrics import Metrics
from training.settings import Settings

LOGGED = 20  # steps from one line of the metrics to the next
JUDGED = 1000  # validation words that are spelled out during training
STATES = "states"


class Run:
    """A run in its folder, at the state it was left in, or at its beginning.

    Every device holds all parameters and a part of each batch; JAX adds what the gradient needs from the others.

    Args:
      settings: what the run is.
      folder: where it is kept.

    Attributes:
      step: how many steps are done.
      state: {"params", "optimizer"}, what a step changes.
      metrics: what was measured.

    Raises:
      ValueError: if the dictionary can't be read, or settings do not go together.
      CheckpointError: if the newest state can't be read.
    """

    def __init__(self, settings: Settings, folder: Path):
        if settings.batch_size % jax.device_count():
            raise ValueError(f"a batch of {settings.batch_size} can't be split over {jax.device_count()} devices.")
        path = None if settings.dictionary is None else Path(settings.dictionary)
        self.words = data.split(data.read_dictionary(path))
        for side, words in self.words.items():
            if not words:
                raise ValueError(f"the dictionary has too few words: none for {side}.")
        self.pairs = data.Pairs(self.words["training"][: settings.words], settings.batch_size)
        self.steps = settings.epochs * self.pairs.batches_per_epoch
        self.settings, self.folder = settings, folder
        self.mesh = jax.make_mesh((jax.device_count(),), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))

        self.schedule = optax.warmup_cosine_decay_schedule(
            0, settings.learning_rate, self.steps // 20, max(self.steps, 1)
        )
        self.optimizer = optax.chain(optax.clip_by_global_norm(settings.clip), optax.adam(self.schedule))
        self.speller = _speller(settings)
        params = nnx.to_pure_dict(nnx.state(self.speller, nnx.Param))
        state = {"params": params, "optimizer": self.optimizer.init(params)}
        self.state: Any = jax.tree.map(lambda a: self._place(a, jax.P()), state)
        self.checkpoints, self.step = Checkpoints(folder / STATES), 0
        if self.checkpoints.steps:
            self.step, self.state = self.checkpoints.restore(self.state)
        self._advance, self._spell_out = self._make_step(), self._make_spelling()
        self.metrics = Metrics(folder if jax.process_index() == 0 else None, self.step)

    def train(self, console: Console) -> None:
        """Does the steps that are left.

        Raises:
          CheckpointError: if a state can't be written; those before it are still there.
          FloatingPointError: if the loss is no number any more; likewise.
        """
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        started = time.perf_counter() - self.metrics.seconds
        batches, losses = self.pairs.batches(self.settings.seed, self.step), []
        with Progress(*columns, TimeRemainingColumn(), console=console) as progress:
            bar = progress.add_task("training", total=self.steps, completed=self.step)
            if self.step == 0:
                self._measure(console, started)
            for batch in itertools.islice(batches, self.steps - self.step):
                self.state, loss = self._advance(self.state, self.step, self._place_batch(batch))
                self.step += 1
                losses.append(loss)
                kept = self.step % self.settings.checkpoint == 0 or self.step == self.steps
                if kept or self.step % LOGGED == 0:
                    mean, losses = float(np.mean(losses)), []
                    if not np.isfinite(mean):
                        raise FloatingPointError(f"the loss is {mean} at step {self.step}. Try a lower learning rate.")
                    self._write(started, loss=mean, learning_rate=float(np.asarray(self.schedule(self.step))))
                    progress.update(bar, completed=self.step, description=f"loss {mean:.3f}")
                if self.step % self.settings.evaluate == 0 or self.step == self.steps:
                    self._measure(console, started)
                if kept:
                    self.checkpoints.save(self.step, self.state)

    def error_rates(self, words: list[data.Word]) -> dict[str, float]:
        """How many words, and phonemes, the speller gets wrong as it is now."""
        spell_out = lambda *batch: np.asarray(self._spell_out(self.state["params"], *map(self._place_last, batch)))
        return model.error_rates(spell_out, words, self.settings.batch_size)

    def _measure(self, console: Console, started: float) -> None:
        rates = self.error_rates(self.words["validation"][:JUDGED])
        self._write(started, **rates)
        console.print(f"step {self.step}: {describe(rates)} of validation")

    def _write(self, started: float, **measured: Any) -> None:
        self.metrics.write(step=self.step, seconds=round(time.perf_counter() - started, 2), **measured)

    def _make_step(self) -> Callable[[Any, int, data.Batch], tuple[Any, jax.Array]]:
        key = jax.random.fold_in(jax.random.key(self.settings.seed), 1)

        @functools.partial(jax.jit, donate_argnums=0)
        def advance(state, step, batch):
            def objective(params):
                # Drawn from the step, so that a run that was resumed draws the same.
                rngs = nnx.Rngs(dropout=jax.random.fold_in(key, step))
                return model.loss(self._speller_with(params)(batch, deterministic=False, rngs=rngs), batch)

            loss, gradient = jax.value_and_grad(objective)(state["params"])
            updates, optimizer = self.optimizer.update(gradient, state["optimizer"], state["params"])
            return {"params": optax.apply_updates(state["params"], updates), "optimizer": optimizer}, loss

        return advance

    def _make_spelling(self) -> Callable[..., jax.Array]:
        spell_out = lambda params, *batch: self._speller_with(params).spell_out(*batch)
        return jax.jit(spell_out, out_shardings=NamedSharding(self.mesh, jax.P()))

    def _speller_with(self, params: Any) -> model.Speller:
        speller = nnx.clone(self.speller)
        nnx.update(speller, params)
        return speller

    def _place_batch(self, batch: data.Batch) -> data.Batch:
        return data.Batch(*map(self._place_last, batch))

    def _place_last(self, array: np.ndarray) -> jax.Array:
        """Splits the last axis, N, over the devices."""
        return self._place(array, jax.P(*[None] * (array.ndim - 1), "batch"))

    def _place(self, array: Any, spec: jax.P) -> jax.Array:
        """Puts an array that every process has onto all devices, those of the other processes too."""
        array = np.asarray(array)
        return jax.make_array_from_callback(array.shape, NamedSharding(self.mesh, spec), lambda part: array[part])


def _speller(settings: Settings) -> model.Speller:
    rngs = nnx.Rngs(settings.seed)
    if settings.source == "g2p-en":
        return model.published(settings.dropout, rngs)
    return model.Speller(settings.embedding, settings.hidden, settings.layers, settings.dropout, rngs)


def describe(rates: dict[str, float]) -> str:
    """The rates as a sentence."""
    word, phoneme = (100 * rates[f"{kind}_error_rate"] for kind in ("word", "phoneme"))
    return f"{word:.2f} % of words and {phoneme:.2f} % of phonemes wrong in {rates['words']} words"
