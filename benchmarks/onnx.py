"""Exports in ONNX Runtime on the CPU: incremental against full inference, and the one model against the two.

Sides, on the same threads, in turn, round by round: *two* (``materialize.onnx`` and ``incremental.onnx`` through
`kcompile.load_onnx`), *one* (``heatmap.onnx``), *full* (the plain model, exported by torch.onnx, on batches of really
patched images, for a share of the positions) and, with ``--openvino``, ``heatmap.onnx`` in OpenVINO and OpenVINO's full
inference. At some positions every side's raw outputs are compared with the model's in float64: what ONNX Runtime's full
inference gives is compared too, as it errs by rounding like the others (for VGG16 all three agree to the last bit).
"""

from __future__ import annotations

import argparse
import copy
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

import kcompile
from benchmarks.cpu.naive import Models, build
from benchmarks.machine import as_text, describe, summary
from benchmarks.maps import IntArray, occluded, own_box_bound, positions_of
from benchmarks.networks import network
from kcompile.core.onnx_files import HEATMAP, WEIGHTS

RESULTS = Path(__file__).parent / "results"
BOUNDS = {"vgg16": 6.0, "resnet18": 2.0, "inception_v3": 1.4}  # least ratios that are asked for
EXACT = 8  # positions that are computed in float64 too
COLUMNS = (
    "network",
    "positions",
    "full s",
    "two s",
    "one s",
    "full / two",
    "bound",
    "one / two",
    "error",
    "full's error",
    "change",
    "MB",
)


def main(argv: list[str] | None = None) -> None:
    """Measure what the command line asks for; print a table, and write it with ``--write``."""
    args = _arguments(argv)
    torch.set_num_threads(args.threads)
    rows = []
    for name in args.networks:
        rows.append(measure(name, args))
        print(json.dumps(rows[-1]), flush=True)
        if args.write:
            _write(rows, args)
    print("\n" + table(rows))


def _write(rows: list[dict[str, Any]], args: argparse.Namespace) -> None:
    """What there is so far, so that an interrupted run keeps it."""
    RESULTS.mkdir(exist_ok=True)
    asked = {name: getattr(args, name) for name in ("threads", "patch", "stride", "rounds", "share", "sample")}
    report = {"machine": describe(), **asked, "rows": rows}
    (RESULTS / f"{args.write}.json").write_text(json.dumps(report, indent=1) + "\n")
    told = ", ".join(f"{name} {value}" for name, value in asked.items())
    text = f"{as_text(describe())}\n\n{summary(args.threads)}; {told}\n\n{table(rows)}\n"
    (RESULTS / f"{args.write}.md").write_text(text)


