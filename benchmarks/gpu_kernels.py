"""The CUDA kernels on a device: whether they build, their tests, gathers against copies, what takes the time."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import kcompile.cuda_ops  # noqa: F401  (registers torch.ops.kcompile)
from kcompile.cuda_ops import launch, nvrtc, triton_conv
from kcompile.cuda_ops.convolved import TILES
from kcompile.cuda_ops.cuda_reads import VALUES

ROOT = Path(__file__).resolve().parent.parent
# channels, cells of the base per axis, of the window, queries: windows of VGG16's and ResNet's layers at patch 16
GATHERS = ((64, 114, 22, 128), (64, 58, 12, 256), (256, 58, 10, 128), (512, 16, 8, 512), (3, 230, 23, 512))
WARMED = (torch.float32, torch.bfloat16)
WARM = """
import sys, torch
from kcompile.cuda_ops import triton_conv
torch.backends.cudnn.allow_tf32 = True
triton_conv.warm(torch.device(sys.argv[1]), getattr(torch, sys.argv[2]), int(sys.argv[3]))
"""
TESTS = (
    *(f"cuda_ops/test_{name}" for name in ("cuda", "ops", "reads", "linear", "convolved", "registry")),
    *(
        f"runtime/test_{name}"
        for name in ("lowering_cuda", "lowering_convs", "cuda_graphs", "replaying", "pool", "tables")
    ),
)
LOST = "kcompile's CUDA kernel"  # begins the warnings of kernels that can't be used
KINDS = {
    "windows": ("windows", "activated", "pooled", "joined", "mean", "linear"),
    "direct convolutions": ("convolved",),
    "convolutions and products": ("conv", "gemm", "cudnn", "xmma", "cutlass", "winograd", "nchw", "nhwc"),
    "elementwise": ("elementwise", "reduce", "softmax"),
    "copies": ("memcpy", "memset", "copy", "cat"),
}


def build(device: torch.device) -> dict[str, Any]:
    """Compile every kernel in one variant each, and load it where the device is a GPU.

    Returns:
        Seconds to compile in all, or why kernels can't be used; and whether convolutions can go without windows.
    """
    capability = 90
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        capability = 10 * major + minor
    start = time.perf_counter()
    against = triton_conv.reason_against(device)
    triton = f"with windows alone ({against})" if against else f"Triton, tried in {time.perf_counter() - start:.1f} s"
    if device.type == "cuda" and not against:
        triton += f", {compile_convolutions(device)}"
    start = time.perf_counter()
    try:
        target = nvrtc.target_of(capability)
        for name in KINDS["windows"]:
            for value in ("",) if name == "windows" else VALUES.values():
                given = (("VALUE_TYPE", value),) if value else ()
                nvrtc.compile_source(name, (*given, ("UNIT_BYTES", 16), ("SPATIAL_AXES", 2)), target)
        if device.type == "cuda" and launch.launcher(device) is None:
            return {"error": "the kernels can't be loaded (see the warning above)", "triton": triton}
    except nvrtc.NvrtcError as error:
        return {"error": str(error), "triton": triton}
    return {"target": target, "seconds": time.perf_counter() - start, "triton": triton}


def compile_convolutions(device: torch.device, limit: float = 70.0) -> str:
    """The convolutions' kernels, each in a process of its own at once: they compile for seconds each. In words."""
    start = time.perf_counter()
    names = [(str(dtype).removeprefix("torch."), tile) for dtype in WARMED for tile in range(len(TILES))]
    command = [sys.executable, "-c", WARM, str(device)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    running = [
        subprocess.Popen([*command, name, str(tile)], env=environment, cwd=ROOT, stderr=subprocess.DEVNULL)
        for name, tile in names
    ]
    failed = 0
    for one in running:
        try:
            failed += one.wait(max(limit - (time.perf_counter() - start), 0.1)) != 0
        except subprocess.TimeoutExpired:
            one.kill()
            failed += 1
    return f"{len(names) - failed} of {len(names)} tiles compiled in {time.perf_counter() - start:.0f} s"


def run_tests(limit: float) -> dict[str, Any]:
    """The tests marked ``gpu`` of the ops and of the lowering, in a process of its own.

    Without the plugins that pyproject.toml configures, which a bare machine lacks.
    """
    if importlib.util.find_spec("pytest") is None:
        return {"status": "not run: pytest is not installed"}
    tests = [str(ROOT / "tests" / f"{name}.py") for name in TESTS]
    options = [
        "-W",
        f"error:{LOST}",
        "-c",
        os.devnull,
        "--rootdir",
        str(ROOT),
        "--import-mode=importlib",
        "-p",
        "no:cacheprovider",
    ]
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", *options, *tests]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    try:
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        return {"status": f"not finished after {limit:.0f} s"}
    lines = done.stdout.strip().splitlines() or [done.stderr.strip()]
    if done.returncode != 0:
        print("\n".join(lines[-60:]), file=sys.stderr)
    return {"status": "ok" if done.returncode == 0 else "FAILED", "summary": lines[-1]}


def bandwidths(device: torch.device, quick: bool) -> list[dict[str, Any]]:
    """Bytes written per second by gathers with patches laid over, and by a device copy of as many bytes."""
    rows = []
    for channels, size, extent, queries in GATHERS[-1:] if quick else GATHERS:
        queries = 8 if quick else queries
        base = torch.randn(1, size, size, channels, device=device)
        patch = torch.randn(queries, extent - 2, extent - 2, channels, device=device).movedim(-1, 1)
        origins = torch.randint(size - extent + 1, (queries, 3), device=device)
        origins[:, 0] = 0
        offsets = torch.ones(queries, 2, dtype=torch.int64, device=device)
        op, given = torch.ops.kcompile.gather_superimpose, (base, patch, origins, offsets, [extent, extent])
        window: Tensor = op(*given)
        source, into = torch.empty_like(window), torch.empty_like(window)
        ours = seconds_of(device, lambda: op(*given))  # noqa: B023
        copy = seconds_of(device, lambda: into.copy_(source))  # noqa: B023
        written = window.numel() * window.element_size()
        rows.append(
            {"channels": channels, "extent": extent, "queries": queries, "bytes": written, "gather": written / ours,
             "copy": written / copy, "ratio": copy / ours}
        )  # fmt: skip
    return rows


def seconds_of(device: torch.device, call: Callable[[], object], repeats: int = 50) -> float:
    """Seconds of one call on the device, host time left out where there is a CUDA graph to do so."""
    call()
    if device.type != "cuda":
        start = time.perf_counter()
        call()
        return time.perf_counter() - start
    torch.cuda.synchronize(device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(repeats):
            call()
    graph.replay()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    graph.replay()
    end.record()
    torch.cuda.synchronize(device)
    return float(begin.elapsed_time(end)) / 1000 / repeats


def time_by_kind(call: Callable[[], object]) -> dict[str, float]:
    """Seconds of device time by kind of kernel in one call, and of the host's clock."""
    from torch.profiler import ProfilerActivity, profile

    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        start = time.perf_counter()
        call()
        torch.cuda.synchronize()
        wall = time.perf_counter() - start
    kinds = dict.fromkeys([*KINDS, "other"], 0.0)
    for event in profiled.key_averages():
        kinds[kind_of(event.key)] += event.self_device_time_total / 1e6
    return {**kinds, "host's clock": wall}


def kind_of(kernel: str) -> str:
    """The kind of a kernel, by its name."""
    name = kernel.lower()
    for kind in ("windows", "direct convolutions"):
        if name in KINDS[kind]:
            return kind
    for kind in ("copies", "convolutions and products", "elementwise"):
        if any(part in name for part in KINDS[kind]):
            return kind
    return "other"
