"""CPU kernels against the pure-torch reference, and the reference against loops, on random geometry."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

import kcompile.cuda_ops  # noqa: F401  (registers torch.ops.kcompile)
from kcompile.cuda_ops import reference

ops = torch.ops.kcompile
AXES = [1, 2, 3]


@dataclass
class Geometry:
    """Arguments of the ops for N queries; patches stick out of their windows on all sides."""

    base: Tensor
    origins: Tensor
    extent: list[int]
    patch: Tensor
    offsets: Tensor

    @property
    def window(self) -> Tensor:
        return reference.gather(self.base, self.origins, self.extent)


def ints(low: int, high: int) -> int:
    """A random integer in low … high."""
    return int(torch.randint(low, high + 1, ()))


def random_geometry(axes: int, queries: int = 12, bases: int = 3, channels: int = 3) -> Geometry:
    sizes = [ints(3, 8) for _ in range(axes)]
    extent = [ints(1, size) for size in sizes]
    patch = [ints(1, size + 2) for size in extent]
    origins = [torch.randint(size - e + 1, (queries,)) for size, e in zip(sizes, extent, strict=True)]
    offsets = [torch.randint(-p - 1, e + 2, (queries,)) for p, e in zip(patch, extent, strict=True)]
    return Geometry(
        torch.randn(bases, *sizes, channels),
        torch.stack([torch.randint(bases, (queries,)), *origins], 1),
        extent,
        channels_last(torch.randn(queries, channels, *patch)),
        torch.stack(offsets, 1),
    )


def channels_last(value: Tensor) -> Tensor:
    return value.movedim(1, -1).contiguous().movedim(-1, 1)


def is_channels_last(value: Tensor) -> bool:
    return value.movedim(1, -1).is_contiguous()


def by_loops(window: Tensor, patch: Tensor, offsets: Tensor) -> Tensor:
    """Superimpose cell by cell."""
    result = window.clone()
    for row in range(len(window)):
        for cell in product(*(range(size) for size in patch.shape[2:])):
            where = [c + int(o) for c, o in zip(cell, offsets[row], strict=True)]
            if all(0 <= w < size for w, size in zip(where, window.shape[2:], strict=True)):
                result[(row, slice(None), *where)] = patch[(row, slice(None), *cell)]
    return result


def arguments(g: Geometry) -> dict[str, tuple[Any, ...]]:
    return {
        "gather": (g.base, g.origins, g.extent),
        "superimpose": (g.window, g.patch, g.offsets),
        "gather_superimpose": (g.base, g.patch, g.origins, g.offsets, g.extent),
    }


@pytest.mark.parametrize("axes", AXES)
def test_reference_against_loops(axes: int, seed: int) -> None:
    for _ in range(5):
        g = random_geometry(axes, queries=6)
        window = g.window
        for row, (base, *first) in enumerate(g.origins.tolist()):
            cut = g.base[base][tuple(slice(lo, lo + e) for lo, e in zip(first, g.extent, strict=True))]
            assert torch.equal(window[row], cut.movedim(-1, 0))
        assert torch.equal(reference.superimpose(window, g.patch, g.offsets), by_loops(window, g.patch, g.offsets))


@pytest.mark.parametrize("name", ["gather", "superimpose", "gather_superimpose"])
@pytest.mark.parametrize("axes", AXES)
def test_kernels_equal_the_reference(axes: int, name: str, seed: int) -> None:
    for _ in range(30):
        given = arguments(random_geometry(axes, ints(1, 9), ints(1, 3), ints(1, 4)))[name]
        before = [arg.clone() if isinstance(arg, Tensor) else list(arg) for arg in given]
        mine = getattr(ops, name)(*given)
        assert torch.equal(mine, getattr(reference, name)(*given))
        assert is_channels_last(mine)
        for arg, old in zip(given, before, strict=True):
            assert torch.equal(arg, old) if isinstance(arg, Tensor) else arg == old, "an argument was written to"


@pytest.mark.parametrize("name", ["gather", "superimpose", "gather_superimpose"])
@pytest.mark.parametrize("axes", AXES)
def test_results_share_no_memory_with_arguments(axes: int, name: str, seed: int) -> None:
    """Whole tensors with one query were once a view of the base store."""
    for queries, bases in product((1, 4), (1, 2)):
        g = whole(random_geometry(axes, queries, bases))
        given = arguments(g)[name]
        before = [arg.clone() for arg in given if isinstance(arg, Tensor)]
        getattr(ops, name)(*given).fill_(float("nan"))
        for arg, old in zip([arg for arg in given if isinstance(arg, Tensor)], before, strict=True):
            assert torch.equal(arg, old)


def whole(g: Geometry) -> Geometry:
    """The same with windows that are the whole tensor."""
    origins = torch.zeros_like(g.origins)
    origins[:, 0] = g.origins[:, 0]
    return Geometry(g.base, origins, list(g.base.shape[1:-1]), g.patch, g.offsets)


@pytest.mark.parametrize("queries", [1, 3])
def test_whole_tensors(queries: int, seed: int) -> None:
    for bases in (1, 3):
        g = whole(random_geometry(2, queries, bases))
        for name, given in arguments(g).items():
            assert torch.equal(getattr(ops, name)(*given), getattr(reference, name)(*given))


@pytest.mark.parametrize("name", ["gather", "superimpose", "gather_superimpose"])
@pytest.mark.parametrize("axes", AXES)
def test_opcheck(axes: int, name: str, seed: int) -> None:
    """Schema (no mutation, no aliases), shapes under fake tensors, dispatch under AOT and dynamic sizes."""
    given = arguments(random_geometry(axes))[name]
    torch.library.opcheck(
        getattr(ops, name).default, given, test_utils=("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    )


def moved(given: tuple[Any, ...], device: str) -> tuple[Any, ...]:
    """Arguments with all tensors on a device."""
    result: tuple[Any, ...] = tree_map_only(Tensor, lambda tensor: tensor.to(device), given)
    return result


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", ["gather", "superimpose", "gather_superimpose", "crop"])
@pytest.mark.parametrize("axes", AXES)
def test_opcheck_on_the_gpu(axes: int, name: str, seed: int) -> None:
    given = crop_arguments(axes) if name == "crop" else arguments(random_geometry(axes))[name]
    torch.library.opcheck(
        getattr(ops, name).default,
        moved(given, "cuda"),
        test_utils=("test_schema", "test_faketensor", "test_aot_dispatch_dynamic"),
    )


DEVICES = [
    "cpu",
    pytest.param("cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]),
]


@pytest.mark.parametrize("name", ["gather", "superimpose", "gather_superimpose"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_fake_results_have_the_real_ones_shape_and_strides(dtype: torch.dtype, name: str, seed: int) -> None:
    g = random_geometry(2)
    g.base, g.patch = g.base.to(dtype), g.patch.to(dtype)
    real = getattr(ops, name)(*arguments(g)[name])
    with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True):
        fake = getattr(ops, name)(*arguments(g)[name])
    assert (fake.shape, fake.stride(), fake.dtype) == (real.shape, real.stride(), real.dtype)
    assert real.dtype == dtype


def test_patches_of_every_memory_format(seed: int) -> None:
    """A patch may be expanded from one for all queries, or be contiguous."""
    g = random_geometry(2)
    for patch in (g.patch.contiguous(), g.patch[:1].expand(g.patch.shape), g.patch.flip(0)):
        assert torch.equal(ops.superimpose(g.window, patch, g.offsets), by_loops(g.window, patch, g.offsets))
        window = g.window.contiguous()
        assert is_channels_last(ops.superimpose(window, patch, g.offsets))


def test_a_patch_beside_the_window_leaves_it(seed: int) -> None:
    g = random_geometry(2, queries=4)
    rows, columns = g.patch.shape[2:]
    beside = torch.tensor([[-rows, 0], [0, -columns], [g.extent[0], 0], [0, g.extent[1] + 3]])
    assert torch.equal(ops.superimpose(g.window, g.patch, beside), g.window)


def test_a_patch_over_all_of_the_window_replaces_it(seed: int) -> None:
    g = random_geometry(2)
    patch = channels_last(torch.randn(len(g.patch), 3, g.extent[0] + 2, g.extent[1] + 1))
    offsets = torch.tensor([[-1, -1]]).repeat(len(patch), 1)
    laid = ops.gather_superimpose(g.base, patch, g.origins, offsets, g.extent)
    assert torch.equal(laid, patch[:, :, 1 : 1 + g.extent[0], 1 : 1 + g.extent[1]])


def test_equal_offsets_in_runs_and_apart(seed: int) -> None:
    """The kernel copies one slice per run of equal offsets."""
    g = random_geometry(2, queries=6)
    for pattern in ([0, 0, 0, 0, 0, 0], [0, 0, 1, 1, 0, 0], [0, 1, 0, 1, 0, 1]):
        offsets = torch.tensor([[0, -1], [1, 0]])[pattern]
        assert torch.equal(ops.superimpose(g.window, g.patch, offsets), by_loops(g.window, g.patch, offsets))


def test_values_survive_bit_for_bit(seed: int) -> None:
    """Infinities and NaN are copied, not computed with."""
    g = random_geometry(2)
    g.base.view(-1)[::5], g.base.view(-1)[::7], g.patch[:] = float("-inf"), float("nan"), float("inf")
    given = arguments(g)["gather_superimpose"]
    mine, want = ops.gather_superimpose(*given), by_loops(g.window, g.patch, g.offsets)
    assert torch.equal(mine.isnan(), want.isnan())
    assert torch.equal(mine.nan_to_num(0.5), want.nan_to_num(0.5))


def test_tensors_without_spatial_axes(seed: int) -> None:
    base, rows = torch.randn(4, 5), torch.tensor([[2], [0], [2]])
    mine = ops.gather(base, rows, [])
    assert torch.equal(mine, base[[2, 0, 2]])
    mine.zero_()
    assert base.count_nonzero() == 20


def boxes(axes: int, queries: int, least: int = 1) -> tuple[Tensor, Tensor, list[int], list[int]]:
    """Starts of windows and of boxes, the sizes of both; all of them random."""
    size, cells = [ints(1, 4) for _ in range(axes)], [ints(least, 6) for _ in range(axes)]
    return torch.randint(-2, 5, (queries, axes)), torch.zeros(queries, axes, dtype=torch.int64), size, cells


def crop_arguments(axes: int, queries: int = 6) -> tuple[Any, ...]:
    """Boxes that lie inside of results that begin at ``start * stride - shift``."""
    start, at, size, more = boxes(axes, queries, least=0)
    stride, shift = [ints(1, 3) for _ in range(axes)], [ints(0, 3) for _ in range(axes)]
    for axis in range(axes):
        inner = torch.randint(more[axis] + 1, (queries,))
        at[:, axis] = start[:, axis] * stride[axis] - shift[axis] + inner
    window = channels_last(torch.randn(queries, 3, *(s + m for s, m in zip(size, more, strict=True))))
    return window, start, at, size, stride, shift


def resample_arguments(axes: int, queries: int = 6, out: int = 7) -> tuple[Any, ...]:
    """Tables of any taps, of copies, and of none; windows hold whatever the boxes read."""
    size = [ints(1, 4) for _ in range(axes)]
    at = torch.stack([torch.randint(out - s + 1, (queries,)) for s in size], 1)
    start, index, factor, cells = torch.zeros_like(at), [], [], []
    for axis in range(axes):
        kind = ("none", "copies", "sums")[(ints(0, 2) + axis) % 3]
        taps = ints(1, 3) if kind == "sums" else 1
        table = torch.randint(9, (out, taps)) if kind != "none" else torch.arange(out)[:, None]
        read = table[at[:, axis, None] + torch.arange(size[axis])].flatten(1)
        start[:, axis] = read.amin(1) if kind != "none" else at[:, axis]
        cells.append(int((read.amax(1) - start[:, axis]).max()) + 1)
        index.append(table if kind != "none" else torch.empty(0, 0, dtype=torch.int64))
        factor.append(torch.randn(out, taps, dtype=torch.float64) if kind == "sums" else torch.empty(0, 0).double())
    window = channels_last(torch.randn(queries, 3, *cells, dtype=torch.float64))
    return window, start, at, size, index, factor


def cropped_by_loops(
    window: Tensor, start: Tensor, at: Tensor, size: list[int], stride: list[int], shift: list[int]
) -> Tensor:
    result = window.new_full((len(window), window.shape[1], *size), float("nan"))
    for row, cell in product(range(len(window)), product(*(range(s) for s in size))):
        where = [
            int(at[row, a]) + c - (int(start[row, a]) * stride[a] - shift[a]) for a, c in enumerate(cell)
        ]  # fmt: skip
        result[(row, slice(None), *cell)] = window[(row, slice(None), *where)]
    return result


def resampled_by_loops(
    window: Tensor, start: Tensor, at: Tensor, size: list[int], index: list[Tensor], factor: list[Tensor]
) -> Tensor:
    """Every output as the sum over all combinations of its taps."""
    result = window.new_zeros((len(window), window.shape[1], *size))
    for row, cell in product(range(len(window)), product(*(range(s) for s in size))):
        taps: list[list[tuple[int, float]]] = []
        for axis, c in enumerate(cell):
            out, first = int(at[row, axis]) + c, int(start[row, axis])
            reads = index[axis][out].tolist() if index[axis].numel() else [out]
            by = factor[axis][out].tolist() if factor[axis].numel() else [1.0] * len(reads)
            taps.append([(read - first, f) for read, f in zip(reads, by, strict=True)])
        for chosen in product(*taps):
            value = window[(row, slice(None), *(cell for cell, _ in chosen))]
            for _, f in chosen:
                value = value * f
            result[(row, slice(None), *cell)] += value
    return result


@pytest.mark.parametrize("axes", AXES)
def test_crop_against_loops(axes: int, seed: int) -> None:
    for _ in range(10):
        given = crop_arguments(axes, ints(1, 6))
        mine = ops.crop(*given)
        assert torch.equal(mine, cropped_by_loops(*given))
        assert torch.equal(mine, reference.crop(*given))
        assert is_channels_last(mine)


@pytest.mark.parametrize("axes", AXES)
def test_resample_against_loops(axes: int, seed: int) -> None:
    for _ in range(10):
        given = resample_arguments(axes, ints(1, 5))
        mine = ops.resample(*given)
        torch.testing.assert_close(mine, resampled_by_loops(*given), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(mine, reference.resample(*given), rtol=1e-12, atol=1e-12)
        assert is_channels_last(mine)


@pytest.mark.parametrize("name", ["crop", "resample"])
def test_crop_and_resample_take_any_memory_format(name: str, seed: int) -> None:
    given = crop_arguments(2) if name == "crop" else resample_arguments(2)
    want = getattr(ops, name)(*given)
    assert torch.equal(getattr(ops, name)(given[0].contiguous(), *given[1:]), want)


@pytest.mark.parametrize("name", ["crop", "resample"])
@pytest.mark.parametrize("axes", AXES)
def test_opcheck_of_crop_and_resample(axes: int, name: str, seed: int) -> None:
    given = crop_arguments(axes) if name == "crop" else resample_arguments(axes)
    torch.library.opcheck(
        getattr(ops, name).default, given, test_utils=("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    )


@pytest.mark.parametrize("name", ["crop", "resample"])
def test_crop_and_resample_share_no_memory_and_write_nothing(name: str, seed: int) -> None:
    """Where the box is the whole result, and where no axis changes, too."""
    window = channels_last(torch.randn(1, 3, 2, 4))
    none = [torch.empty(0, 0, dtype=torch.int64)] * 2
    zeros, size = torch.zeros(1, 2, dtype=torch.int64), [2, 4]
    rest = ([1, 1], [0, 0]) if name == "crop" else (none, [torch.empty(0, 0)] * 2)
    before = window.clone()
    result = getattr(ops, name)(window, zeros, zeros, size, *rest)
    assert torch.equal(result, before)
    result.fill_(float("nan"))
    assert torch.equal(window, before)
