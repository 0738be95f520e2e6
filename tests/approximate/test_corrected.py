"""Corrections of a linear tail: lattices of positions, and interpolation between them."""

from __future__ import annotations

from typing import Any

import numpy as np

from kcompile.corrected import interpolated, lattice


def test_interpolation_of_a_product_of_lines(seed: int) -> None:
    rng = np.random.default_rng(seed)
    lines = [np.array([0, 3, 10]), np.array([2, 9])]
    slopes = rng.normal(size=(2, 2))

    def value(rows: Any, cols: Any) -> Any:
        return np.stack([(1 + a * rows) * (2 - b * cols) for a, b in slopes], axis=-1)

    values = value(*np.meshgrid(*lines, indexing="ij"))
    spots = np.stack([rng.integers(0, 11, 50), rng.integers(2, 10, 50)], axis=1)
    np.testing.assert_allclose(interpolated(lines, values, spots), value(*spots.T), rtol=1e-9, atol=1e-9)
    beyond = interpolated(lines, values, np.array([[0, 0], [12, 20]]))
    np.testing.assert_allclose(beyond, [values[0, 0], values[-1, -1]])
    alone = interpolated([np.array([4]), lines[1]], values[:1], np.array([[1, 2], [9, 9]]))
    np.testing.assert_allclose(alone, [values[0, 0], values[0, 1]])


def test_lattices() -> None:
    spots = np.stack(np.meshgrid(np.arange(0, 60, 4), np.arange(3, 40, 4), indexing="ij"), -1).reshape(-1, 2)
    assert [list(line) for line in lattice(spots, 9)] == [[0, 28, 56], [3, 19, 39]]
    assert [len(line) for line in lattice(spots, 1)] == [2, 2]
    assert [len(line) for line in lattice(spots, 10**6)] == [15, 10]
    assert [list(line) for line in lattice(spots[:1], 16)] == [[0], [3]]
