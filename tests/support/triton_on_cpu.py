"""The Triton kernel on CPU tensors: a process of its own, as Triton's interpreter is chosen before kernels are defined.

Run as a script, it compares random cases with the reference and prints one line of JSON for each.
"""

from __future__ import annotations

import importlib.util
import json
import os
import random
import subprocess
import sys
from dataclasses import asdict, dataclass
from math import inf
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

import kcompile.cuda_ops  # noqa: F401  (registers torch.ops.kcompile)
from kcompile.cuda_ops import convolved, triton_conv
from kcompile.cuda_ops.convolved import TILES, Convolution

ROOT = Path(__file__).resolve().parent.parent.parent
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="no Triton")
KERNELS = [(3, 3), (1, 1), (1, 7), (5, 2), (3, 1)]


@dataclass(frozen=True)
class Case:
    """A random convolution: what is special about it, and how far the kernel is from the reference."""

    channels: int
    filters: int
    kernel: tuple[int, int]
    stride: list[int]
    padding: list[int]
    dilation: list[int]
    queries: int
    dtype: str
    tile: int
    added: str
    error: float
    alike: bool


def quarters(*shape: int) -> Tensor:
    """Numbers whose sums are exact, so that their order does not count."""
    return torch.randint(-8, 9, shape) / 4


def random_case(channels: int, dtype: torch.dtype, kernel: tuple[int, int]) -> tuple[Any, ...]:
    """Arguments of `read_convolved`; patches stick out of windows on all sides, some lie outside."""
    draw = random.randint
    queries, bases, filters = draw(1, 3), draw(1, 3), random.choice([1, 5, 32, 70])
    stride, dilation = ([draw(1, 2), draw(1, 2)] for _ in range(2))
    # PyTorch 2.14 reads beyond memory where bfloat16 has padding and one tap that is dilated: it means nothing there
    dilation = [1 if taps == 1 else step for taps, step in zip(kernel, dilation, strict=True)]
    padding = [draw(0, 1), draw(0, 1)]
    spans = [(taps - 1) * step + 1 for taps, step in zip(kernel, dilation, strict=True)]
    extent = [max(span - 2 * zeros, 1) + draw(0, 5) for span, zeros in zip(spans, padding, strict=True)]
    sizes = [cells + draw(0, 4) for cells in extent]
    over = [draw(1, cells + 2) for cells in extent]
    origins = [torch.randint(bases, (queries,))]
    origins += [torch.randint(size - cells + 1, (queries,)) for size, cells in zip(sizes, extent, strict=True)]
    offsets = [torch.randint(-p - 1, cells + 2, (queries,)) for p, cells in zip(over, extent, strict=True)]
    patch = quarters(queries, *over, channels).to(dtype).movedim(-1, 1)
    patch = patch if draw(0, 1) else patch.contiguous()
    weight = quarters(filters, *kernel, channels).to(dtype).movedim(-1, 1)
    weight = weight if draw(0, 1) else weight.contiguous()
    bias, (low, high) = (quarters(channels).to(dtype), (0.0, inf)) if draw(0, 1) else (None, (-inf, 1.5))
    bias, low, high = (bias, low, high) if draw(0, 1) else (None, -inf, inf)
    own = quarters(filters).to(dtype) if draw(0, 1) else None
    least, most = random.choice([(0.0, inf), (-inf, inf), (0.0, 6.0)])
    base = quarters(bases, *sizes, channels).to(dtype)
    read = (base, patch, bias, low, high, torch.stack(origins, 1), torch.stack(offsets, 1), extent)
    sizes = convolved.out_sizes(extent, weight, stride, padding, dilation)
    added = random_added(queries, filters, sizes, dtype)
    return (*read, weight, own, stride, padding, dilation, *added, least, most, draw(0, len(TILES) - 1))


