"""What is measured: sizes, and the weights and inputs that every contender gets."""

import dataclasses
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Case:
    """One GRU on one input.

    Attributes:
      size: (L, N, I, H).
      layers: of the stack.
      bidirectional: whether each layer has two directions.
      ragged: whether the sequences have lengths of their own.
    """

    size: tuple[int, int, int, int]
    layers: int = 1
    bidirectional: bool = False
    ragged: bool = False

    def __str__(self) -> str:
        stack = f" {self.layers} layers" if self.layers > 1 else ""
        return f"{','.join(map(str, self.size))}{stack}{' bidirectional' * self.bidirectional}{' ragged' * self.ragged}"

    @property
    def cells(self) -> list[list[str]]:
        """The names of each layer's cells, as in PyTorch's state_dict."""
        directions = ["", "_reverse"] if self.bidirectional else [""]
        return [[f"l{layer}{direction}" for direction in directions] for layer in range(self.layers)]


SHAPES = [
    (1000, 8, 96, 96),
    (112, 1024, 8, 50),
    (112, 1024, 100, 50),
    (5, 3, 10, 20),
    (1000, 1, 96, 96),
    (100, 32, 256, 256),
    (100, 1, 512, 512),
    (100, 64, 512, 512),
    (20, 128, 1024, 1024),
]
STACKS = [Case((112, 256, 8, 50), 3, bidirectional=True), Case((200, 16, 64, 64), 2, bidirectional=True)]
SEQUENCES = [*map(Case, SHAPES), *STACKS, Case((200, 32, 64, 128), ragged=True)]
STREAMS = [Case((1000, 1, 96, 96)), Case((1000, 1, 512, 512))]
QUANTIZED = [Case(size) for size in ((100, 1, 512, 512), (100, 8, 512, 512), (100, 32, 256, 256), (100, 64, 512, 512))]
COMPILED = [Case((112, 1024, 8, 50)), Case((1000, 8, 96, 96)), STACKS[0]]
LONG = [1_000, 10_000, 100_000]  # time steps of N = 8, I = H = 96


def make_data(case: Case) -> dict[str, Any]:
    """Returns weights (PyTorch's names and layout), x [L, N, I], d_output [L, N, D*H] and lengths [N].

    b_hh is zero, since flax.nnx has no such bias: so every contender of PyTorch's formula computes the same numbers.
    """
    rng = np.random.default_rng(0)
    steps, batch, input_size, hidden_size = case.size
    directions = len(case.cells[0])
    uniform = lambda *shape: rng.uniform(-1, 1, shape).astype(np.float32) / np.float32(np.sqrt(hidden_size))
    weights = {}
    for layer, names in enumerate(case.cells):
        for name in names:
            features = input_size if layer == 0 else directions * hidden_size
            weights[f"weight_ih_{name}"] = uniform(3 * hidden_size, features)
            weights[f"weight_hh_{name}"] = uniform(3 * hidden_size, hidden_size)
            weights[f"bias_ih_{name}"] = uniform(3 * hidden_size)
            weights[f"bias_hh_{name}"] = np.zeros(3 * hidden_size, np.float32)
    x = rng.standard_normal((steps, batch, input_size), np.float32)
    d_output = rng.standard_normal((steps, batch, directions * hidden_size), np.float32)
    lengths = None
    if case.ragged:
        lengths = rng.permutation(np.linspace(steps // 4, steps, batch).astype(np.int32))
        d_output[np.arange(steps)[:, None] >= lengths] = 0
    return {"weights": weights, "x": x, "d_output": d_output, "lengths": lengths}
