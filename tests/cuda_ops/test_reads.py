"""Ops that read base or patch directly: the reference against single ops, the kernels' source against the reference."""

from __future__ import annotations

from math import inf, prod
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from kcompile.cuda_ops import cuda_reads, kept, nvrtc, reads, reference
from tests.cuda_ops.test_nvrtc import needs_nvrtc
from tests.cuda_ops.test_ops import DEVICES, channels_last, ints, is_channels_last, moved, random_geometry
from tests.support.cuda_on_cpu import CpuLauncher, needs_gxx

ops = torch.ops.kcompile
DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
OPS = ["read_activated", "read_pooled", "read_mean", "read_joined", "ended"]
LIMITS = [(0.0, inf), (0.0, 6.0), (-inf, inf), (-1.0, 1.0)]
KERNELS = {"read_activated": "activated", "read_pooled": "pooled", "read_mean": "mean", "read_joined": "joined"}
KERNELS["ended"] = "joined"


def numbers(*shape: int) -> Tensor:
    """Values whose sums are exact in every type, so that their order does not count; quarters are rounded by none."""
    return torch.randint(-9, 10, shape) / 4


def read(axes: int, dtype: torch.dtype, channels: int, least: int = 1) -> tuple[Any, ...]:
    """What all ops take first: base, patch, bias, limits, origins, offsets, extent."""
    g = random_geometry(axes, ints(1, 7), ints(1, 3), channels)
    while min(g.extent) < least:
        g = random_geometry(axes, ints(1, 7), ints(1, 3), channels)
    low, high = LIMITS[ints(0, 3)]
    bias = numbers(channels).to(dtype) if ints(0, 1) else None
    patch = channels_last(numbers(*g.patch.shape)).to(dtype)
    return numbers(*g.base.shape).to(dtype), patch, bias, low, high, g.origins, g.offsets, g.extent


