"""Convolutions of windows that are never made: the reference, and the Triton kernel, interpreted and compiled."""

from __future__ import annotations

import random
import re
from typing import Any

import pytest
import torch
from torch import Tensor

import kcompile.cuda_ops  # noqa: F401  (registers torch.ops.kcompile)
from kcompile.cuda_ops import convolved, triton_conv
from kcompile.cuda_ops.convolved import TILES
from tests.cuda_ops.test_ops import DEVICES, is_channels_last, moved
from tests.support.triton_on_cpu import KERNELS, exactly, interpreted, needs_triton, random_case

ops = torch.ops.kcompile
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def case(channels: int = 8, dtype: torch.dtype = torch.float32, kernel: tuple[int, int] | None = None) -> Any:
    return random_case(channels, dtype, kernel or random.choice(KERNELS))


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64], ids=str)
def test_reference_step_by_step(dtype: torch.dtype, seed: int) -> None:
    for _ in range(10):
        given = case(random.choice([3, 8]), dtype)
        mine = ops.read_convolved(*given)
        error = 2 * torch.finfo(dtype).eps
        torch.testing.assert_close(mine.double(), exactly(given), rtol=error, atol=error, check_stride=False)
        assert is_channels_last(mine)


@needs_triton
def test_kernel_interpreted(seed: int) -> None:
    """Borders, patches that stick out, strides, dilations, 1x7, any number of channels and filters, several bases."""
    program = "from tests.support.triton_on_cpu import main; main()"
    found = interpreted(program, str(seed), "2")
    assert len(found) == 3 * 6 * len(KERNELS) * 2
    assert all(row["alike"] for row in found)
    bound = {"float32": 0.0, "float16": 1e-3, "bfloat16": 8e-3}  # sums are exact, results are rounded
    assert not [row for row in found if not row["error"] <= bound[row["dtype"]]]
    assert len({row["tile"] for row in found}) == len(TILES)
    assert {row["added"] for row in found} == {"", "base", "patch", "base patch"}


WHOLE = """
import json, sys, torch
from tests.support import triton_on_cpu
from kcompile.cuda_ops import convolved, triton_conv
torch.manual_seed(int(sys.argv[1]))
base, patch = torch.randn(1, 14, 13, 20), torch.randn(2, 20, 6, 5)
origins, offsets = torch.tensor([[0, 2, 1], [0, 0, 3]]), torch.tensor([[3, -2], [1, 4]])
weight = torch.randn(12, 20, 3, 3)
for value in (1.0, float("nan"), float("inf"), 3e38):
    base[0, 5, 5, 3] = patch[1, 2, 3, 1] = value
    given = (base, patch, None, -torch.inf, torch.inf, origins, offsets, [10, 9], weight, None)
    given += ([1, 1], [0, 0], [1, 1], None, None, None, None, 0.0, torch.inf, 2)
    exact = []
    for tf32 in (False, True):
        torch.backends.cudnn.allow_tf32 = tf32
        mine, want = triton_conv.convolve(*given), convolved.read_convolved(*given)
        whole = want.isfinite() & (want < 1e30)
        error = float((mine - want)[whole].abs().max() / want[whole].abs().max())
        exact.append((error, bool((mine.isnan() == want.isnan()).all())))
    print(json.dumps({"value": str(value), "plain": exact[0], "tf32": exact[1]}))
"""


@needs_triton
def test_rounding_and_values_that_are_not_finite(seed: int) -> None:
    found = interpreted(WHOLE, str(seed))
    assert len(found) == 4
    for row in found:
        assert row["plain"][0] <= 1e-6
        assert 1e-7 < row["tf32"][0] <= 1e-3, "digits beyond TF32's are cut off"
        assert row["plain"][1], "NaN is where the reference has it"


@needs_triton
@pytest.mark.parametrize(
    ("capability", "dtype", "tile", "flat", "added", "product"),
    [
        (80, "fp32", 0, True, "under upper", r"mma\.sync"), (80, "bf16", 3, False, "under", r"mma\.sync"),
        (90, "fp32", 1, False, "under upper", r"wgmma\.mma_async"),
        (90, "fp16", 4, False, "upper", r"wgmma\.mma_async"),
        (100, "fp32", 0, False, "", r"tcgen05\.mma"), (120, "fp32", 5, False, "under upper", r"mma\.sync"),
    ],
)  # fmt: skip
def test_compiles_ahead_of_time(capability: int, dtype: str, tile: int, flat: bool, added: str, product: str) -> None:
    """To machine code that uses tensor cores and loads 16 bytes at a time, in flight while products are made."""
    compiled = compile_kernel(capability, dtype, tile, flat, added)
    assert compiled.asm["cubin"].startswith(b"\x7fELF")
    text = compiled.asm["ptx"]
    assert re.search(product, text)
    assert "ld.local" not in text, "registers suffice"
    if not flat:
        assert re.search(r"cp\.async\.c[ag]\.shared\.global \[[^\]]*\], \[[^\]]*\], 0x10", text)
    assert compiled.metadata.shared <= {80: 163, 90: 227, 100: 227, 120: 99}[capability] * 1024


