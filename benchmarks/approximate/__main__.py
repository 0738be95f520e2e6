"""Approximate maps of trained networks: `python -m benchmarks.approximate`; benchmarks/README.md says what it does."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch

import kcompile
from benchmarks.approximate import figures, report, study, timing
from benchmarks.approximate.cases import CASES, CURVE, OTHER, TEST, Case, Compiled, full_size
from benchmarks.approximate.quality import TUNED, OutOfTimeError, Store, measure, tune
from benchmarks.machine import summary
from kcompile import Approximation
from kcompile.lattice import position_speedup

RESULTS = Path(__file__).parents[1] / "results" / "approximate"
IMAGES = Path(__file__).parents[2] / "docs" / "images"


def qualities(options: argparse.Namespace) -> None:
    """Tune, and hold the methods against the exact maps of held-out images; goes on where it stopped."""
    until = time.monotonic() + 60 * options.minutes
    for name in options.networks:
        net, store = Compiled.of(CASES[name]), Store(RESULTS / f"{name}.json")
        try:
            print(f"{name}: {tune(net, store, options.tuning_images or net.case.tuning, until)}", flush=True)
        except OutOfTimeError:
            print(f"{name}: out of time; run it again to go on with the search", flush=True)
            return
        every = net.methods()
        curve = {method: setting for method, setting in every.items() if method in CURVE}
        parts = [
            (TEST, options.images, None),
            (OTHER, options.other_images, None),
            (TEST, options.front, every),
            (TEST, options.curve, curve),
        ]
        done = all(measure(net, store, which, count, until, methods) for which, count, methods in parts)
        if not done:
            print(f"{name}: out of time; run it again to go on", flush=True)
            return


def times(options: argparse.Namespace) -> None:
    """Time whole maps at the certified setting, and the drill-down of figure 13."""
    store = Store(RESULTS / "times.json")
    store.of("machine")["summary"] = summary(torch.get_num_threads())
    for name in options.networks:
        case = CASES[name]
        setting = kcompile.Tuning.load(RESULTS / f"tuning-{name}.json").approximation
        model, inc = case.load(), Compiled.of(case).inc
        found = timing.compare(model, inc, case.image(TEST, 2), case.stride, {TUNED: setting}, options.rounds)
        store.of("networks")[name] = found
        store.save()
        print(name, report.speed_row(name, found, TUNED), flush=True)
    if "vgg" in options.networks:
        store.of("drills").update(drills(CASES["vgg"], options.rounds))
        store.save()


def drills(case: Case, rounds: int) -> dict[str, dict[str, list[float]]]:
    """Speedups of drill-down over the share and over the first stride, measured and by eq. 30."""
    shares, factors = (0.1, 0.2, 0.3, 0.4, 0.5), (2, 3, 4, 5, 6)
    by_share = {s: Approximation(share=s, coarse=4 * case.stride, samples=0) for s in shares}
    by_stride = {f: Approximation(share=0.25, coarse=f * case.stride, samples=0) for f in factors}
    settings = {**{f"r{s}": a for s, a in by_share.items()}, **{f"x{f}": a for f, a in by_stride.items()}}
    inc = Compiled.of(case).inc
    found = timing.compare(case.load(), inc, case.image(TEST, 2), case.stride, settings, rounds)
    measured = {name: timing.ratios(found, name, "exact", "cpu")[0] for name in settings}
    return {
        "share r, first stride x4": {
            "at": list(shares),
            "theory": [position_speedup(1, 4, s) for s in shares],
            "measured": [measured[f"r{s}"] for s in shares],
        },
        "first stride (times the last), r 0.25": {
            "at": list(factors),
            "theory": [position_speedup(1, f, 0.25) for f in factors],
            "measured": [measured[f"x{f}"] for f in factors],
        },
    }


def extrapolate(options: argparse.Namespace) -> None:
    """Time full-size networks with random weights at the setting of the trained one of their kind."""
    store = Store(RESULTS / "times.json")
    for name, kin in (("vgg16", "vgg"), ("resnet18", "residual")):
        if kin not in options.networks:
            continue
        setting = timing.like(kcompile.Tuning.load(RESULTS / f"tuning-{kin}.json").approximation)
        model = full_size(name)
        inc = kcompile.incrementalize(model, (3, 224, 224), 16)
        image = torch.randn(3, 224, 224, generator=torch.Generator().manual_seed(0))
        found = timing.compare(model, inc, image, 4, {TUNED: setting}, 1)
        store.of("extrapolated")[name] = {**found, "setting": str(setting)}
        store.save()
        print(name, report.speed_row(name, found, TUNED), flush=True)


def studies(options: argparse.Namespace) -> None:
    """Settings of one method against each other, on few images; and what gradients of many classes cost."""
    store = Store(RESULTS / "study.json")
    for name in options.networks:
        store.of("networks")[name] = study.compare(Compiled.of(CASES[name]), options.study_images)
        store.save()
        print(report.study_table(name, store.facts["networks"][name]), flush=True)
    if "residual" in options.networks:
        store.facts["gradients"] = study.gradients()
        store.save()
        print(store.facts["gradients"], flush=True)


def write(options: argparse.Namespace) -> None:
    """Tables and figures of all that is stored."""
    facts = {name: Store(RESULTS / f"{name}.json").facts for name in CASES if (RESULTS / f"{name}.json").exists()}
    stored = Store(RESULTS / "times.json").facts
    text = report.whole(facts, stored, RESULTS) + report.studied(Store(RESULTS / "study.json").facts)
    (RESULTS / "approximate.md").write_text(text, encoding="utf-8")
    print(text)
    for path in figures.draw_all(facts, stored.get("drills"), IMAGES):
        print(f"wrote {path.name}")


def main() -> None:
    """Run the stages that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("stages", nargs="*", choices=["quality", "times", "extrapolate", "study", "report", []], help="default: all")
    add("--networks", nargs="+", choices=CASES, default=list(CASES))
    add("--images", type=int, default=100, help="held-out images per network")
    add("--other-images", type=int, default=40, help="images of other textures")
    add("--front", type=int, default=40, help="held-out images on which all methods are compared")
    add("--curve", type=int, default=60, help="held-out images for the thresholds of Krypton's curve: fit on one half")
    add("--tuning-images", type=int, help="images for tuning, both halves together (default: each network's own)")
    add("--study-images", type=int, default=4, help="images of the stage study")
    add("--minutes", type=float, default=1e6, help="stop measuring qualities after so many; what is done is kept")
    add("--rounds", type=int, default=3, help="of the paired times")
    options = parser.parse_args()
    stages = {"quality": qualities, "times": times, "extrapolate": extrapolate, "study": studies, "report": write}
    for stage in options.stages or stages:
        stages[stage](options)


if __name__ == "__main__":
    main()
