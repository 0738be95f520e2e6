"""Peak memory above the parameters, of each side in a fresh process: ``python -m benchmarks.cpu.memory`` is the child.

The child builds its side, runs it once on something small (so that libraries are loaded and weights packed), frees what
that made, returns free memory to the system and notes its resident size. Then Linux's high-water mark of the resident
size is reset and the work is done: the mark minus the noted size is what the work needed above parameters and packed
weights. Elsewhere than on Linux there is no such mark to reset, and nothing is measured.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import kcompile
from benchmarks.cpu.cases import Case
from benchmarks.maps import occluded, positions_of, sample_of
from benchmarks.networks import network

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
POSITIONS = 512  # of the map, in whole batches
BATCHES = 3  # of full inference
BUDGET = 0.5  # of full inference's peak, in the run under a budget


def measure(case: Case) -> dict[str, Any] | None:
    """Bytes above the parameters of both sides, at the incremental side's largest batch; None if unknown."""
    ours = _child(case, "incremental")
    theirs = _child(case, "full", batch=ours["batch"]) if ours["above"] is not None else ours
    if ours["above"] is None or theirs["above"] is None:
        return None
    budget = int(BUDGET * theirs["above"])
    bounded = _child(case, "incremental", budget=budget)
    return {
        "batch": ours["batch"], "incremental": ours["above"], "full": theirs["above"],
        "ratio": ours["above"] / theirs["above"], "resident": ours["resident"], "full_resident": theirs["resident"],
        "budget": budget, "bounded": bounded["above"], "bounded_batch": bounded["batch"],
        "bounded_ratio": bounded["above"] / theirs["above"], "slower": bounded["seconds"] / ours["seconds"],
    }  # fmt: skip


def _child(case: Case, side: str, batch: int = 0, budget: int = 0) -> dict[str, Any]:
    words = {"threads": case.threads, "patch": case.patch, "stride": case.stride, "size": case.size, "batch": batch}
    words["budget"] = budget
    options = [text for name, value in words.items() for text in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "benchmarks.cpu.memory", case.network, side, *options]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[1:])} failed:\n{done.stderr[-2000:]}")
    made: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return made


def main(argv: list[str] | None = None) -> None:
    """Measure one side in this process and print a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network")
    parser.add_argument("side", choices=["incremental", "full"])
    for name in ("threads", "patch", "stride", "size", "batch", "budget"):
        parser.add_argument(f"--{name}", type=int, required=True)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    with torch.inference_mode():
        work, batch = (_incremental if args.side == "incremental" else _full)(args)
        print(json.dumps({"batch": batch, **peak(work)}))


def _incremental(args: argparse.Namespace) -> tuple[Callable[[], Any], int]:
    model, size = network(args.network, args.size)
    inc = kcompile.incrementalize(model, (1, 3, size, size), args.patch, memory_budget=args.budget or None)
    image, everything = _noise(size), positions_of(size, args.patch, args.stride)
    store = inc.materialize(image) is not None and inc._store
    inc.forward_patches(0.0, everything[:1])
    limits = inc.executor().limits(store, inc.plan.patch_shape)
    inc.drop_base()
    del store
    if args.budget:  # which makes batches of its own
        some = everything[:: -(-len(everything) // POSITIONS)]
        return lambda: (inc.materialize(image), inc.forward_patches(0.0, some)), limits.batch
    sample = sample_of(inc, everything, POSITIONS)

    def work() -> None:
        inc.materialize(image)
        with sample.scheduled():
            inc.forward_patches(0.0, sample.positions)

    return work, max(map(len, sample.batches))


def _full(args: argparse.Namespace) -> tuple[Callable[[], Any], int]:
    model, size = network(args.network, args.size)
    model = model.to(memory_format=torch.channels_last)
    image, positions = _noise(size), positions_of(size, args.patch, args.stride)
    model(occluded(image, positions[:1], args.patch))

    def work() -> None:
        for number in range(BATCHES):
            model(occluded(image, positions[number : number + args.batch], args.patch))

    return work, args.batch


def _noise(size: int) -> Tensor:
    return torch.randn(3, size, size, generator=torch.Generator().manual_seed(0))


def peak(work: Callable[[], Any]) -> dict[str, float | None]:
    """Bytes resident before some work, how far above that it went (None where that can't be known), and CPU seconds."""
    gc.collect()
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        RESET.write_text("5")
    except (OSError, AttributeError):
        return {"resident": None, "above": None, "seconds": None}
    resident, start = _status("VmRSS"), time.process_time()
    work()
    return {"resident": resident, "above": _status("VmHWM") - resident, "seconds": time.process_time() - start}


def _status(key: str) -> int:
    (line,) = (text for text in STATUS.read_text().splitlines() if text.startswith(key + ":"))
    return int(line.split()[1]) << 10


if __name__ == "__main__":
    main()
