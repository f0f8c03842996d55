"""Fitted weights against numpy's least squares on the numbers themselves."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from halfframe.strategies.recipe import MOST_WEIGHT
from halfframe.tuning.fits import TERMS, Fits


def fits_of(shown: np.ndarray, differences: np.ndarray | None = None, high: int = 3) -> Fits:
    """`Fits` of what steps show, ``(steps, numbers)``."""

    def products(values: np.ndarray) -> tuple[tuple[float, ...], ...]:
        return tuple(map(tuple, (values @ values.T).tolist()))

    return Fits(products(shown), () if differences is None else products(differences), high, shown.shape[1])


@given(st.integers(0, 2**32 - 1), st.sets(st.integers(0, 4), min_size=1))
def test_weights_are_those_of_least_squares_over_the_latest_steps(seed: int, computed: set[int]) -> None:
    values = np.random.default_rng(seed).normal(size=(6, 50)) + np.random.default_rng(seed + 1).normal(size=50)
    known = sorted(computed)
    latest = known[-TERMS:][::-1]
    expected, *_ = np.linalg.lstsq(values[latest].T, values[5], rcond=None)
    found = fits_of(values).fit(5, "reuse", known)
    assert found.weights == pytest.approx(expected, rel=2e-3, abs=1e-4)  # four digits are kept, and a ridge is added
    left = np.mean((np.array(found.weights) @ values[latest] - values[5]) ** 2)
    assert found.residual == pytest.approx(left, rel=1e-6)


def test_differences_have_products_and_steps_of_their_own() -> None:
    rng = np.random.default_rng(0)
    shown, differences = rng.normal(size=(6, 40)), rng.normal(size=(6, 40))
    found = fits_of(shown, differences)
    assert found.before(2, "full+delta") == (0, 1)
    assert found.before(5, "full+delta") == (3, 4)  # the high-noise expert's are not the low-noise one's
    assert found.before(5, "reuse") == (0, 1, 2, 3, 4)
    expected, *_ = np.linalg.lstsq(differences[[4, 3]].T, differences[5], rcond=None)
    assert found.fit(5, "full+delta", (3, 4)).weights == pytest.approx(expected, rel=1e-3, abs=1e-4)


def test_weights_stay_within_what_a_recipe_takes() -> None:
    rng = np.random.default_rng(1)
    first = rng.normal(size=60)
    step = 1e-2 * rng.normal(size=60)
    values = np.array([first, first + step, first + 40 * step])  # the best weights would be 40 and -39
    found = fits_of(values).fit(2, "reuse", (0, 1))
    assert len(found.weights) == 1
    assert abs(found.weights[0]) <= MOST_WEIGHT
    assert fits_of(np.array([first, 100 * first])).fit(1, "reuse", (0,)).weights == (MOST_WEIGHT,)


def test_steps_that_show_the_same_share_the_weight() -> None:
    values = np.ones((3, 30))
    found = fits_of(values).fit(2, "reuse", (0, 1))
    assert sum(found.weights) == pytest.approx(1, abs=1e-3)
    assert max(map(abs, found.weights)) < 1
    assert found.residual == pytest.approx(0, abs=1e-6)
