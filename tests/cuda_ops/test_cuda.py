"""The CUDA kernels: their source compiled for the CPU, and themselves on a GPU, against the reference, bit for bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from kcompile.cuda_ops import cuda, packing, reference
from tests.cuda_ops.test_ops import Geometry, arguments, channels_last, crop_arguments, ints, is_channels_last
from tests.cuda_ops.test_ops import random_geometry as float_geometry
from tests.support.cuda_on_cpu import CpuLauncher, needs_gxx

gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int8]
OPS = ["gather", "superimpose", "gather_superimpose"]


def random_geometry(axes: int, queries: int, bases: int, channels: int, dtype: torch.dtype = torch.float32) -> Geometry:
    g = float_geometry(axes, queries, bases, channels)
    g.base, g.patch = (100 * g.base).to(dtype), channels_last((100 * g.patch).to(dtype))
    return g


def random_case(name: str, axes: int, dtype: torch.dtype) -> tuple[Any, ...]:
    """Arguments of an op; channels that allow wide accesses come as often as others."""
    channels = ints(1, 9) if ints(0, 1) else 4 * ints(1, 5)
    if name == "crop":
        window, *rest = crop_arguments(axes, ints(1, 6))
        return (channels_last((100 * window).to(dtype).repeat(1, channels, *[1] * axes)), *rest)
    return arguments(random_geometry(axes, ints(1, 9), ints(1, 3), channels, dtype))[name]


def same_bits(mine: Tensor, want: Tensor) -> bool:
    assert (mine.shape, mine.dtype) == (want.shape, want.dtype)
    return torch.equal(*(value.flatten().contiguous().view(torch.uint8) for value in (mine, want)))


@needs_gxx
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("name", [*OPS, "crop"])
def test_source_on_the_cpu(name: str, axes: int, dtype: torch.dtype, on_cpu: CpuLauncher, seed: int) -> None:
    for _ in range(12):
        given = random_case(name, axes, dtype)
        before = [arg.clone() if isinstance(arg, Tensor) else arg for arg in given]
        mine = getattr(cuda, name)(*given)
        assert same_bits(mine, getattr(reference, name)(*given))
        assert is_channels_last(mine)
        for arg, old in zip(given, before, strict=True):
            assert same_bits(arg, old) if isinstance(arg, Tensor) else arg == old, "an argument was written to"
    assert len(on_cpu.launched) == 12, "one launch for a batch"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("name", [*OPS, "crop"])
@pytest.mark.parametrize("coordinates", [pytest.param("cpu", marks=gpu), pytest.param("cuda", marks=gpu)])
def test_on_the_gpu(name: str, axes: int, dtype: torch.dtype, coordinates: str, seed: int) -> None:
    for _ in range(12):
        given = random_case(name, axes, dtype)
        places = {id(arg) for arg in given if isinstance(arg, Tensor) and arg.dtype == torch.int64}
        moved = [
            arg.to(coordinates if id(arg) in places else "cuda") if isinstance(arg, Tensor) else arg for arg in given
        ]
        mine = getattr(torch.ops.kcompile, name)(*moved)
        assert mine.is_cuda
        assert is_channels_last(mine)
        assert same_bits(mine.cpu(), getattr(reference, name)(*given))


@needs_gxx
@pytest.mark.parametrize(
    ("dtype", "channels", "unit"),
    [
        (torch.float32, 64, 16), (torch.float32, 4, 16), (torch.float32, 6, 8), (torch.float32, 3, 4),
        (torch.bfloat16, 8, 16), (torch.bfloat16, 12, 8), (torch.float16, 6, 4), (torch.float16, 5, 2),
        (torch.float64, 2, 16), (torch.float64, 3, 8), (torch.int8, 3, 1), (torch.int8, 48, 16),
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", OPS)
def test_widest_access(name: str, dtype: torch.dtype, channels: int, unit: int, on_cpu: CpuLauncher, seed: int) -> None:
    given = arguments(random_geometry(2, 3, 2, channels, dtype))[name]
    assert same_bits(getattr(cuda, name)(*given), getattr(reference, name)(*given))
    assert on_cpu.launched == [("windows", {"UNIT_BYTES": unit, "SPATIAL_AXES": 2})]


@needs_gxx
def test_addresses_and_strides_limit_the_access(on_cpu: CpuLauncher, seed: int) -> None:
    """Bases that are slices of something, at odd addresses or with gaps."""
    for begin, gap, unit in ((0, 0, 16), (0, 4, 16), (1, 0, 4), (2, 0, 8), (0, 1, 4), (0, 2, 8)):
        g = random_geometry(2, 4, 2, 8)
        wide = torch.randn(*g.base.shape[:-1], 8 + begin + gap)
        storage = torch.empty(wide.numel() + begin)[begin:].view(wide.shape).copy_(wide)
        base = storage[..., :8]
        given = (base, g.patch, g.origins, g.offsets, g.extent)
        assert same_bits(cuda.gather_superimpose(*given), reference.gather_superimpose(*given))
        limit = 16 if (begin, gap) == (0, 0) else 4 * ((8 + begin + gap) & -(8 + begin + gap))
        assert on_cpu.launched[-1][1]["UNIT_BYTES"] == min(unit, limit, 16)


@needs_gxx
def test_memory_formats_of_patches_windows_and_bases(on_cpu: CpuLauncher, seed: int) -> None:
    for channels in (1, 3, 8):
        g = random_geometry(2, 5, 2, channels)
        for patch in (
            g.patch.contiguous(),
            g.patch[:1].expand(g.patch.shape),
            g.patch.flip(0),
            g.patch.mT.contiguous().mT,
        ):
            given = (g.base, patch, g.origins, g.offsets, g.extent)
            assert same_bits(cuda.gather_superimpose(*given), reference.gather_superimpose(*given))
            window = g.window.contiguous()
            assert is_channels_last(mine := cuda.superimpose(window, patch, g.offsets))
            assert same_bits(mine, reference.superimpose(window, patch, g.offsets))
        base = g.base.movedim(-1, 1).contiguous().movedim(1, -1)
        assert same_bits(cuda.gather(base, g.origins, g.extent), reference.gather(base, g.origins, g.extent))
        strided = g.origins.repeat_interleave(2, 1)[:, ::2]
        assert same_bits(cuda.gather(base, strided, g.extent), reference.gather(base, g.origins, g.extent))


@needs_gxx
def test_nan_keeps_its_payload(on_cpu: CpuLauncher, seed: int) -> None:
    g = random_geometry(2, 5, 1, 4)
    g.base.view(torch.int32).fill_(0x7FA12345)
    g.patch.view(torch.int32).fill_(-0x5EDCC)
    given = arguments(g)["gather_superimpose"]
    assert same_bits(cuda.gather_superimpose(*given), reference.gather_superimpose(*given))


@needs_gxx
def test_more_queries_than_blocks(on_cpu: CpuLauncher, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    monkeypatch.setattr(packing, "MOST_BLOCKS", 2)
    given = arguments(random_geometry(2, 7, 2, 4))["gather_superimpose"]
    assert same_bits(cuda.gather_superimpose(*given), reference.gather_superimpose(*given))


@needs_gxx
def test_windows_larger_than_a_block(on_cpu: CpuLauncher, seed: int) -> None:
    base, patch = torch.randn(1, 40, 40, 20), channels_last(torch.randn(2, 20, 31, 33))
    origins, offsets = torch.tensor([[0, 1, 2], [0, 2, 0]]), torch.tensor([[3, 2], [-4, 30]])
    given = (base, patch, origins, offsets, [37, 38])
    assert same_bits(cuda.gather_superimpose(*given), reference.gather_superimpose(*given))


@needs_gxx
def test_nothing_to_do_is_no_launch(on_cpu: CpuLauncher, seed: int) -> None:
    g = random_geometry(2, 3, 1, 4)
    assert cuda.gather(g.base, g.origins[:0], g.extent).shape == (0, 4, *g.extent)
    assert not on_cpu.launched
    empty = g.patch[:, :, :0]
    assert same_bits(cuda.superimpose(g.window, empty, g.offsets), channels_last(g.window))


@needs_gxx
def test_patches_of_another_type_are_cast(on_cpu: CpuLauncher, seed: int) -> None:
    g = random_geometry(2, 3, 1, 4)
    patch = g.patch.to(torch.bfloat16)
    given = (g.base, patch, g.origins, g.offsets, g.extent)
    want = reference.gather_superimpose(g.base, patch.float(), g.origins, g.offsets, g.extent)
    assert same_bits(cuda.gather_superimpose(*given), want)


@pytest.mark.parametrize("axes", [0, 4])
def test_other_numbers_of_axes_run_the_reference(axes: int, seed: int) -> None:
    base, origins = torch.randn(2, *[3] * axes, 5), torch.zeros(4, 1 + axes, dtype=torch.int64)
    assert same_bits(cuda.gather(base, origins, [2] * axes), reference.gather(base, origins, [2] * axes))


def test_divisors_by_brute_force() -> None:
    """``quotient`` of windows.cuh in Python, at the numbers where a quotient changes."""
    for by in [*range(1, 300), 1000, 4095, 4096, 4097, 65535, 2**20 + 7, 2**30, 2**31 - 1]:
        magic, shift = packing.divisor(by)
        assert 0 <= magic < 2**32
        for times in {0, 1, 2, 3, 1000, (2**31 - 1) // by}:
            for n in {times * by - 1, times * by, times * by + 1, 2**31 - 1}:
                if 0 <= n < 2**31:
                    assert (((n * magic) >> 32) + n) >> shift == n // by
                    assert ((n * magic) >> 32) + n < 2**32, "the sum fits 32 bits"
