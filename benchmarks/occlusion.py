"""Whole occlusion maps: incremental against eager full inference, in one process, on the same threads.

The baseline is eager PyTorch in channels_last on batches of really patched images. Incremental time includes
materialisation and all scheduling, not compilation (reported beside, with the packing of weights). The two alternate,
A B A B: each round makes the whole map incrementally and an equal share of it in full, so that drift of a shared
machine hits both. A round's ratio is its share's time, scaled up to the whole map, over its incremental time; the table
has the rounds' median and range, and the median of both times. Error and change are shares of max|full output|.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import kcompile
from benchmarks.maps import IntArray, Sample, occluded, own_box_bound, positions_of, sample_of
from benchmarks.networks import network

RESULTS = Path(__file__).parent / "results"


def main(argv: list[str] | None = None) -> None:
    """Run the benchmark as the command line says and print a table."""
    args = _arguments(argv)
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


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=["vgg16", "resnet18", "inception_v3"])
    parser.add_argument("--patch", type=int, default=16, help="patch size in pixels")
    parser.add_argument("--stride", type=int, default=4, help="distance of positions in pixels")
    parser.add_argument("--size", type=int, default=0, help="image size in pixels (0: the network's usual one)")
    parser.add_argument("--batch", type=int, default=16, help="batch of the full inference")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=4, help="A/B rounds")
    parser.add_argument(
        "--sample", type=int, default=0, help="time only about N positions, in whole batches (0: whole map)"
    )
    parser.add_argument("--write", default="", help="name of the files under benchmarks/results/")
    return parser.parse_args(argv)


def measure(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Time one network; every number of the table's row."""
    model, size = network(name, args.size)
    start = time.perf_counter()
    inc = kcompile.incrementalize(model, (1, 3, size, size), args.patch)
    inc.executor()
    compiled = time.perf_counter() - start
    image = torch.randn(3, size, size)
    everything = positions_of(size, args.patch, args.stride)
    sample = sample_of(inc, everything, args.sample)
    eager = model.to(memory_format=torch.channels_last)
    incremental(inc, image, sample_of(inc, everything, 64))
    full(eager, image, sample.positions[:16], args)
    rounds = _rounds(inc, eager, image, sample, args)
    ratios = [theirs / ours for theirs, ours in zip(rounds.full, rounds.incremental, strict=True)]
    return {
        "network": name, "positions": len(everything), "timed": len(sample.rows), "compile": compiled,
        "incremental": statistics.median(rounds.incremental), "full": statistics.median(rounds.full),
        "ratio": statistics.median(ratios), "lowest": min(ratios), "highest": max(ratios),
        "bound": own_box_bound(inc, everything), "error": rounds.error, "change": rounds.change,
        "batches": args.batch, "rounds": {"incremental": rounds.incremental, "full": rounds.full},
    }  # fmt: skip


@dataclass
class _Rounds:
    """Per round the seconds of a whole map; error and change over all positions, as shares of max|full output|."""

    incremental: list[float] = field(default_factory=list)
    full: list[float] = field(default_factory=list)
    error: float = 0.0
    change: float = 0.0


def _rounds(
    inc: kcompile.IncrementalModule, eager: nn.Module, image: Tensor, sample: Sample, args: argparse.Namespace
) -> _Rounds:
    rounds, scale = _Rounds(), 0.0
    for share in np.array_split(np.random.default_rng(0).permutation(len(sample.rows)), args.rounds):
        seconds, out, base = incremental(inc, image, sample)
        rounds.incremental.append(seconds)
        seconds, reference = full(eager, image, sample.positions[share], args)
        rounds.full.append(seconds * len(sample.everything) / len(share))
        rounds.error = max(rounds.error, float((out[share] - reference).abs().max()))
        rounds.change = max(rounds.change, float((reference - base).abs().max()))
        scale = max(scale, float(reference.abs().max()))
    rounds.error, rounds.change = rounds.error / scale, rounds.change / scale
    return rounds


@torch.inference_mode()
def incremental(inc: kcompile.IncrementalModule, image: Tensor, sample: Sample) -> tuple[float, Tensor, Tensor]:
    """Seconds of a whole map, the outputs at the sample's positions, and the base's output.

    Materialisation and scheduling count as they are; the time of a sample's batches is scaled up to the whole map.
    """
    start = time.perf_counter()
    base = inc.materialize(image)
    ready = time.perf_counter()
    with sample.scheduled():
        out = inc.forward_patches(0.0, sample.positions)
    queries = time.perf_counter() - ready - sample.scheduling
    return ready - start + sample.scheduling + queries * sample.scale, out, base


@torch.inference_mode()
def full(model: nn.Module, image: Tensor, positions: IntArray, args: argparse.Namespace) -> tuple[float, Tensor]:
    """Seconds of full inference of every patched image, and the outputs."""
    start = time.perf_counter()
    parts = (positions[first : first + args.batch] for first in range(0, len(positions), args.batch))
    outputs = [model(occluded(image, part, args.patch)) for part in parts]
    return time.perf_counter() - start, torch.cat(outputs)


def machine(threads: int) -> str:
    """The processor, threads and versions, in one line."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [text.split(":")[1].strip() for text in lines if text.startswith("model name")]
    processor = names[0] if names else platform.processor()
    return f"{processor}, {threads} threads, torch {torch.__version__}, Python {platform.python_version()}"


COLUMNS = (
    "network", "positions", "compile s", "incremental s", "full s", "ratio (range)", "own-box bound", "error", "change",
)  # fmt: skip


def line(row: dict[str, Any]) -> str:
    """A row of the table."""
    count = row["positions"] if row["timed"] == row["positions"] else f"{row['timed']} of {row['positions']}"
    return (
        f"| {row['network']} | {count} | {row['compile']:.1f} | {row['incremental']:.1f} | {row['full']:.1f} | "
        f"**{row['ratio']:.2f}x** ({row['lowest']:.2f}–{row['highest']:.2f}) | {row['bound']:.2f} | "
        f"{row['error']:.1e} | {row['change']:.1e} |"
    )


def table(report: dict[str, Any]) -> str:
    """The report as markdown."""
    asked = f"patch {report['patch']}, stride {report['stride']}"
    head = f"{report['machine']}; {asked}; baseline: eager PyTorch, channels_last"
    rule = "|---" * len(COLUMNS) + "|"
    return "\n".join([head, "", f"| {' | '.join(COLUMNS)} |", rule, *map(line, report["rows"])])


if __name__ == "__main__":
    main()
