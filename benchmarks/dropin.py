"""Beneath other explainers, and in their place: Captum's and MONAI's signatures against themselves on the plain model.

1. Recognition: comparing a batch of patched images with its base, as a share of the plain model's forward pass of it.
2. A whole map by `kcompile.captum.Occlusion` and `kcompile.monai.OcclusionSensitivity` against the library's own class
   on the plain model, in batches of ``--batch``. Their time per window doesn't depend on the stride, so each round runs
   theirs at stride ``--coarse`` and scales by the number of windows; ours runs the whole map. Both results are compared
   at the coarse stride. Compilation is not part of a time; materialisation, scheduling and averaging are.

The two sides alternate, A B A B, in one process on the same threads; ratios are medians over the rounds of
theirs / ours.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import kcompile
from benchmarks.machine import summary
from benchmarks.maps import occluded, positions_of
from benchmarks.networks import network
from benchmarks.occlusion import RESULTS
from kcompile import captum as our_captum
from kcompile import monai as our_monai
from kcompile.runtime.recognition import cut, recognise
from kcompile.sliding import Slide


def main(argv: list[str] | None = None) -> None:
    """Run what the command line asks for and print a table."""
    args = _arguments(argv)
    torch.set_num_threads(args.threads)
    warnings.filterwarnings("ignore", "Using a non-tuple sequence", UserWarning)  # MONAI's own indexing
    model, size = network(args.network, args.size)
    inc = kcompile.incrementalize(model, (1, 3, size, size), args.patch)
    inc.executor()
    image = torch.randn(1, 3, size, size)
    report: dict[str, Any] = {"machine": summary(args.threads), **vars(args), "recognition": [], "maps": []}
    for rows in (1, args.batch):
        report["recognition"].append(recognition(inc, image, rows, args))
    for name in args.explainers:
        report["maps"].append(compare(name, inc, image, args))
    print(table(report))
    if args.write:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{args.write}.json").write_text(json.dumps(report, indent=1) + "\n")
        (RESULTS / f"{args.write}.md").write_text(table(report) + "\n")


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("explainers", nargs="*", default=["captum", "monai"], help="captum, monai")
    parser.add_argument("--network", default="resnet18")
    parser.add_argument("--size", type=int, default=0, help="image size in pixels (0: the network's usual one)")
    parser.add_argument("--patch", type=int, default=16, help="window in pixels; all channels")
    parser.add_argument("--stride", type=int, default=4, help="distance of windows in pixels")
    parser.add_argument("--coarse", type=int, default=16, help="the libraries' distance (--stride: whole maps)")
    parser.add_argument("--batch", type=int, default=16, help="windows per call of the plain model")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3, help="A/B rounds")
    parser.add_argument("--write", default="", help="name of the files under benchmarks/results/")
    return parser.parse_args(argv)


def recognition(inc: kcompile.IncrementalModule, image: Tensor, rows: int, args: argparse.Namespace) -> dict[str, Any]:
    """Seconds to recognise a batch of patched images and cut out their patches, beside the plain model's."""
    positions = positions_of(image.shape[-1], args.patch, args.stride)
    some = positions[:: max(len(positions) // rows, 1)][:rows]
    images = occluded(image[0], some, args.patch).contiguous()
    patch = (args.patch, args.patch)

    def ours() -> int:
        found = recognise(images, image, patch)
        return len(cut(images, found.patched, found.positions, patch))

    if ours() != rows:
        raise RuntimeError("void: not all rows were recognised")
    pairs = _paired(ours, lambda: inc.model(images), 5 * args.rounds)
    shares = [mine / theirs for mine, theirs in pairs]
    return {
        "rows": rows, "seconds": _middle(pairs, 0), "forward": _middle(pairs, 1),
        "share": statistics.median(shares), "highest": max(shares),
    }  # fmt: skip


def compare(name: str, inc: kcompile.IncrementalModule, image: Tensor, args: argparse.Namespace) -> dict[str, Any]:
    """One explainer's map by our class, and by the library's with the plain model."""
    native, library = {"captum": _captum, "monai": _monai}[name](inc, image, args)
    mine, theirs = native(args.coarse), library(args.coarse)  # also warms up
    sizes, window = tuple(image.shape[2:]), (args.patch, args.patch)
    counts = [Slide.cropped(sizes, window, (stride, stride)).count for stride in (args.stride, args.coarse)]
    pairs = _paired(lambda: native(args.stride), lambda: library(args.coarse), args.rounds)
    scaled = [(ours, other * counts[0] / counts[1]) for ours, other in pairs]
    ratios = [other / ours for ours, other in scaled]
    scale = float(theirs.abs().max())
    return {
        "explainer": name, "windows": counts[0], "theirs timed": counts[1],
        "ours": _middle(scaled, 0), "theirs": _middle(scaled, 1),
        "ratio": statistics.median(ratios), "lowest": min(ratios), "highest": max(ratios),
        "error": float((mine - theirs).abs().max()) / scale,
        "change": float((theirs - theirs.mean((-2, -1), keepdim=True)).abs().max()) / scale,
    }  # fmt: skip


Explain = Callable[[int], Tensor]


def _captum(inc: kcompile.IncrementalModule, image: Tensor, args: argparse.Namespace) -> tuple[Explain, Explain]:
    """Attributions at some stride, of our class and of Captum's."""
    from captum.attr import Occlusion

    window = (image.shape[1], args.patch, args.patch)

    def explain(explainer: Any) -> Explain:
        def run(stride: int) -> Tensor:
            steps = (window[0], stride, stride)
            made: Tensor = explainer.attribute(image, window, steps, target=1, perturbations_per_eval=args.batch)
            return made

        return run

    return explain(our_captum.Occlusion(inc)), explain(Occlusion(inc.model))


def _monai(inc: kcompile.IncrementalModule, image: Tensor, args: argparse.Namespace) -> tuple[Explain, Explain]:
    """Sensitivity maps at some stride, of our class and of MONAI's."""
    from monai.visualize import OcclusionSensitivity

    def explain(kind: Any, module: nn.Module) -> Explain:
        def run(stride: int) -> Tensor:
            share = 1 - stride / args.patch
            explainer = kind(module, mask_size=args.patch, n_batch=args.batch, verbose=False, overlap=share)
            made: Tensor = explainer(image)[0].as_subclass(Tensor)
            return made

        return run

    return explain(our_monai.OcclusionSensitivity, inc), explain(OcclusionSensitivity, inc.model)


def _paired(ours: Callable[[], Any], theirs: Callable[[], Any], rounds: int) -> list[tuple[float, float]]:
    """Seconds of both sides, in turn."""
    with torch.no_grad():
        return [(_seconds(ours), _seconds(theirs)) for _ in range(rounds)]


def _seconds(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _middle(pairs: list[tuple[float, float]], side: int) -> float:
    return statistics.median(pair[side] for pair in pairs)


def table(report: dict[str, Any]) -> str:
    """The report as markdown."""
    asked = f"{report['network']}, window {report['patch']}, stride {report['stride']}, batches of {report['batch']}"
    lines = [
        f"{report['machine']}; {asked}",
        "",
        "| recognition of | ms | forward ms | share (highest) |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {row['rows']} rows | {1e3 * row['seconds']:.2f} | {1e3 * row['forward']:.1f} | "
        f"**{row['share']:.1%}** ({row['highest']:.1%}) |"
        for row in report["recognition"]
    ]
    lines += ["", "| signature | windows | ours s | theirs s | ratio (range) | error | change |", "|" + "---|" * 7]
    lines += [
        f"| {row['explainer']} | {row['windows']} (theirs: {row['theirs timed']}, scaled) | {row['ours']:.1f} | "
        f"{row['theirs']:.1f} | **{row['ratio']:.2f}x** ({row['lowest']:.2f}–{row['highest']:.2f}) | "
        f"{row['error']:.1e} | {row['change']:.1e} |"
        for row in report["maps"]
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
