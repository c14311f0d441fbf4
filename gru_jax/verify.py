"""A GRU here beside its original there: the distance between them, and the verdict.

A fixed tolerance would be too loose for small weights and too strict for large ones: over 1,000 steps of trained
weights PyTorch's float32 can stray 1e-4 from its own float64. So the original itself sets the measure.

    float64   within 1e-10 of the original in float64
    others    at most twice as far from the original's float64 as the original in the same dtype is, on the same input,
              and never asked for less than 8 units in the last place of the largest number: over a few numbers the
              original may be exact by luck

On one input either side may be lucky, the more so where trained weights amplify a last bit: of two equally accurate
computations one is then often more than twice as far off as the other. Over several inputs luck cancels, so `typical`
lets the median decide. Only luck is forgiven: float64 has none at 1e-10, and of 256 inputs of a published stack none
was further off than 10 times its bound, so an input beyond 16 times, or not finite, decides by itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

FLOAT64_BOUND = 1e-10
FEW_ULP = 8
LUCK = 16


@dataclass(frozen=True)
class Verdict:
    """How far one array is from the original's float64.

    Attributes:
      name: of the array.
      distance: largest absolute difference between ours and the original's float64.
      own: largest absolute difference between the original and its own float64.
      bound: what `distance` may be at most.
    """

    name: str
    distance: float
    own: float
    bound: float

    @property
    def passed(self) -> bool:
        """Whether the distance is within the bound; no distance is where the original strays infinitely far itself."""
        return self.distance <= self.bound < np.inf


def distance(a: ArrayLike, b: ArrayLike) -> float:
    """Returns the largest absolute difference; inf where one is NaN or infinite and the other is not the same.

    Raises:
      ValueError: if the shapes differ.

    >>> distance(np.array([1.0, np.nan]), np.array([1.5, np.nan]))
    0.5
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.shape != b.shape:
        raise ValueError(f"distance: expected two arrays of one shape, got {list(a.shape)} and {list(b.shape)}.")
    with np.errstate(invalid="ignore"):
        difference = np.where((a == b) | (np.isnan(a) & np.isnan(b)), 0, np.abs(a - b))
    return float(np.nan_to_num(difference, nan=np.inf, posinf=np.inf).max(initial=0))


def judge(name: str, ours: ArrayLike, original: ArrayLike, reference: ArrayLike) -> Verdict:
    """Applies the rule above.

    Args:
      name: of the array, for the verdict.
      ours: in the dtype under test.
      original: the original framework's, in the same dtype.
      reference: the original framework's in float64, on the same input.

    Example:
      >>> judge("h_n", np.float32([0.1]), np.float32([0.1]), np.float64([0.1])).passed
      True
    """
    ours = np.asarray(ours)
    own = distance(original, reference)
    if ours.dtype == np.float64:
        bound = FLOAT64_BOUND
    else:
        finite = np.asarray(reference)[np.isfinite(reference)]
        ulp = float(jnp.finfo(ours.dtype).eps) * float(np.abs(finite).max(initial=0))
        bound = max(2 * own, FEW_ULP * ulp)
    return Verdict(name, distance(ours, reference), own, bound)


def typical(verdicts: Sequence[Verdict]) -> Verdict:
    """Returns the verdict of one array over several inputs: the median, of the share of its bound that each used up.

    It is the worst instead where that is beyond 16 times its bound, not finite, or of float64.

    Example:
      >>> good, bad = Verdict("h_n", 1e-7, 1e-7, 2e-7), Verdict("h_n", 9e-7, 1e-7, 2e-7)
      >>> typical([good, bad, good]).passed, typical([good, bad, bad]).passed
      (True, False)
    """
    by_share = sorted(verdicts, key=lambda v: (not v.passed, v.distance / v.bound if v.bound else v.distance))
    worst = by_share[-1]
    lucky = worst.bound != FLOAT64_BOUND and worst.distance <= LUCK * worst.bound < np.inf
    return by_share[len(verdicts) // 2] if lucky else worst
