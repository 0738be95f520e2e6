"""`kcompile.verify`: it passes good modules, catches broken ones, and says when nothing is proven."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import kcompile
from kcompile.trials import own_pixels, paste, random_patches, random_positions
from kcompile.verification import OutputCheck, Verification


class TwoHeads(nn.Module):
    """Returns a dict with a map and a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, stride=2, padding=1), nn.ReLU(), nn.MaxPool2d(2))
        self.last = nn.Conv2d(6, 4, 3, padding=1)
        self.head = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> dict[str, Any]:
        y = self.last(self.stem(x))
        return {"map": y, "heads": (self.head(y.mean((2, 3))),)}


class Shifted(nn.Module):
    """Its output is a constant plus a reaction to the image."""

    def __init__(self, constant: float, reaction: float) -> None:
        super().__init__()
        self.conv, self.constant, self.reaction = nn.Conv2d(3, 2, 3), constant, reaction

    def forward(self, x: Tensor) -> Tensor:
        return self.constant + self.reaction * self.conv(x)


def compiled(model: nn.Module | None = None, dtype: torch.dtype = torch.float32) -> kcompile.IncrementalModule:
    torch.manual_seed(7)
    return kcompile.incrementalize((model or TwoHeads()).to(dtype).eval(), (3, 24, 20), (6, 5))


def image(dtype: torch.dtype = torch.float32, bases: int = 1) -> Tensor:
    return torch.randn(bases, 3, 24, 20, generator=torch.Generator().manual_seed(3)).to(dtype)


def tampered(inc: kcompile.IncrementalModule, change: Callable[[Tensor], Tensor]) -> kcompile.IncrementalModule:
    """The module with ``change`` applied to every tensor that incremental inference returns."""
    original = inc.forward_patches
    inc.forward_patches = lambda *args, **kwargs: torch.utils._pytree.tree_map(  # type: ignore[method-assign]
        change, original(*args, **kwargs)
    )
    return inc


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_good_module_is_ok(dtype: torch.dtype) -> None:
    found = kcompile.verify(compiled(dtype=dtype), image(dtype))
    assert found.ok, str(found)
    assert not found.void
    assert [check.name for check in found.outputs] == ["['map']", "['heads'][0]"]
    assert [check.shape for check in found.outputs] == [(4, 6, 5), (5,)]
    assert {check.dtype for check in found.outputs} == {str(dtype).removeprefix("torch.")}
    assert len(found.positions) == 32
    assert all(check.change > 1e-3 * check.scale > 0 for check in found.outputs)


def test_several_bases() -> None:
    inc = compiled()
    assert kcompile.verify(inc, image(bases=3), positions=9).ok
    assert inc.base_output["map"].shape[0] == 3
    mixed = inc.forward_patches
    inc.forward_patches = lambda *args, base_index: mixed(*args, base_index=base_index * 0)  # type: ignore[method-assign]
    assert not kcompile.verify(inc, image(bases=3), positions=9).ok


def test_one_image_without_a_batch_and_one_position() -> None:
    found = kcompile.verify(compiled(), image()[0], positions=1)
    assert found.ok
    assert len(found.positions) == 1


def test_a_module_that_ignores_the_patch_fails() -> None:
    inc = compiled()
    inc.materialize(image())
    base = inc.base_output
    inc.forward_patches = (
        lambda patches, *_, **__: torch.utils._pytree.tree_map(  # type: ignore[method-assign]
            lambda leaf: leaf.expand(len(patches), *leaf.shape[1:]), base
        )
    )
    found = kcompile.verify(inc, image())
    assert not found.ok
    assert not found.void
    assert {check.verdict for check in found.outputs} == {"failed"}
    for check in found.outputs:
        assert check.error == pytest.approx(check.change, rel=1e-4)
        assert check.noise < check.tolerance


@pytest.mark.parametrize(
    ("dtype", "error", "ok"),
    [
        (torch.float32, 0.8e-4, True),  # of scale
        (torch.float32, 1.2e-4, False),
        (torch.float64, 0.8e-6, True),  # of the change
        (torch.float64, 1.2e-6, False),
    ],
)
def test_tolerances(dtype: torch.dtype, error: float, ok: bool) -> None:
    inc = compiled(Shifted(100.0, 1.0), dtype)
    (before,) = kcompile.verify(inc, image(dtype), seed=5).outputs
    allowed = before.scale if dtype is torch.float32 else before.change
    assert before.change < before.scale / 10
    found = kcompile.verify(tampered(inc, lambda out: out + error * allowed), image(dtype), seed=5)
    assert found.ok is ok, str(found)


def test_half_precision_may_err_like_the_plain_model() -> None:
    inc = compiled(dtype=torch.bfloat16)
    found = kcompile.verify(inc, image(torch.bfloat16), seed=5)
    for check in found.outputs:
        assert 2**-9 * check.scale <= check.tolerance < 0.1 * check.scale
    assert not kcompile.verify(tampered(inc, lambda out: out * 1.1), image(torch.bfloat16), seed=5).ok


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_no_numbers_fail(value: float) -> None:
    found = kcompile.verify(tampered(compiled(), lambda out: out.index_fill(0, torch.tensor([2]), value)), image())
    assert {check.verdict for check in found.outputs} == {"failed"}
    assert {check.worst for check in found.outputs} == {2}
    assert f"worst at {found.positions[2]}" in str(found)


