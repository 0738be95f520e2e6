"""Corrections by exact positions: lattices, factors, interpolation, and what comes of them."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import kcompile
from kcompile import Approximation
from kcompile.corrected import MOST, Corrected, best_factor, interpolated, lattice
from kcompile.linear_scores import Functions
from tests.support.equivalence import incremental, reacting
from tests.support.networks import Gated, conv_bn_relu
from tests.support.running import incremental_wherever_possible


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
    assert [list(line) for line in lattice(spots, 9)] == [[0, 32, 56], [3, 23, 39]]
    assert [len(line) for line in lattice(spots, 1)] == [2, 2]
    assert [len(line) for line in lattice(spots, 10**6)] == [15, 10]
    assert [list(line) for line in lattice(spots[:1], 16)] == [[0], [3]]


@pytest.mark.parametrize(
    ("sizes", "count", "lines", "step"),
    [
        ((53, 53), 64, (8, 8), 8), ((53, 53), 25, (5, 5), 16), ((53, 53), 2809, (53, 53), 1),
        ((12, 11), 132, (12, 11), 1), ((9, 9), 64, (9, 9), 1), ((1, 100), 49, (1, 51), 2), ((3, 100), 49, (3, 16), 7),
        ((30,), 8, (9,), 4),
        ((9, 9, 9), 27, (3, 3, 3), 4),
    ],
)  # fmt: skip
def test_a_lattice_has_about_as_many_positions_as_are_wanted(
    sizes: tuple[int, ...], count: int, lines: tuple[int, ...], step: int
) -> None:
    spots = np.stack(np.meshgrid(*map(np.arange, sizes), indexing="ij"), -1).reshape(-1, len(sizes))
    found = lattice(spots, count)
    assert tuple(map(len, found)) == lines
    assert found[-1][1] - found[-1][0] == step
    assert all(line[0] == 0 and line[-1] == size - 1 for line, size in zip(found, sizes, strict=True))


def test_the_best_factor(seed: int) -> None:
    """In least squares, class by class; NaN and infinities are left out."""
    rng = torch.Generator().manual_seed(seed)
    guessed = torch.randn(40, 4, dtype=torch.float64, generator=rng)
    noise = 0.1 * torch.randn(40, 4, dtype=torch.float64, generator=rng)
    told = guessed * torch.tensor([0.5, 4.5, 100.0, -1.0]) + noise
    found = best_factor(told, guessed)
    for k in (0, 1):
        want = torch.linalg.lstsq(guessed[:, k : k + 1], told[:, k : k + 1]).solution
        assert float(found[k]) == pytest.approx(float(want), rel=1e-9)
    assert found[2:].tolist() == [MOST, 0.0]
    told[3], told[5], guessed[7] = torch.nan, torch.inf, -torch.inf
    known = [i for i in range(40) if i not in (3, 5, 7)]
    torch.testing.assert_close(best_factor(told, guessed), best_factor(told[known], guessed[known]))
    assert best_factor(told, torch.zeros_like(guessed)).tolist() == [0.0] * 4
    for scale in (1e-30, 1e30):
        torch.testing.assert_close(best_factor(told * scale, guessed * scale), best_factor(told, guessed))


class Stub:
    """Exact and approximate scores of positions, by formulas; the approximate change is a share of the exact one."""

    def __init__(self, shares: list[float], rough: float) -> None:
        self.shares, self.rough = torch.tensor(shares, dtype=torch.float64), rough
        self.functions, self.values = Functions("plain", (0, 1), 2), torch.tensor([[3.0, -2.0]], dtype=torch.float64)
        self.question = SimpleNamespace(
            told=lambda out, _: out, scores=lambda out, _: out.numpy(), inc=SimpleNamespace(memory_budget=None)
        )

    def base(self, given: Any) -> Any:
        return self.values[0].numpy()

    def aim(self, targets: Any, positions: Any) -> None:
        pass

    def functions_for(self, targets: Any, classes: int) -> Functions:
        return self.functions

    def change(self, spots: Any) -> Tensor:
        rows, cols = torch.from_numpy(spots).double().unbind(1)
        return torch.stack([(rows / 3).sin() + (cols / 2).cos(), rows * cols / 50], 1)

    def outputs(self, spots: Any) -> Any:
        for part in np.array_split(np.arange(len(spots)), 3):
            yield part, self.values + self.change(spots[part])

    def values_at(self, spots: Any) -> Any:
        smooth = self.rough * torch.from_numpy(spots).double()
        for part in np.array_split(np.arange(len(spots))[::-1].copy(), 4):
            yield part, self.values + self.shares * self.change(spots[part]) + smooth[part]


@pytest.mark.parametrize("rough", [0.0, 0.01])
def test_factors_and_slow_errors_are_mended_between_the_lattices_positions(rough: float) -> None:
    """A factor of each class' own, exactly; an error that is linear in the position nearly so."""
    stub: Any = Stub([0.2, 0.7], rough)
    corrected = Corrected(stub.question, stub, 9)
    corrected.exact = stub
    positions = np.stack(np.meshgrid(np.arange(0, 26, 2), np.arange(0, 20, 2), indexing="ij"), -1).reshape(-1, 2)
    exact = stub.values + stub.change(positions)
    corrected.base(SimpleNamespace())
    corrected.aim([0], positions)
    begun = {row: score for rows, scores in corrected.begin(positions) for row, score in zip(rows, scores, strict=True)}
    assert sorted(positions[list(begun)].tolist()) == [[a, b] for a in (0, 16, 24) for b in (0, 10, 18)]
    for row, score in begun.items():
        np.testing.assert_array_equal(score, exact[row].numpy())
    if not rough:
        np.testing.assert_allclose(corrected.factor, [5, 1 / 0.7], rtol=1e-9)
    found = np.zeros((len(positions), 2))
    for rows, scores in corrected.at(positions):
        found[rows] = scores
    scale = float((exact - stub.values).abs().max())
    without = max(float((values - exact[rows]).abs().max()) for rows, values in stub.values_at(positions))
    assert np.abs(found - exact.numpy()).max() < (0.4 * without if rough else 1e-6 * scale)
    assert without > 0.25 * scale