def random_added(queries: int, filters: int, sizes: list[int], dtype: torch.dtype) -> tuple[Tensor | None, ...]:
    """Nothing, a whole tensor, a window of a base, or one with a patch over it."""
    kind = random.choice(["nothing", "whole", "gathered", "both", "both"])
    whole = quarters(queries, *sizes, filters).to(dtype).movedim(-1, 1)
    if kind in ("nothing", "whole"):
        return None, whole if kind == "whole" else None, None, None
    bases, over = random.randint(1, 2), [random.randint(1, cells + 1) for cells in sizes]
    cells = [size + random.randint(0, 3) for size in sizes]
    base, patch = quarters(bases, *cells, filters).to(dtype), quarters(queries, *over, filters).to(dtype).movedim(-1, 1)
    origins = [torch.randint(bases, (queries,))]
    origins += [torch.randint(more - size + 1, (queries,)) for more, size in zip(cells, sizes, strict=True)]
    offsets = [torch.randint(-p - 1, size + 2, (queries,)) for p, size in zip(over, sizes, strict=True)]
    both = kind == "both"
    return base, patch if both else None, torch.stack(origins, 1), torch.stack(offsets, 1) if both else None


def exactly(given: tuple[Any, ...]) -> Tensor:
    """The result in float64: PyTorch's own convolution of bfloat16 was seen to be wrong for one channel, dilated."""
    c = Convolution(*given)
    patch = c.patch.double() if c.bias is None else c.patch.double() + c.bias.double()[:, None, None]
    window = torch.ops.kcompile.gather_superimpose(
        c.base.double(), patch.clamp(c.low, c.high), c.origins, c.offsets, c.extent
    )
    own = None if c.own is None else c.own.double()
    result = functional.conv2d(window, c.weight.double(), own, c.stride, c.padding, c.dilation)
    for row in range(len(result)):
        if c.added_base is not None and c.added_origins is not None:
            first, *at = c.added_origins[row].tolist()
            place = tuple(slice(a, a + size) for a, size in zip(at, c.sizes, strict=True))
            under = c.added_base[first][place].double().movedim(-1, 0)
        else:
            under = torch.zeros_like(result[row])
        if c.added_patch is not None:
            at = [0, 0] if c.added_offsets is None else c.added_offsets[row].tolist()
            under = laid(under, c.added_patch[row].double(), at)
        result[row] += under
    return result.clamp(c.least, c.most)


def laid(under: Tensor, patch: Tensor, at: list[int]) -> Tensor:
    """[K, h, w] with a patch at a place, which may stick out."""
    rows, columns = patch.shape[1:]
    canvas = functional.pad(under, (columns + 1, columns + 1, rows + 1, rows + 1))
    top, left = at[0] + rows + 1, at[1] + columns + 1
    canvas[:, max(top, 0) : top + rows, max(left, 0) : left + columns] = patch
    return canvas[:, rows + 1 : -rows - 1, columns + 1 : -columns - 1]


def compared(given: tuple[Any, ...]) -> Case:
    """Run the kernel and hold it against exact results; its layout against the reference's."""
    mine, like, want = triton_conv.convolve(*given), convolved.read_convolved(*given), exactly(given)
    alike = (mine.shape, mine.dtype, mine.stride()) == (like.shape, like.dtype, like.stride())
    error = float((mine.double() - want).abs().max() / want.abs().max().clamp(min=1.0))
    conv = Convolution(*given)
    filters, channels, *kernel = conv.weight.shape
    dtype = str(conv.base.dtype).removeprefix("torch.")
    added = f"{'base' * (conv.added_base is not None)} {'patch' * (conv.added_patch is not None)}".strip()
    return Case(
        channels, filters, (kernel[0], kernel[1]), conv.stride, conv.padding, conv.dilation, len(conv.origins), dtype,
        conv.tile, added, error, alike,
    )  # fmt: skip


def interpreted(program: str, *arguments: str) -> list[dict[str, Any]]:
    """What a script prints as lines of JSON, run with Triton's interpreter."""
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"exit status {done.returncode}: {done.stderr[-3000:]}"
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def main() -> None:
    """Compare some cases of each number of channels, kernel and type; the argument is the seed."""
    seed, rounds = int(sys.argv[1]), int(sys.argv[2])
    random.seed(seed)
    torch.manual_seed(seed)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        for channels in (1, 3, 8, 24, 40, 64):
            for kernel in KERNELS:
                for _ in range(rounds):
                    print(json.dumps(asdict(compared(random_case(channels, dtype, kernel)))))


if __name__ == "__main__":
    main()