def test_noise_beyond_the_tolerance_fails() -> None:
    inc, calls = compiled(), []
    original = inc.forward_patches

    def wrong_for_own_pixels(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        return torch.utils._pytree.tree_map(lambda out: out + (len(calls) > 1), original(*args, **kwargs))

    inc.forward_patches = wrong_for_own_pixels  # type: ignore[method-assign]
    found = kcompile.verify(inc, image())
    assert not found.ok
    assert [check.noise for check in found.outputs] == pytest.approx([1, 1], rel=1e-3)
    assert all(check.error < check.tolerance for check in found.outputs)


def test_a_model_that_does_not_react_is_void() -> None:
    found = kcompile.verify(compiled(Shifted(1.0, 1e-9), torch.float64), image(torch.float64))
    assert found.void
    assert not found.ok
    assert found.outputs[0].verdict == "void"
    assert str(found).startswith("void: 32 positions")
    assert "even a module that ignores them would pass" in str(found)


class Mixed(nn.Module):
    """Returns a map, a class index per image, a constant tensor and a number."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.register_buffer("anchors", torch.arange(6.0).reshape(3, 2))

    def forward(self, x: Tensor) -> tuple[Any, ...]:
        y = self.conv(x)
        return self.anchors, y.mean((2, 3)).argmax(dim=1), y, 3


def test_outputs_without_a_row_per_image_are_left_out() -> None:
    inc = compiled(Mixed())
    found = kcompile.verify(inc, image(), positions=16)
    assert [(check.name, check.dtype, check.shape) for check in found.outputs] == [
        ("[1]", "int64", ()),
        ("[2]", "float32", (4, 22, 18)),
    ]
    assert found.outputs[1].verdict == "ok"
    for count in (0, 5):
        anchors, classes, values, number = inc.forward_patches(0.0, np.zeros((count, 2), dtype=np.int64))
        assert torch.equal(anchors, inc.model.anchors)
        assert (classes.shape, values.shape, number) == ((count,), (count, 4, 22, 18), 3)


def test_a_void_output_beside_a_failed_one_is_a_failure() -> None:
    def check(error: float, change: float) -> OutputCheck:
        return OutputCheck("output", (2,), "float32", error, 0, 1.0, change, 0.0, 1e-4)

    assert [check(0, 1).verdict, check(0, 1e-4).verdict, check(1, 1e-4).verdict] == ["ok", "void", "failed"]
    assert Verification((check(0, 1), check(0, 1e-4)), ((0, 0),), 1).void
    both = Verification((check(1, 1), check(0, 1e-4)), ((0, 0),), 1)
    assert (both.ok, both.void) == (False, False)
    assert str(both).startswith("failed")
    assert not Verification((), (), 1).ok  # a model without tensors proves nothing


def test_a_seed_repeats_a_run() -> None:
    inc = compiled()
    first = kcompile.verify(inc, image(), positions=12)
    assert kcompile.verify(inc, image(), positions=12, seed=first.seed) == first
    assert kcompile.verify(inc, image(), positions=12).positions != first.positions
    assert f"seed {first.seed}" in str(first)


@pytest.mark.parametrize("patch", [(1, 1), (6, 5), (24, 20)])
def test_positions_reach_the_borders(patch: tuple[int, int], seed: int) -> None:
    size, last = np.array([24, 20]), np.array([24, 20]) - patch
    where = random_positions(size, patch, 64, np.random.default_rng(seed))
    assert where.shape == (64, 2)
    assert ((where > -np.array(patch)) & (where < size)).all()  # never wholly outside
    spots = set(map(tuple, where.tolist()))
    assert {(r, c) for r in (0, last[0]) for c in (0, last[1])} <= spots
    if patch != (1, 1):
        assert (where < 0).any(axis=0).all()
        assert (where > last).any(axis=0).all()
    for count in range(1, 30):
        assert len(random_positions(size, patch, count, np.random.default_rng(seed))) == count


def test_pasting_equals_a_loop_over_pixels(seed: int) -> None:
    rng = np.random.default_rng(seed)
    images = torch.randn(20, 3, 9, 7)
    patches, where = random_patches(images, (4, 3), 20, rng), random_positions((9, 7), (4, 3), 20, rng)
    expected = images.clone()
    for n, (row, col) in enumerate(where.tolist()):
        for r in range(9):
            for c in range(7):
                if 0 <= r - row < 4 and 0 <= c - col < 3:
                    expected[n, :, r, c] = patches[n, :, r - row, c - col]
    assert torch.equal(paste(images, patches, where), expected)
    assert not torch.equal(expected, images)
    own = own_pixels(images, where, (4, 3))
    assert torch.equal(paste(images, own, where), images)
    assert own.shape == patches.shape


def test_random_patches_suit_the_image(seed: int) -> None:
    images = 100 + 5 * torch.randn(2, 3, 16, 16, dtype=torch.float64)
    patches = random_patches(images, (4, 4), 50, np.random.default_rng(seed))
    assert patches.dtype == torch.float64
    assert patches.mean() == pytest.approx(100, abs=2)
    assert patches.std() == pytest.approx(10, rel=0.1)
    assert random_patches(torch.zeros(1, 3, 8, 8), (2, 2), 9, np.random.default_rng(seed)).std() > 0.5


def test_bad_arguments_are_named() -> None:
    inc = compiled()
    with pytest.raises(kcompile.InputError, match="positions is 0"):
        kcompile.verify(inc, image(), positions=0)
    with pytest.raises(kcompile.InputError, match="shape"):
        kcompile.verify(inc, torch.zeros(3, 8, 8))
    with pytest.raises(kcompile.InputError, match="got TwoHeads"):
        kcompile.verify(TwoHeads(), image())  # type: ignore[arg-type]
