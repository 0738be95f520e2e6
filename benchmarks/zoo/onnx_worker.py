"""One model's export in a process of its own: `python -m benchmarks.zoo.onnx_worker NAME --out FILE --seed N`."""

from __future__ import annotations

import argparse
import json
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

import kcompile
from benchmarks.zoo.exactness import LEAST_CHANGE, patched, some_positions
from benchmarks.zoo.models import build
from benchmarks.zoo.react import make_reacting
from benchmarks.zoo.worker import PATCH
from kcompile.core.onnx_files import WEIGHTS

ALLOWED = 1e-4  # of max|full|
_NOISE = (1.0, 3.0, 10.0)  # sizes of the patches' noise, until one changes the output


def main() -> None:
    """Measure one model and write its row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--seconds", type=float, help="of no use here; the zoo's other worker takes it")
    args = parser.parse_args()
    torch.set_num_threads(1)
    row: dict[str, Any] = {"name": args.name, "seed": args.seed, "status": "failed", "stage": "building"}
    try:
        measure(row)
    except kcompile.OnnxExportError as error:
        row |= {"status": "no lowering", "why": str(error).splitlines()[0]}
    except Exception as error:
        row["why"] = f"{row['stage']}: {type(error).__name__}: {str(error)[:300]}"
        row["traceback"] = traceback.format_exc()[-6000:]
    args.out.write_text(json.dumps(row, indent=1) + "\n")


def measure(row: dict[str, Any]) -> None:
    """Fill a row, stage by stage."""
    torch.manual_seed(row["seed"])
    rng = np.random.default_rng(row["seed"])
    model, shape = build(row["name"])
    make_reacting(model, torch.randn(4, *shape))
    row["stage"] = "compiling"
    inc = kcompile.incrementalize(model, (1, *shape), PATCH)
    setattr(inc, "policy", "incremental")  # noqa: B010 - typed only where the attribute exists
    with tempfile.TemporaryDirectory() as folder:
        row["stage"], start = "exporting", time.perf_counter()
        kcompile.export_onnx(inc, folder)
        row["export"], start = time.perf_counter() - start, time.perf_counter()
        row["stage"] = "loading"
        exported = kcompile.load_onnx(folder, ["CPUExecutionProvider"], threads=1)
        exported.policy = "incremental"
        row["load"] = time.perf_counter() - start
        row["weights_mb"] = (Path(folder) / WEIGHTS).stat().st_size / 1e6
        kept = [*model.parameters(), *model.buffers()]
        row["own_mb"] = sum(tensor.numel() * tensor.element_size() for tensor in kept) / 1e6
        row["stage"] = "running"
        image, positions = torch.randn(shape), some_positions(shape[1:], inc.plan.patch_shape, rng)
        for noise in _NOISE:
            patches = torch.randn(len(positions), len(image), *inc.plan.patch_shape) * noise
            _compare(row, inc, exported, model, image, patches, positions)
            if row["status"] != "void":
                break
    row["stage"] = "done"


@torch.no_grad()
def _compare(
    row: dict[str, Any], inc: Any, exported: Any, model: Any, image: Tensor, patches: Tensor, positions: Any
) -> None:
    base, _ = inc.materialize(image), exported.materialize(image)
    sides = (exported.forward_patches(patches, positions), inc.forward_patches(patches, positions))
    full = model(patched(image, patches, positions))
    errors, change = [0.0, 0.0], float("inf")
    leaves = zip(*map(pytree.tree_leaves, (*sides, full, base)), strict=True)
    for *mine, want, before in leaves:
        scale = float(want.abs().max())
        change = min(change, float((want - before).abs().max()) / scale)
        for side, value in enumerate(mine):
            off = (torch.as_tensor(value) - want).abs().nan_to_num(nan=float("inf")).max()
            errors[side] = max(errors[side], float(off) / scale)
    status = "wrong" if errors[0] > ALLOWED else "exact" if change >= LEAST_CHANGE else "void"
    row.update(error=errors[0], torch=errors[1], change=change, status=status)
    if status != "exact":
        row["why"] = f"error {errors[0]:.1e}, torch's {errors[1]:.1e}, change {change:.1e}"


if __name__ == "__main__":
    main()