def compile_kernel(capability: int, dtype: str, tile: int, flat: bool, added: str) -> Any:
    """The kernel for a GPU that isn't there."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from kcompile.cuda_ops.triton_kernel import _NUMBERS, _PLACES, convolved

    t, item = TILES[tile], 4 if dtype == "fp32" else 2
    values = ("base", "patch", "weight", "bias", "own", "out", "under", "upper")
    signature = dict.fromkeys(convolved.arg_names, "constexpr")
    signature |= {**dict.fromkeys(values, f"*{dtype}"), **dict.fromkeys(_PLACES, "*i64")}
    signature |= {**dict.fromkeys(("low", "high", "least", "most"), "fp32"), **dict.fromkeys(_NUMBERS, "i32")}
    constants = {
        "UNIT": 1 if flat else 4 if dtype == "fp32" else 8, "ENDED": flat, "BIAS": flat, "OWN": True, "FLAT": flat,
        "LANE": 4 if dtype == "fp32" else 8, "UNDER": "under" in added, "UPPER": "upper" in added,
        "TF32": dtype == "fp32", "WIDE": False, "CELLS": t.cells, "FILTERS": t.filters, "DEPTH": t.summands(item),
    }  # fmt: skip
    aligned = {(convolved.arg_names.index(name),): [["tt.divisibility", 16]] for name in values}
    source = ASTSource(convolved, signature, constants, aligned)
    options = {"num_warps": t.warps, "num_stages": t.stages, "enable_fp_fusion": True}
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


@pytest.mark.parametrize("device", [DEVICES[1]])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("channels", [1, 3, 8, 24, 40, 64])
def test_on_the_gpu(channels: int, dtype: torch.dtype, device: str, seed: int) -> None:
    if (reason := triton_conv.reason_against(torch.device(device))) is not None:
        pytest.skip(reason)
    for kernel in KERNELS:
        given = case(channels, dtype, kernel)
        mine = ops.read_convolved(*moved(given, device))
        error = 2 * torch.finfo(dtype).eps
        torch.testing.assert_close(mine.cpu().double(), exactly(given), rtol=error, atol=error)


def test_no_queries(seed: int) -> None:
    given = list(case(kernel=(3, 3)))
    given[1], given[5], given[6] = given[1][:0], given[5][:0], given[6][:0]
    given[13:17] = [None] * 4
    for mine in (ops.read_convolved(*given), triton_conv.convolve(*given)):
        assert mine.shape[:2] == (0, given[8].shape[0])
        assert (
            mine.shape
            == ops.read_convolved(*[part.to("meta") if isinstance(part, Tensor) else part for part in given]).shape
        )


@pytest.mark.parametrize(
    ("change", "fits"),
    [
        ({}, True),
        ({"dtype": torch.float64}, False),
        ({"extent": [8]}, False),
        ({"queries": 2**31 // 64}, False),  # more cells than 32 bits count
        ({"weight": torch.empty(4, 5, 3, 3)}, False),  # groups, or other channels
        ({"weight": torch.empty(1, 8, 2**14, 2**14, device="meta")}, False),
        ({"sizes": [0, 8]}, False),
    ],
)
def test_what_the_kernel_takes(change: dict[str, Any], fits: bool) -> None:
    given: dict[str, Any] = {"extent": [10, 10], "weight": torch.empty(4, 8, 3, 3), "sizes": [8, 8], "queries": 3}
    dtype = change.get("dtype", torch.float32)
    given |= {name: value for name, value in change.items() if name != "dtype"}
    base, patch = torch.empty(1, 20, 20, 8, dtype=dtype), torch.empty(3, 8, 4, 4, dtype=dtype)
    given["weight"] = given["weight"].to(dtype)
    assert triton_conv.fits(base, patch, **given) == fits


SWITCHES = """
import json, torch
from kcompile.cuda_ops.triton_conv import uses_tf32
found = [uses_tf32()]
for conv in ("ieee", "tf32"):
    torch.backends.cudnn.conv.fp32_precision = conv
    torch.backends.cudnn.rnn.fp32_precision = "ieee" if conv == "tf32" else "tf32"
    found.append(uses_tf32())
print(json.dumps({"found": found}))
"""


def test_both_kinds_of_switches_say_whether_tf32_is_used() -> None:
    """In a process of its own: the newer ones can't be set back."""
    assert interpreted(SWITCHES) == [{"found": [True, False, True]}]


def test_rounding_to_tf32(seed: int) -> None:
    """To 10 digits, the nearest ones."""
    values = torch.cat([torch.randn(1000), torch.tensor([0.0, -0.0, float("inf"), -float("inf"), 1.0])])
    near = convolved.rounded_to_tf32(values)
    assert torch.equal(near[-5:], values[-5:])
    mantissa, exponent = torch.frexp(values[:-5])
    want = torch.ldexp((mantissa.abs() * 2**11 + 0.5).floor() * mantissa.sign(), exponent - 11)
    assert torch.equal(near[:-5], want)
    assert convolved.rounded_to_tf32(torch.tensor(float("nan"))).isnan()


@pytest.mark.parametrize(("channels", "item", "unit"), [(64, 4, 4), (64, 2, 8), (12, 2, 4), (6, 4, 2), (3, 4, 1)])
def test_values_per_load(channels: int, item: int, unit: int) -> None:
    assert triton_conv.unit_of(channels, item) == unit


def test_where_it_cannot_be_used_the_reference_runs(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    given = case(kernel=(3, 3))
    want = convolved.read_convolved(*given)
    assert torch.equal(triton_conv.read_convolved(*given), want), "on the CPU"
    monkeypatch.setenv("KCOMPILE_TRITON", "0")
    assert triton_conv._reason(torch.device("cuda")) == "KCOMPILE_TRITON is 0"
    monkeypatch.delenv("KCOMPILE_TRITON")
    monkeypatch.setattr(triton_conv, "_works", lambda _: False)
    assert "wrong" in str(triton_conv._reason(torch.device("cuda")))

    def broken(_: torch.device) -> bool:
        raise RuntimeError("Failed to find C compiler")

    monkeypatch.setattr(triton_conv, "_works", broken)
    assert "RuntimeError: Failed to find C compiler" in str(triton_conv._reason(torch.device("cuda")))