def test_an_error_that_is_not_finite_stays_where_it_is() -> None:
    stub: Any = Stub([0.5, 0.5], 0.0)
    change = stub.change

    def broken(spots: Any) -> Tensor:
        found: Tensor = change(spots)
        found[(spots == (16, 10)).all(1)] = -torch.inf
        return found

    stub.change = broken
    corrected = Corrected(stub.question, stub, 9)
    corrected.exact = stub
    positions = np.stack(np.meshgrid(np.arange(0, 26, 2), np.arange(0, 20, 2), indexing="ij"), -1).reshape(-1, 2)
    corrected.base(SimpleNamespace())
    corrected.aim([0], positions)
    assert sum(np.isinf(scores).any(1).sum() for _, scores in corrected.begin(positions)) == 1
    assert sum((~np.isfinite(scores)).any(1).sum() for _, scores in corrected.at(positions)) == 1


SHAPE, PATCH = (3, 34, 29), (5, 4)
CLASSES = 10  # more than of which all logits are linearised


@pytest.fixture
def gated(seed: int) -> tuple[kcompile.IncrementalModule, Tensor]:
    """A network that crops, held gates and a smaller type all change: drawn until its gates move."""
    for _ in range(50):
        model, image = reacting(drawn(), torch.randn(8, *SHAPE)).double(), torch.randn(*SHAPE, dtype=torch.float64)
        with incremental_wherever_possible():
            inc = incremental(model, SHAPE, PATCH)
            options: Any = {"stride": 12, "score": "logit", "target": 1, "value": 8.0}
            exact = kcompile.occlusion(inc, image, **options)
            held = kcompile.occlusion(inc, image, **options, approximation=Approximation(gates="held", samples=0))
        if np.abs(held.scores - exact.scores).max() > 1e-3 * np.abs(exact.scores).max():  # not so where one is NaN
            return inc, image
    raise AssertionError("no network of 50 has gates that move")


def drawn() -> nn.Module:
    body = nn.Sequential(conv_bn_relu(3, 8), Gated(8), nn.MaxPool2d(2), conv_bn_relu(8, 8), conv_bn_relu(8, 8))
    return nn.Sequential(body, nn.AvgPool2d(2), nn.Flatten(), nn.Linear(8 * 8 * 7, CLASSES))


def curved(outputs: Tensor) -> Tensor:
    return (outputs.square() + outputs)[:, :3]


