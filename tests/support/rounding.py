"""Half precision: results are held against float64, and may err twice as much as the plain model does."""

from __future__ import annotations

from torch import Tensor, finfo


def assert_rounds_like(mine: Tensor, plain: Tensor, exact: Tensor) -> None:
    """Compare root mean square errors: the largest of a few dozen is too much a matter of chance.

    Args:
        mine: Results of patched images [N, …].
        plain: The plain model's.
        exact: Those of float64.
    """
    assert mine.dtype == plain.dtype
    own = max(_spread(plain.double() - exact), float(exact.abs().max()) * finfo(plain.dtype).eps / 8)
    error, change = _spread(mine.double() - exact), _spread(exact - exact.mean(0))
    assert change > 3 * own, f"void: the model reacts by {change:.1e}, its rounding is {own:.1e}"
    assert error <= 2 * own, f"error {error:.1e}, the plain model's {own:.1e}"


def _spread(values: Tensor) -> float:
    return float(values.square().mean().sqrt())
