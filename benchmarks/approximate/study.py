"""A closer look on few images: how settings of one method compare, and what gradients of many classes cost."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import numpy as np
import torch

import kcompile
from benchmarks.approximate.cases import TEST, Compiled, full_size
from kcompile import Approximation
from kcompile.experiment import experiment, scorer_of
from kcompile.metrics import similarity

STRIDE = 8  # of the maps, in pixels; 4 on small images
CUT = 0.25
TARGETS = (1, 4, 16, 64)


def settings(net: Compiled) -> dict[str, Approximation]:
    """What is compared on a network, by name."""
    crops = {keep: net.extents(keep) for keep in (0.9, 0.98)}
    if net.gated:
        return {
            "held gates": Approximation(gates="held"),
            **{f"held gates, threshold {tau:g}": Approximation(gates="held", tau=tau) for tau in (0.5, 0.3)},
            "held gates, extents that hold 0.98": Approximation(gates="held", extents=crops[0.98]),
            "held gates, 25 exact": Approximation(gates="held", correct=25),
            "held gates, linear tail, 0.8 of the work": Approximation(gates="held", cut=0.8),
            "linear gates, linear tail, 0.8 of the work": Approximation(gates="linear", cut=0.8),
        }
    return {
        "gradient at the input": Approximation(cut=0.0),
        f"linear tail, {CUT:g} of the work": Approximation(cut=CUT),
        "the same, secant": Approximation(cut=CUT, reference="secant"),
        "the same, mean-gradient": Approximation(cut=CUT, reference="mean-gradient"),
        "the same, 49 exact": Approximation(cut=CUT, correct=49),
        "linear tail, 0.8 of the work": Approximation(cut=0.8),
        **{f"threshold {tau:g}": Approximation(tau=tau) for tau in (0.5, 0.3)},
        "threshold 0.3, 49 exact": Approximation(tau=0.3, correct=49),
        **{f"extents that hold {keep:g}": Approximation(extents=crops[keep]) for keep in crops},
        f"extents that hold 0.9, the rest linear at {CUT:g}": Approximation(extents=crops[0.9], cut=CUT, rest="linear"),
        "bfloat16": Approximation(dtype="bfloat16"),
    }


def compare(net: Compiled, images: int) -> dict[str, Any]:
    """Similarity per image and work of a position (by the cost model, as a share of the exact one) per setting."""
    stride = min(STRIDE, 2 * net.stride)
    options: dict[str, Any] = {"stride": stride, "score": "logit"}
    given = [net.case.image(TEST, index) for index in range(images)]
    exact = [kcompile.occlusion(net.inc, image, **options) for image in given]
    question = experiment(net.inc, None, stride, None, 0.0, None, "logit", None).question
    found: dict[str, Any] = {}
    for name, setting in settings(net).items():
        try:
            work = scorer_of(question, setting).work_share() / net.inc.work_share()
        except kcompile.InputError as error:
            found[name] = {"error": str(error)}
            continue
        bare = replace(setting, samples=0)
        maps = [
            kcompile.occlusion(net.inc, image, **options, target=truth.target, approximation=bare)
            for image, truth in zip(given, exact, strict=True)
        ]
        pairs = zip(exact, maps, strict=True)
        found[name] = {"work": work, "ssim": [similarity(truth.scores, heat.scores) for truth, heat in pairs]}
    return found


def gradients(name: str = "resnet18", cut: str = "layer3", positions: int = 64) -> dict[str, Any]:
    """Processor time of a linear tail's gradients over the number of explained classes, beside that of a position."""
    inc = kcompile.incrementalize(full_size(name), (3, 224, 224), 16)
    image = torch.randn(3, 224, 224, generator=torch.Generator().manual_seed(0))
    job = experiment(inc, None, 4, None, 0.0, None, "logit", None, Approximation(cut=cut, samples=0))
    scorer = scorer_of(job.question, job.approximation)
    spots = job.positions.reshape(-1, 2)
    some = spots[np.linspace(0, len(spots) - 1, positions).astype(int)]
    found: dict[str, Any] = {"network": name, "cut": cut, "targets": {}}
    for count in (TARGETS[0], *TARGETS):  # the first one again: it also packs
        scorer.base(inc.read(image))
        start = time.process_time()
        scorer.aim(list(range(count)), spots)
        aimed = time.process_time()
        for _ in scorer.at(some):
            pass
        each = (time.process_time() - aimed) / positions
        found["targets"][str(count)] = {"gradients": aimed - start, "position": each}
    return found