def measure(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """One network's row."""
    model, size = network(name, args.size)
    inc = kcompile.incrementalize(model, (3, size, size), args.patch)
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        kcompile.export_onnx(inc, folder, batch=args.batch, score="logit", inline=args.openvino)
        export = time.perf_counter() - start
        exported = kcompile.load_onnx(folder, ["CPUExecutionProvider"], threads=args.threads)
        exported.policy = "incremental"
        image, positions = torch.randn(3, size, size), positions_of(size, args.patch, args.stride)
        if args.sample:
            positions = positions[np.linspace(0, len(positions) - 1, args.sample).astype(np.int64)]
        models = Models(model, size, 16, args.threads)
        try:
            sides = _sides(exported, image, args)
            if args.openvino:
                sides["openvino one"] = _openvino(Path(folder), image, args)
            full = {kind: build(kind, models) for kind in _full(args)}
            row = _timed(sides, full, image, positions, args) | _errors(
                sides, full, model, image, positions, args.patch
            )
        finally:
            models.close()
        row |= {"export_s": export, "weights_mb": (Path(folder) / WEIGHTS).stat().st_size / 1e6}
    parameters = sum(p.numel() * p.element_size() for p in model.parameters()) / 1e6
    return {"network": name, "size": size, "bound": own_box_bound(inc, positions), "parameters_mb": parameters, **row}


Side = Callable[[IntArray], np.ndarray]


def _full(args: argparse.Namespace) -> list[str]:
    return ["onnxruntime", "openvino-f32"] if args.openvino else ["onnxruntime"]


def _sides(exported: kcompile.OnnxModule, image: torch.Tensor, args: argparse.Namespace) -> dict[str, Side]:
    """The two-model route and the one model, materialisation included: positions to logits."""
    patch = np.zeros((3, args.patch, args.patch), np.float32)

    def two(positions: IntArray) -> np.ndarray:
        exported.materialize(image)
        return np.asarray(exported.forward_patches(0.0, positions))

    return {"two": two, "one": lambda positions: exported.run_heatmap(image, patch, positions=positions)["scores"]}


def _openvino(folder: Path, image: torch.Tensor, args: argparse.Namespace) -> Side:
    import openvino

    core = openvino.Core()
    options = {"INFERENCE_NUM_THREADS": args.threads, "INFERENCE_PRECISION_HINT": "f32", "NUM_STREAMS": 1}
    compiled = core.compile_model(core.read_model(folder / HEATMAP), "CPU", options)
    given = {"image": image[None].numpy(), "patch": np.zeros((3, args.patch, args.patch), np.float32)}
    given["stride"] = np.zeros(2, np.int64)
    return lambda positions: compiled({**given, "positions": positions})["scores"].copy()


@torch.no_grad()
def _errors(
    sides: dict[str, Side], full: dict[str, Any], model: torch.nn.Module, image: torch.Tensor, positions: IntArray,
    patch: int,
) -> dict[str, Any]:  # fmt: skip
    """How far raw outputs are off those in float64, as a share of the largest, and how much the patches change them."""
    few = positions[np.linspace(0, len(positions) - 1, min(EXACT, len(positions))).astype(np.int64)]
    exactly = copy.deepcopy(model).double()
    base = exactly(image[None].double()).numpy()
    images = occluded(image, few, patch)
    exact = np.concatenate([exactly(one[None].double()).numpy() for one in images])
    scale = np.abs(exact).max()

    def off(found: np.ndarray) -> float:
        return float(np.abs(found - exact).max() / scale)

    outputs = {kind: naive.time(image, few, patch)[1].numpy() for kind, naive in full.items()}
    return {
        "error": float(np.max([off(run(few)) for run in sides.values()])),  # NaN if any is
        "full_error": off(outputs["onnxruntime"]),
        "change": float(np.abs(exact - base).max() / scale),
    }


def _timed(
    sides: dict[str, Side], full: dict[str, Any], image: torch.Tensor, positions: IntArray, args: argparse.Namespace
) -> dict[str, Any]:
    """Seconds of each side for all positions, and medians over the rounds."""
    share = positions[np.linspace(0, len(positions) - 1, min(args.share, len(positions))).astype(np.int64)]
    seconds: dict[str, list[float]] = {kind: [] for kind in (*sides, *full)}
    for run in sides.values():
        run(positions[:2])  # warm
    for _ in range(args.rounds):
        for kind, naive in full.items():
            seconds[kind].append(naive.time(image, share, args.patch)[0] * len(positions) / len(share))
        for kind, run in sides.items():
            start = time.perf_counter()
            run(positions)
            seconds[kind].append(time.perf_counter() - start)
    medians = {kind: median(values) for kind, values in seconds.items()}
    return {"positions": len(positions), "seconds": seconds, "median": medians}


def table(rows: list[dict[str, Any]]) -> str:
    """One line per network, as Markdown."""
    lines = [f"| {' | '.join(COLUMNS)} |", "|" + "---|" * len(COLUMNS)]
    for row in rows:
        took = row["median"]
        ratio = took["onnxruntime"] / took["two"]
        wanted = BOUNDS.get(row["network"])
        asked = "" if wanted is None else f" (asked: {wanted}x{'' if ratio >= wanted else ', missed'})"
        cells = [
            row["network"], row["positions"], f"{took['onnxruntime']:.1f}", f"{took['two']:.1f}", f"{took['one']:.1f}",
            f"**{ratio:.2f}x**{asked}", f"{row['bound']:.2f}x", f"{took['one'] / took['two']:.3f}",
            *(f"{row[kind]:.1e}" for kind in ("error", "full_error", "change")),
            f"{row['weights_mb']:.0f} of {row['parameters_mb']:.0f}",
        ]  # fmt: skip
        lines.append(f"| {' | '.join(map(str, cells))} |")
        if "openvino one" in took:
            lines.append(f"| in OpenVINO | | {took['openvino-f32']:.1f} | | {took['openvino one']:.1f} | "
                         f"{took['openvino-f32'] / took['openvino one']:.2f}x | | | | | | |")  # fmt: skip
    return "\n".join(lines)


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=list(BOUNDS), help="torchvision's names")
    parser.add_argument("--patch", type=int, default=16, help="patch size in pixels")
    parser.add_argument("--stride", type=int, default=4, help="distance of positions in pixels")
    parser.add_argument("--size", type=int, default=0, help="image size in pixels (0: the network's usual one)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--batch", type=int, help="positions per turn of the loop (default: the export's own)")
    parser.add_argument("--rounds", type=int, default=3, help="A/B rounds")
    parser.add_argument("--share", type=int, default=128, help="positions per round of full inference")
    parser.add_argument("--sample", type=int, default=0, help="only N positions, at even distances (0: the whole map)")
    parser.add_argument("--openvino", action="store_true", help="heatmap.onnx in OpenVINO too")
    parser.add_argument("--write", default="", help="name of the files under benchmarks/results/")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