def pool(axes: int, extent: list[int]) -> tuple[Any, ...]:
    """Kernel, stride, padding, dilation and divisor that fit a window."""
    kernel = [ints(1, min(3, size)) for size in extent]
    dilation = [ints(1, 2) if (k - 1) * 2 < size else 1 for k, size in zip(kernel, extent, strict=True)]
    padding = [ints(0, k // 2) for k in kernel]
    divisor = ints(1, prod(kernel)) if ints(0, 1) else 0
    stride = [ints(1, 3) for _ in range(axes)]
    return kernel, stride, [0] * axes if divisor else padding, [1] * axes if divisor else dilation, divisor


def joined(axes: int, dtype: torch.dtype, channels: int) -> tuple[Any, ...]:
    """Windows of a join: base and patch, the base alone, the patch alone."""
    cat = bool(ints(0, 1))
    first = read(axes, dtype, channels)
    rows, extent = first[5].shape[0], first[7]
    columns: list[list[Any]] = [[value] for value in first[:7]]
    for _ in range(ints(1, 3) if cat else ints(0, 1)):
        inner = channels if not cat else (3, 8)[ints(0, 1)]
        sizes = [size + ints(0, 3) for size in extent]
        base, origins = numbers(2, *sizes, inner).to(dtype), [torch.randint(2, (rows,))]
        origins += [torch.randint(size - e + 1, (rows,)) for size, e in zip(sizes, extent, strict=True)]
        over = [ints(1, 5) for _ in extent]
        patch = channels_last(numbers(rows, inner, *over)).to(dtype)
        places = torch.stack([torch.randint(-2, 3, (rows,)) for _ in extent], 1)
        part: list[Any] = [base, patch, numbers(inner).to(dtype), 0.0, inf, torch.stack(origins, 1), places]
        if kind := ints(0, 2):
            whole = channels_last(numbers(rows, inner, *extent)).to(dtype)
            part = [base, None, None, -inf, inf, part[5], None] if kind == 1 else [None, whole, *part[2:5], None, None]
        for column, value in zip(columns, part, strict=True):
            column.append(value)
    total = sum((b if b is not None else p.movedim(1, -1)).shape[-1] for b, p in zip(*columns[:2], strict=True))
    wide = total if cat else channels
    affine = (numbers(wide).to(dtype), numbers(wide).to(dtype)) if ints(0, 1) else (None, None)
    return (*columns, extent, cat, *affine, *LIMITS[ints(0, 3)])


def case(name: str, axes: int, dtype: torch.dtype = torch.float32) -> tuple[Any, ...]:
    """Arguments of an op; channels that allow wide accesses come as often as others."""
    channels = (3, 8)[ints(0, 1)]  # few widths of access: each is a kernel to compile
    if name == "read_joined":
        return joined(axes, dtype, channels)
    if name == "ended":
        first, other = (channels_last(numbers(2, channels, *[4, 3, 2][:axes])).to(dtype) for _ in range(2))
        bias = numbers(channels).to(dtype) if ints(0, 1) else None
        return first, bias, other.contiguous() if ints(0, 1) else None, *LIMITS[ints(0, 3)]
    given = read(axes, dtype, channels)
    if name == "read_pooled":
        return (*given, *pool(axes, given[7]))
    if name == "read_activated":
        return given
    wide = given[0].to(reads.wide(dtype))
    sizes = list(wide.shape[1:-1])
    zeros = torch.zeros_like(given[5])
    zeros[:, 0] = given[5][:, 0]
    sums = wide.flatten(1, -2).sum(1) if ints(0, 1) else None  # the whole map, as means are of
    return (*given[:5], zeros, given[6], sizes, sums)


def step_by_step(name: str, *given: Any) -> Tensor:
    """The same in ops of PyTorch and windows that are written out."""
    if name == "read_joined":
        bases, patches, biases, lows, highs, origins, offsets, extent, cat, scale, shift, low, high = given
        windows = []
        for base, patch, bias, least, most, origin, offset in zip(
            bases, patches, biases, lows, highs, origins, offsets, strict=True
        ):
            ended = None if patch is None else ending(patch, bias, least, most)
            if base is None:
                windows.append(ended)
            elif ended is None:
                windows.append(ops.gather(base, origin, extent))
            else:
                windows.append(ops.gather_superimpose(base, ended, origin, offset, extent))
        total = torch.cat(windows, 1) if cat else windows[0] if len(windows) == 1 else windows[0] + windows[1]
        if scale is not None:
            ones = [1] * (total.dim() - 2)
            total = (shift.double().view(-1, *ones) + total.double() * scale.double().view(-1, *ones)).to(total.dtype)
        return total.clamp(low, high)
    if name == "ended":
        result, bias, other, low, high = given
        result = ending(result, bias, -inf, inf)
        return (result if other is None else result + other).clamp(low, high)
    base, patch, bias, low, high, origins, offsets, extent, *rest = given
    window = ops.gather_superimpose(base, ending(patch, bias, low, high), origins, offsets, extent)
    if name == "read_activated":
        return window
    if name == "read_mean":
        return window.double().flatten(2).mean(2).to(base.dtype)
    kernel, stride, padding, dilation, divisor = rest
    if not divisor:
        return getattr(F, f"max_pool{len(extent)}d")(window, kernel, stride, padding, dilation)
    total = getattr(F, f"avg_pool{len(extent)}d")(window.double(), kernel, stride, padding) * prod(kernel)
    return (total / divisor).to(base.dtype)


def ending(patch: Tensor, bias: Tensor | None, low: float, high: float) -> Tensor:
    summed = patch if bias is None else patch + bias.view(-1, *[1] * (patch.dim() - 2))
    return summed.clamp(low, high)


def tolerance(name: str, dtype: torch.dtype) -> dict[str, float]:
    """Divisions and products may be rounded once more; copies, maxima and sums of `numbers` are exact."""
    epsilon = 0.0 if name == "read_activated" else 2 * torch.finfo(dtype).eps
    return {"rtol": epsilon, "atol": epsilon}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("name", OPS)
def test_reference_step_by_step(name: str, axes: int, dtype: torch.dtype, seed: int) -> None:
    for _ in range(8):
        given = case(name, axes, dtype)
        mine = getattr(ops, name)(*given)
        torch.testing.assert_close(mine, step_by_step(name, *given), **tolerance(name, dtype), check_stride=False)
        assert mine.dim() == 2 or is_channels_last(mine)


@needs_gxx
@pytest.mark.parametrize(
    ("axes", "dtype"), [*((2, dtype) for dtype in DTYPES), (1, torch.float32), (3, torch.float32)], ids=str
)
@pytest.mark.parametrize("name", OPS)
def test_source_on_the_cpu(name: str, axes: int, dtype: torch.dtype, on_cpu: CpuLauncher, seed: int) -> None:
    for _ in range(12):
        given = case(name, axes, dtype)
        on_cpu.launched.clear()
        mine, want = getattr(cuda_reads, name)(*given), getattr(reads, name)(*given)
        torch.testing.assert_close(mine, want, **tolerance(name, dtype), check_stride=True)
        windows = len(given[0]) if name == "read_joined" and given[8] else 1
        assert [kernel for kernel, _ in on_cpu.launched] == [KERNELS[name]] * windows


@needs_gxx
@pytest.mark.parametrize("name", ["read_activated", "read_pooled", "read_joined", "ended"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nan_infinities_and_rounding(dtype: torch.dtype, name: str, on_cpu: CpuLauncher, seed: int) -> None:
    """Any values, of which some are not finite: sums of two, maxima and limits are the same bit for bit."""
    for _ in range(20):
        given = list(case(name, 2, dtype))
        tensors = [*given[0], *given[1]] if name == "read_joined" else given[:3:2] if name == "ended" else given[:2]
        for tensor in tensors:
            if tensor is not None:
                tensor.copy_(100 * torch.randn(tensor.shape))
                for value in (float("nan"), inf, -inf):
                    tensor[torch.rand(tensor.shape) < 0.05] = value
        if name == "read_joined":
            given[9] = given[10] = None  # torch's product and sum may be one rounding
        elif name == "read_pooled":
            given[12] = 0
        mine, want = getattr(cuda_reads, name)(*given), getattr(reads, name)(*given)
        torch.testing.assert_close(mine, want, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("device", [DEVICES[1]])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("name", OPS)
def test_on_the_gpu(name: str, axes: int, dtype: torch.dtype, device: str, seed: int) -> None:
    for _ in range(12):
        given = case(name, axes, dtype)
        mine = getattr(ops, name)(*moved(given, device))
        torch.testing.assert_close(mine.cpu(), getattr(reads, name)(*given), **tolerance(name, dtype))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("axes", [1, 2])
@pytest.mark.parametrize("name", OPS)
def test_opcheck(name: str, axes: int, device: str, seed: int) -> None:
    tests = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(getattr(ops, name).default, moved(case(name, axes), device), test_utils=tests)


@pytest.mark.parametrize("name", OPS)
def test_results_share_no_memory_with_arguments(name: str, seed: int) -> None:
    window = channels_last(torch.randn(2, 4, 3, 3))
    zeros = torch.zeros(2, 2, dtype=torch.int64)
    base, origins = window.movedim(1, -1), torch.tensor([[0, 0, 0], [1, 0, 0]])
    part = (base, window, None, -inf, inf, origins, zeros)
    rest: dict[str, tuple[Any, ...]] = {
        "read_activated": (), "read_pooled": ([1, 1], [1, 1], [0, 0], [1, 1], 0), "read_mean": (None,),
    }  # fmt: skip
    if name == "read_joined":
        given: tuple[Any, ...] = (
            [None], [window], [None], [-inf], [inf], [None], [None], [3, 3], False, None, None, -inf, inf,
        )  # fmt: skip
    elif name == "ended":
        given = (window, None, None, -inf, inf)
    else:
        given = (*part, [3, 3], *rest[name])
    before = window.clone()
    getattr(ops, name)(*given).fill_(7)
    assert torch.equal(window, before)


@needs_nvrtc
@pytest.mark.parametrize("capability", [80, 90, 100, 120])
@pytest.mark.parametrize("kernel", sorted(set(KERNELS.values())))
def test_compiles(kernel: str, capability: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "folder", lambda: None)
    value, unit, axes = [("Float32", 16, 2), ("BFloat16", 16, 2), ("Float16", 2, 1), ("Float64", 8, 3)][ints(0, 3)]
    defines = (("VALUE_TYPE", value), ("UNIT_BYTES", unit), ("SPATIAL_AXES", axes))
    assert nvrtc.compiled(kernel, defines, capability).startswith(b"\x7fELF")


@needs_nvrtc
@pytest.mark.parametrize("value", cuda_reads.VALUES.values())
@pytest.mark.parametrize("kernel", sorted(set(KERNELS.values())))
def test_every_type_compiles(kernel: str, value: str) -> None:
    text = nvrtc.compile_source(
        kernel, (("VALUE_TYPE", value), ("UNIT_BYTES", 16), ("SPATIAL_AXES", 2)), "compute_80"
    ).decode()
    assert "st.global.v4" in text
    assert "ld.local" not in text


def test_other_types_run_the_reference(on_cpu: CpuLauncher, seed: int) -> None:
    base = torch.randint(9, (1, 4, 4, 3))
    patch, zeros = torch.randint(9, (1, 3, 2, 2)), torch.zeros(1, 3, dtype=torch.int64)
    given = (base, patch, None, -inf, inf, zeros, zeros[:, 1:], [3, 3])
    want = reference.gather_superimpose(base, patch, zeros, zeros[:, 1:], [3, 3])
    assert torch.equal(cuda_reads.read_activated(*given), want)
    assert not on_cpu.launched
