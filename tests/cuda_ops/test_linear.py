"""Linear layers of whole maps of which patches change some cells: the reference, and the kernel's source."""

from __future__ import annotations

from math import prod
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from kcompile.cuda_ops import cuda_linear, kept, linear, nvrtc
from tests.cuda_ops.test_nvrtc import needs_nvrtc
from tests.cuda_ops.test_ops import DEVICES, channels_last, ints, moved
from tests.cuda_ops.test_reads import DTYPES, LIMITS, ending, numbers
from tests.support.cuda_on_cpu import CpuLauncher, needs_gxx

ops = torch.ops.kcompile


def case(axes: int = 2, dtype: torch.dtype = torch.float32, queries: int = 2, features: int = 0) -> tuple[Any, ...]:
    """Arguments; the map lies in a padded base, patches stick out of it or lie outside."""
    sizes = [ints(3, 6) for _ in range(axes)]
    padding = [ints(0, 2) for _ in range(axes)]
    channels, bases, features = (3, 40)[ints(0, 1)], ints(1, 3), features or (5, 16)[ints(0, 1)]
    base = numbers(bases, *[s + 2 * p for s, p in zip(sizes, padding, strict=True)], channels).to(dtype)
    over = [1] * axes if axes > 1 else [ints(1, 2)]
    patch = channels_last(numbers(queries, channels, *over)).to(dtype)
    places = torch.stack([torch.randint(-1, size + 1, (queries,)) for size in sizes], 1)
    origins = torch.cat([torch.randint(bases, (queries, 1)), torch.tensor([padding] * queries)], 1)
    bias = numbers(channels).to(dtype) if ints(0, 1) else None
    weight = numbers(features, channels * prod(sizes)).to(dtype)
    own = numbers(features).to(dtype) if ints(0, 1) else None
    packed = linear.pack(weight, prod(sizes))
    before = linear.of_bases(base, packed, own, padding, sizes)
    return base, patch, bias, *LIMITS[ints(0, 3)], origins, places, sizes, packed, own, before


def step_by_step(given: tuple[Any, ...]) -> Tensor:
    """With the layer's own weights, on maps as PyTorch lays them out."""
    base, patch, bias, low, high, origins, offsets, extent, packed, own, _ = given
    window = ops.gather_superimpose(base, ending(patch, bias, low, high), origins, offsets, extent).double()
    weight = packed.permute(2, 1, 0).flatten(1).double()
    return F.linear(window.flatten(1), weight, None if own is None else own.double())


def tolerance(dtype: torch.dtype) -> dict[str, float]:
    """Sums are exact in float32, results are rounded; of half precision so are those that they are added to."""
    epsilon = torch.finfo(dtype).eps
    return {"rtol": 2 * epsilon, "atol": (2 if dtype.itemsize > 2 else 2000) * epsilon}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("axes", [1, 2, 3])
def test_reference_step_by_step(axes: int, dtype: torch.dtype, seed: int) -> None:
    for _ in range(8):
        given = case(axes, dtype, ints(1, 5))
        mine = ops.read_linear(*given)
        assert mine.dtype == dtype
        torch.testing.assert_close(mine.double(), step_by_step(given), **tolerance(dtype))


@needs_gxx
@pytest.mark.parametrize(
    ("axes", "dtype"), [*((2, dtype) for dtype in DTYPES), (1, torch.float32), (3, torch.float32)], ids=str
)
def test_source_on_the_cpu(axes: int, dtype: torch.dtype, on_cpu: CpuLauncher, seed: int) -> None:
    launched = 0
    for _ in range(12):
        given = case(axes, dtype, ints(1, 2))
        on_cpu.launched.clear()
        mine = cuda_linear.read_linear(*given)
        torch.testing.assert_close(mine.double(), step_by_step(given), **tolerance(dtype))
        launched += [kernel for kernel, _ in on_cpu.launched] == ["linear"]
    assert launched >= 6


@needs_gxx
def test_many_queries_are_one_product(on_cpu: CpuLauncher, seed: int) -> None:
    """And so it is without the bases' own results."""
    given = case(queries=40)
    torch.testing.assert_close(cuda_linear.read_linear(*given), linear.read_linear(*given), rtol=0, atol=0)
    few = case(queries=1)
    cuda_linear.read_linear(*few[:-1], None)
    assert "linear" not in [kernel for kernel, _ in on_cpu.launched]
    assert cuda_linear.read_linear(*few).shape == (1, few[8].shape[2])
    assert [kernel for kernel, _ in on_cpu.launched][-1] == "linear"


@needs_gxx
def test_no_queries_and_no_features(on_cpu: CpuLauncher, seed: int) -> None:
    base, patch, bias, low, high, origins, offsets, *rest = case()
    none = (base, patch[:0], bias, low, high, origins[:0], offsets[:0], *rest)
    assert cuda_linear.read_linear(*none).shape == ops.read_linear(*none).shape == (0, rest[1].shape[2])
    assert not [kernel for kernel, _ in on_cpu.launched if kernel == "linear"]


@pytest.mark.parametrize("device", [DEVICES[1]])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("axes", [1, 2, 3])
def test_on_the_gpu(axes: int, dtype: torch.dtype, device: str, seed: int) -> None:
    for queries in (1, 2, 40):
        given = case(axes, dtype, queries)
        mine = ops.read_linear(*moved(given, device)).cpu()
        torch.testing.assert_close(mine.double(), step_by_step(given), **tolerance(dtype))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("queries", [1, 30])
def test_opcheck(queries: int, device: str, seed: int) -> None:
    tests = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    given = case(queries=queries + 1)  # sizes of 1 would be special
    torch.library.opcheck(ops.read_linear.default, moved(given, device), test_utils=tests)


@needs_nvrtc
@pytest.mark.parametrize("capability", [80, 90, 100, 120])
def test_compiles(capability: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "folder", lambda: None)
    for value, unit, axes in (("Float32", 16, 2), ("BFloat16", 16, 1), ("Float16", 2, 3), ("Float64", 8, 2)):
        defines = (("VALUE_TYPE", value), ("UNIT_BYTES", unit), ("SPATIAL_AXES", axes))
        assert nvrtc.compiled("linear", defines, capability).startswith(b"\x7fELF")


def test_before_is_what_no_patch_changes(seed: int) -> None:
    given = case(queries=3)
    outside = torch.full_like(given[6], -9)
    mine = ops.read_linear(*given[:6], outside, *given[7:])
    torch.testing.assert_close(mine, given[10][given[5][:, 0]], rtol=1e-6, atol=1e-5)
