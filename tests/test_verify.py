"""The rule of exactness itself."""

import jax.numpy as jnp
import numpy as np
import pytest

from gru_jax.verify import Comparison, Verdict, distance, judge, typical

ONE = np.ones(3)
EPS = np.finfo(np.float32).eps


def test_distance_is_the_largest_absolute_difference():
    assert distance([1.0, 2.0], [1.5, 1.0]) == 1.0
    assert distance(np.zeros((0, 3)), np.zeros((0, 3))) == 0


def test_nans_and_infinities_are_equal_only_to_themselves():
    special = np.array([np.nan, np.inf, -np.inf])
    assert distance(special, special) == 0
    assert distance([np.nan], [0.0]) == distance([np.inf], [-np.inf]) == distance([0.0], [np.inf]) == np.inf


def test_shapes_are_not_broadcast():
    with pytest.raises(ValueError, match=r"distance: expected two arrays of one shape, got \[3\] and \[1, 3\]"):
        distance(ONE, ONE[None])


def test_float32_may_be_twice_as_far_as_the_original_and_no_further():
    original = (ONE + 100 * EPS).astype(np.float32)
    assert judge("x", (ONE - 199 * EPS).astype(np.float32), original, ONE).passed
    assert not judge("x", (ONE - 202 * EPS).astype(np.float32), original, ONE).passed


def test_where_the_original_is_exact_eight_units_in_the_last_place_are_allowed():
    original = ONE.astype(np.float32)
    assert judge("x", (ONE + 8 * EPS).astype(np.float32), original, ONE).passed
    assert not judge("x", (ONE + 9 * EPS).astype(np.float32), original, ONE).passed


def test_verdicts_read_well_in_a_notebook():
    verdict = judge("h_n", (ONE + 4 * EPS).astype(np.float32), ONE.astype(np.float32), ONE)
    assert repr(verdict) == "Verdict(h_n: 4.8e-07, the original's own 0.0e+00, allowed 9.5e-07, PASS)"
    comparison = Comparison({"float32": [verdict], "float64": [Verdict("h_n", 1.0, 0.0, 1e-10)]}, {})
    first, second, third = repr(comparison).splitlines()
    assert first.split() == ["gru_jax", "original", "allowed"]
    assert second.split() == ["float32", "h_n", "4.8e-07", "0.0e+00", "9.5e-07", "PASS"]
    assert third.split() == ["float64", "h_n", "1.0e+00", "0.0e+00", "1.0e-10", "FAIL"]


def test_what_torch_gives_is_judged_as_it_is():
    torch = pytest.importorskip("torch")
    assert judge("x", torch.ones(3), torch.ones(3), torch.ones(3, dtype=torch.float64)).passed


def test_float64_must_be_within_1e_10():
    assert judge("x", ONE + 9e-11, ONE, ONE).passed
    assert not judge("x", ONE + 1.1e-10, ONE, ONE).passed


def test_half_precision_is_measured_in_its_own_units():
    ours = jnp.asarray(ONE, jnp.bfloat16) * (1 + jnp.finfo(jnp.bfloat16).eps)
    assert judge("x", ours, ONE, ONE).passed
    assert not judge("x", ours.astype(jnp.float32), ONE, ONE).passed


def test_a_nan_fails_and_so_does_everything_where_the_original_is_not_finite_though_its_float64_is():
    assert not judge("x", np.full(3, np.nan, np.float32), ONE, ONE).passed
    for broken in (np.nan, np.inf):
        original = np.array([1, broken, 1], np.float32)
        assert not judge("x", np.array([1, 1, 999], np.float32), original, ONE).passed
        assert not judge("x", original, original, ONE).passed


def test_where_the_reference_is_not_finite_either_the_rest_is_judged():
    for special in (np.nan, np.inf):
        reference = np.array([1, special, 1])
        assert judge("x", reference.astype(np.float32), reference, reference).passed
        assert not judge("x", np.array([1, special, 999], np.float32), reference, reference).passed


def test_over_several_inputs_the_median_decides():
    good, better, bad = (Verdict("x", distance, 1.0, 2.0) for distance in (1.5, 0.5, 2.5))
    assert typical([bad, good, better]) == good
    assert not typical([bad, good, bad]).passed
    assert typical([bad]) == bad


@pytest.mark.parametrize(
    "bad", [Verdict("x", 33.0, 1.0, 2.0), Verdict("x", np.inf, 1.0, 2.0), Verdict("x", 0.0, np.inf, np.inf)], ids=str
)
def test_one_input_that_no_luck_explains_decides_alone(bad):
    good = Verdict("x", 1.0, 1.0, 2.0)
    assert typical([good, good, good, good, bad]) == bad


def test_in_float64_every_input_must_pass():
    good, bad = judge("x", ONE, ONE, ONE), judge("x", ONE + 1.1e-10, ONE, ONE)
    assert not typical([good, good, bad]).passed
