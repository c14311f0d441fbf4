"""The GRU in NumPy, as the papers write it: the original to compare with where no framework can run it in float64.

It shares no code with the implementation: it loops over time, computes one gate after the other, and takes the weights
in PyTorch's layout.
"""

from collections.abc import Mapping

import numpy as np


def run(
    cells: Mapping[str, Mapping[str, np.ndarray]],
    x: np.ndarray,
    h_0: np.ndarray,
    *,
    reset_after: bool,
    backwards: bool = False,
) -> dict[str, np.ndarray]:
    """Runs stacked layers in the dtype of x and of the cells.

    Args:
      cells: "l0", "l0_reverse", ... -> {"W": [3, H, I], "R": [3, H, H], "b_W": [3, H], "b_R": [3, H]}, gates r, z, n.
      x: [L, N, I].
      h_0: [num_layers*D, N, H].
      reset_after: the form of the new gate.
      backwards: whether the cells without "_reverse" read x from the end, too.

    Returns:
      "output" [L, N, D*H] and "h_n" [num_layers*D, N, H].
    """
    directions = 2 if "l0_reverse" in cells else 1
    last = []
    for layer in range(len(cells) // directions):
        outputs = []
        for suffix in ("", "_reverse")[:directions]:
            flip = bool(suffix) or backwards
            h = h_0[layer * directions + len(outputs)]
            states = []
            for x_t in x[::-1] if flip else x:
                h = _step(cells[f"l{layer}{suffix}"], h, x_t, reset_after)
                states.append(h)
            outputs.append(np.reshape(states[::-1] if flip else states, (len(x), *h.shape)))
            last.append(h)
        x = np.concatenate(outputs, axis=-1)
    return {"output": x, "h_n": np.stack(last)}


def _step(cell: Mapping[str, np.ndarray], h: np.ndarray, x: np.ndarray, reset_after: bool) -> np.ndarray:
    """Computes one step as in Cho et al. 2014, arXiv:1406.1078, or with the reset gate after the product."""
    i_r, i_z, i_n = (x @ w.T + b for w, b in zip(cell["W"], cell["b_W"], strict=True))
    (r_r, r_z, r_n), (b_r, b_z, b_n) = cell["R"], cell["b_R"]
    r = _sigmoid(i_r + h @ r_r.T + b_r)
    z = _sigmoid(i_z + h @ r_z.T + b_z)
    inner = r * (h @ r_n.T + b_n) if reset_after else (r * h) @ r_n.T + b_n
    n = np.tanh(i_n + inner)
    return (1 - z) * n + z * h


def _sigmoid(a: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        return 1 / (1 + np.exp(-a))
