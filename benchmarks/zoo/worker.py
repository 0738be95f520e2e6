"""One model of the zoo in a process of its own: `python -m benchmarks.zoo.worker NAME --out FILE`."""

from __future__ import annotations

import argparse
import json
import resource
import time
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import kcompile
from benchmarks.maps import own_box_bound, positions_of
from benchmarks.zoo.exactness import Compared, compare, some_positions
from benchmarks.zoo.models import build
from benchmarks.zoo.placement import summary
from benchmarks.zoo.react import make_reacting
from benchmarks.zoo.timing import time_over_full

PATCH = 16
_GRID = 8  # stride of the positions that the own-box bound averages over


def main() -> None:
    """Measure one model and write its row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--seconds", type=float, default=4.0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    row: dict[str, Any] = {"name": args.name, "seed": args.seed, "status": "failed", "stage": "building"}
    try:
        measure(row, args.seconds)
    except Exception as error:
        lines = str(error).strip().splitlines()
        row["why"] = f"{row['stage']}: {type(error).__name__}: {' / '.join(lines[:4])}"[:500]
        row["traceback"] = traceback.format_exc()[-6000:]
    row["peak_gib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # Linux counts in KiB
    args.out.write_text(json.dumps(row, indent=1) + "\n")


def measure(row: dict[str, Any], seconds: float) -> None:
    """Fill a row, stage by stage; ``stage`` says which one an exception left."""
    torch.manual_seed(row["seed"])
    rng = np.random.default_rng(row["seed"])
    model, shape = build(row["name"])
    row["shape"] = shape
    row["stage"] = "calibrating"
    make_reacting(model, torch.randn(4, *shape))
    row["stage"] = "compiling"
    start, busy = time.perf_counter(), time.process_time()
    inc = kcompile.incrementalize(model, (1, *shape), PATCH)
    row["compile"], row["compile_cpu"] = time.perf_counter() - start, time.process_time() - busy
    row["stage"] = "analysing"
    row.update(summary(inc.plan), layers=len(inc.plan.layers))
    row["bound"] = own_box_bound(inc, positions_of(shape[1], PATCH, _GRID))
    total = kcompile.analyze(inc, stride=_GRID).total
    if total.own_speedup > 1.0:
        row["saved"] = (1 - 1 / total.placed_speedup) / (1 - 1 / total.own_speedup)
    row["stage"] = "running"
    image = torch.randn(shape)
    found = exactness(inc, model, image, rng)
    row["stage"] = "timing"
    _set_policy(inc, "auto")
    row["ratio"], row["timed"] = time_over_full(inc, model, image, rng, seconds)
    if found.status == "wrong":
        row["stage"] = "repeating in float64"
        row["error32"] = found.error
        del inc
        again = kcompile.incrementalize(model.double(), (1, *shape), PATCH)
        found = exactness(again, model, image.double(), rng)
    row["rounding"] = found.rounding
    row.update(error=found.error, change=found.change, noise=found.noise, dtype=str(found.dtype).split(".")[1])
    row.update(status=found.status, stage="done")
    if found.status != "exact":
        row["why"] = f"error {found.error:.1e}, change {found.change:.1e} in {row['dtype']}"


def exactness(inc: kcompile.IncrementalModule, model: nn.Module, image: Tensor, rng: np.random.Generator) -> Compared:
    """Compare with everything incremental that the plan has incremental, however few positions are asked for."""
    _set_policy(inc, "incremental")
    positions = some_positions(tuple(image.shape[1:]), inc.plan.patch_shape, rng)
    return compare(inc, model, image, positions)


def _set_policy(inc: kcompile.IncrementalModule, policy: str) -> None:
    setattr(inc, "policy", policy)  # noqa: B010 - typed only where the attribute exists


if __name__ == "__main__":
    main()
