"""Whole occlusion maps: incremental against eager full inference, in one process, on the same threads.

The baseline is eager PyTorch in channels_last on batches of really patched images. Incremental time includes
materialisation and all scheduling, not compilation (reported beside). The two alternate, A B A B: each round makes the
whole map incrementally and a share of it in full, so that drift of a shared machine hits both. The ratio is the sum of
the full shares over the median of the incremental maps.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import kcompile
from benchmarks.networks import network
from kcompile.core.region import evaluate
from kcompile.occlusion import grid
from kcompile.runtime.scheduler import patch_regions

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    """Run the benchmark as the command line says and print a table."""
    args = _arguments()
    torch.set_num_threads(args.threads)
    rows = []
    for name in args.networks:
        rows.append(measure(name, args))
        print(line(rows[-1]), flush=True)
    report = {"machine": machine(args.threads), "patch": args.patch, "stride": args.stride, "rows": rows}
    print("\n" + table(report))
    if args.write:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{args.write}.json").write_text(json.dumps(report, indent=1) + "\n")
        (RESULTS / f"{args.write}.md").write_text(table(report) + "\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=["vgg16", "resnet18", "inception_v3"])
    parser.add_argument("--patch", type=int, default=16, help="patch size in pixels")
    parser.add_argument("--stride", type=int, default=4, help="distance of positions in pixels")
    parser.add_argument("--batch", type=int, default=16, help="batch of the full inference")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=4, help="A/B rounds")
    parser.add_argument(
        "--sample", type=int, default=0, help="only N positions, in blocks of neighbours (0: whole map)"
    )
    parser.add_argument("--write", default="", help="name of the files under benchmarks/results/")
    return parser.parse_args()


def measure(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Time one network; every number of the table's row."""
    model, size = network(name)
    start = time.perf_counter()
    inc = kcompile.incrementalize(model, (1, 3, size, size), args.patch)
    compiled = time.perf_counter() - start
    image = torch.randn(3, size, size)
    positions = grid((size, size), (args.patch, args.patch), args.stride).reshape(-1, 2)
    if args.sample:
        positions = _sample(positions, args.sample)
    eager = model.to(memory_format=torch.channels_last)
    incremental(inc, image, positions[:64])
    full(eager, image, positions[:16], args)
    ours: list[float] = []
    theirs = error = change = 0.0
    for share in np.array_split(np.random.default_rng(0).permutation(len(positions)), args.rounds):
        seconds, out, base = incremental(inc, image, positions)
        ours.append(seconds)
        seconds, reference = full(eager, image, positions[share], args)
        theirs += seconds
        error = max(error, float((out[share] - reference).abs().max()))
        change = max(change, float((reference - base).abs().max()))
    return {
        "network": name, "positions": len(positions), "sampled": bool(args.sample), "compile": compiled,
        "incremental": statistics.median(ours), "full": theirs, "ratio": theirs / statistics.median(ours),
        "bound": bound(inc, positions), "error": error, "change": change, "batches": args.batch,
    }  # fmt: skip


def _sample(positions: np.ndarray[Any, Any], count: int) -> np.ndarray[Any, Any]:
    """About ``count`` positions: every k-th of the map's rows and columns of extent classes, whole strips of 8."""
    blocks = np.array_split(np.arange(len(positions)), max(len(positions) // 8, 1))
    chosen = np.random.default_rng(0).choice(len(blocks), max(count // 8, 1), replace=False)
    return positions[np.concatenate([blocks[i] for i in sorted(chosen)])]


@torch.inference_mode()
def incremental(
    inc: kcompile.IncrementalModule, image: Tensor, positions: np.ndarray[Any, Any]
) -> tuple[float, Tensor, Tensor]:
    """Seconds of materialisation and all queries, the outputs, and the base's output."""
    start = time.perf_counter()
    base = inc.materialize(image)
    out = inc.forward_patches(0.0, positions)
    return time.perf_counter() - start, out, base


@torch.inference_mode()
def full(
    model: nn.Module, image: Tensor, positions: np.ndarray[Any, Any], args: argparse.Namespace
) -> tuple[float, Tensor]:
    """Seconds of full inference of every patched image, and the outputs."""
    outputs = []
    start = time.perf_counter()
    for batch in _patched(image, positions, args.patch, args.batch):
        outputs.append(model(batch))
    return time.perf_counter() - start, torch.cat(outputs)


def _patched(image: Tensor, positions: np.ndarray[Any, Any], patch: int, batch: int) -> Iterator[Tensor]:
    for first in range(0, len(positions), batch):
        part = positions[first : first + batch]
        images = image.repeat(len(part), 1, 1, 1).contiguous(memory_format=torch.channels_last)
        for row, (top, left) in enumerate(part):
            images[row, :, top : top + patch, left : left + patch] = 0.0
        yield images


def bound(inc: kcompile.IncrementalModule, positions: np.ndarray[Any, Any]) -> float:
    """Multiply-adds of full inference over those of each position's own boxes (Krypton eq. 14, per position)."""
    plan = inc.plan
    regions = evaluate(plan.regions, patch_regions(positions, plan.patch_shape))
    macs = sum(w * float(r.cells.mean()) for w, r in zip(plan.cell_macs(), regions, strict=True)) + plan.dense_macs()
    return plan.full_macs() / macs


def machine(threads: int) -> str:
    """The processor, threads and versions, in one line."""
    info = Path("/proc/cpuinfo")
    names = (
        [text.split(":")[1].strip() for text in info.read_text().splitlines() if text.startswith("model name")]
        if info.exists()
        else []
    )
    return f"{names[0] if names else platform.processor()}, {threads} threads, torch {torch.__version__}, Python {platform.python_version()}"


HEADER = (
    "| network | positions | compile s | incremental s | full s | ratio | own-box bound | max abs error | change |\n"
    + "|---" * 9
    + "|"
)


def line(row: dict[str, Any]) -> str:
    """A row of the table."""
    count = f"{row['positions']}{' (sample)' if row['sampled'] else ''}"
    return (
        f"| {row['network']} | {count} | {row['compile']:.1f} | {row['incremental']:.1f} | {row['full']:.1f} | "
        f"**{row['ratio']:.2f}x** | {row['bound']:.2f} | {row['error']:.1e} | {row['change']:.1e} |"
    )


def table(report: dict[str, Any]) -> str:
    """The report as markdown."""
    head = f"{report['machine']}; patch {report['patch']}, stride {report['stride']}; baseline: eager PyTorch, channels_last"
    return "\n".join([head, "", HEADER, *map(line, report["rows"])])


if __name__ == "__main__":
    main()