@pytest.mark.parametrize("score", ["logit", "probability", curved], ids=["logit", "probability", "curved"])
@pytest.mark.parametrize(
    "changes",
    [{"tau": 0.4}, {"gates": "held"}, {"tau": 0.6, "gates": "held"}, {"tau": 0.4, "cut": 0.9}, {"dtype": "bfloat16"}],
    ids=str,
)
def test_corrections_are_exact_at_their_positions(
    changes: dict[str, Any], score: Any, gated: Any, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So a lattice of all positions gives the exact map, of all classes (of the target where there is a cut)."""
    monkeypatch.setattr("kcompile.variants.has_arithmetic", lambda *_: True)
    inc, image = gated
    options: Any = {"stride": (4, 3), "score": score, "target": 1, "value": 8.0}  # which moves gates, too
    with incremental_wherever_possible():
        exact = kcompile.occlusion(inc, image, **options)
        rows, cols = exact.scores.shape
        settings = [Approximation(**changes, correct=count) for count in (0, 9, max(rows, cols) ** 2)]
        rough, coarse, whole = (kcompile.occlusion(inc, image, **options, approximation=one) for one in settings)
    known = ~np.isnan(coarse.all_scores[0, 0])
    assert known.sum() == (1 if "cut" in changes else exact.all_scores.shape[-1])
    scale, rounding = np.abs(exact.all_scores).max(), 1e-2 if "dtype" in changes else 1e-6
    np.testing.assert_allclose(
        whole.all_scores[..., known], exact.all_scores[..., known], rtol=0, atol=rounding * scale
    )
    np.testing.assert_allclose(coarse.base_scores, exact.base_scores, rtol=0, atol=1e-9 * scale)
    grid = np.stack(np.meshgrid(np.arange(rows), np.arange(cols), indexing="ij"), -1).reshape(-1, 2)
    at = np.ix_(*lattice(grid, 9))
    np.testing.assert_allclose(coarse.scores[at], exact.scores[at], rtol=0, atol=rounding * scale)
    off = np.abs(rough.scores - exact.scores).max()
    assert off > (0 if "dtype" in changes else 1e-5 * scale), "void: nothing was approximated"
    assert np.abs(coarse.scores - exact.scores).max() > 0, "all but the lattice is approximate"
    assert not np.array_equal(coarse.scores, rough.scores)
    assert "corrected by about 9 exact ones" in repr(coarse)
    assert coarse.error is not None
    assert coarse.error.positions == exact.scores.size - at[0].size * at[1].size, "what is exact is not drawn from"
    if score == "probability" and "cut" not in changes:
        np.testing.assert_allclose(coarse.all_scores.sum(-1), 1, atol=1e-6)


def counted(outputs: Tensor) -> Tensor:
    return (outputs > 0).sum(1)


def of_a_head(outputs: Tensor) -> Tensor:
    """With weights that want gradients, as a user's own layer has."""
    return nn.functional.linear(outputs, torch.ones(2, CLASSES, dtype=outputs.dtype, requires_grad=True))


@pytest.mark.parametrize("score", [counted, of_a_head])
def test_scores_of_users(score: Any, gated: Any) -> None:
    """Numbers of classes, and what has gradients, as without a correction."""
    inc, image = gated
    options: Any = {"stride": 4, "score": score, "target": 0, "approximation": Approximation(tau=0.4, correct=9)}
    with incremental_wherever_possible():
        exact = kcompile.occlusion(inc, image, **{**options, "approximation": None})
        heat = kcompile.occlusion(inc, image, **options)
    assert np.isfinite(heat.scores).all()
    assert heat.error is not None
    assert (heat.scores == exact.scores).sum() >= 9


def test_drill_down_knows_the_lattice(gated: Any) -> None:
    """Its exact scores stand in the map, and what is interpolated between them knows them."""
    inc, image = gated
    settings = Approximation(tau=0.4, correct=16, share=0.1, coarse=8, levels=3, samples=0)
    with incremental_wherever_possible():
        exact = kcompile.occlusion(inc, image, stride=2, score="logit", target=0)
        heat = kcompile.occlusion(inc, image, stride=2, score="logit", target=0, approximation=settings)
    at = np.ix_(*lattice(np.argwhere(np.ones(exact.scores.shape)), 16))
    np.testing.assert_allclose(heat.scores[at], exact.scores[at], rtol=0, atol=1e-6 * np.abs(exact.scores).max())


@pytest.mark.parametrize("stopped_by", ["Ctrl-C", "callback"])
def test_stopped_while_the_lattice_is_computed(stopped_by: str, gated: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    inc, image = gated
    monkeypatch.setattr(inc.executor(), "batch", 64)
    monkeypatch.setattr(inc.executor(), "tail_bytes", 1)

    def callback(progress: Any) -> bool:
        if stopped_by == "Ctrl-C":
            raise KeyboardInterrupt
        return False

    options: Any = {"stride": 1, "score": "logit", "target": 0, "callback": callback}
    with incremental_wherever_possible():
        heat = kcompile.occlusion(inc, image, **options, approximation=Approximation(tau=0.4, correct=10**6))
    assert 0 < np.isfinite(heat.scores).sum() < heat.scores.size
    assert not heat.complete


def test_several_images_and_drill_down(gated: Any, seed: int) -> None:
    """Each image has corrections of its own; positions between are interpolated as ever."""
    inc, image = gated
    settings = Approximation(tau=0.4, correct=16, share=0.3, coarse=8, samples=0)
    options: Any = {"stride": 2, "score": "logit", "approximation": settings}
    with incremental_wherever_possible():
        alone = [kcompile.occlusion(inc, one, **options, target=2) for one in (image, image.flip(1))]
        both = kcompile.occlusion(inc, [image, image.flip(1)], **options, target=2)
        pair = kcompile.occlusion(inc, image, **options, target=[2, 5])
    for one, other in zip(alone, both, strict=True):
        np.testing.assert_allclose(other.all_scores, one.all_scores, rtol=0, atol=1e-6 * np.abs(one.all_scores).max())
    assert np.abs(both[0].scores - both[1].scores).max() > 1e-3 * np.abs(both[0].scores).max()
    np.testing.assert_array_equal(pair[1].scores, pair[0].retarget(5).scores)


def test_what_is_exact_needs_no_correction() -> None:
    settings = Approximation(share=0.2, coarse=8, samples=0)
    with pytest.raises(kcompile.InputError, match="correct is 16, and no score needs it"):
        replace(settings, correct=16)
    assert replace(settings, tau=0.5, correct=16).correct == 16


def test_a_lattice_that_is_the_whole_map_makes_it_exact(gated: Any) -> None:
    inc, image = gated
    options: Any = {"stride": 12, "target": 1, "value": 8.0}
    with incremental_wherever_possible():
        exact = kcompile.occlusion(inc, image, **options)
        whole = kcompile.occlusion(inc, image, **options, approximation=Approximation(tau=0.4, correct=1000))
        cut = kcompile.occlusion(inc, image, **options, approximation=Approximation(cut=0.9, correct=1000))
    np.testing.assert_allclose(whole.all_scores, exact.all_scores, rtol=0, atol=1e-9)
    assert whole.approximation is None
    assert cut.approximation is not None, "it has no scores of other classes"


def in_place(outputs: Tensor) -> Tensor:
    """As `plainly`, but written into what it is given."""
    return outputs.mul_(3).sub_(1)[:, :3]


def plainly(outputs: Tensor) -> Tensor:
    return (3 * outputs - 1)[:, :3]


@pytest.mark.parametrize(
    "changes",
    [{"tau": 0.4}, {"tau": 0.4, "correct": 9}, {"cut": 0.9}, {"cut": 0.9, "correct": 9},
     {"cut": 0.9, "tau": 0.4, "rest": "linear"}],
    ids=str,
)  # fmt: skip
def test_a_score_may_write_into_the_outputs(changes: dict[str, Any], gated: Any) -> None:
    inc, image = gated
    options: Any = {"stride": (4, 3), "target": 1, "value": 8.0, "approximation": Approximation(**changes, seed=0)}
    with incremental_wherever_possible():
        wanted, found = (kcompile.occlusion(inc, image, score=score, **options) for score in (plainly, in_place))
        if "cut" in changes:
            with pytest.raises(kcompile.InputError, match="writes into what its own gradient needs"):
                kcompile.occlusion(inc, image, score=lambda outputs: outputs.add_(outputs.square()), **options)
    scale = np.abs(wanted.all_scores[..., 1]).max()
    np.testing.assert_allclose(found.base_scores, wanted.base_scores, rtol=0, atol=1e-9 * scale)
    np.testing.assert_allclose(found.all_scores, wanted.all_scores, rtol=0, atol=1e-6 * scale, equal_nan=True)
    np.testing.assert_allclose(found.checked.scores, wanted.checked.scores, rtol=0, atol=1e-6 * scale)


@pytest.mark.parametrize(
    "score",
    [lambda outputs: torch.from_numpy(outputs.numpy() * 2), lambda outputs: torch.stack([o.mul_(2) for o in outputs])],
    ids=["numpy", "views"],
)
def test_scores_without_gradients_are_named_under_a_cut(score: Any, gated: Any) -> None:
    inc, image = gated
    options: Any = {"stride": 12, "target": 1, "score": score}
    kcompile.occlusion(inc, image, **options)
    with pytest.raises(kcompile.InputError, match="the score can't be linearised"):
        kcompile.occlusion(inc, image, **options, approximation=Approximation(cut=0.5))
