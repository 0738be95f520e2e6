"""`tune`: the fastest approximation that is certified to be good enough (kcompile/selection.py says how)."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import nn

from kcompile.approximation import Approximation, Extents
from kcompile.bounds import check_share, images_needed
from kcompile.core.errors import InputError, KCompileError
from kcompile.decay import extents_of
from kcompile.experiment import Experiment, experiment
from kcompile.grid import strides_of
from kcompile.heatmap import FloatArray, Heatmap
from kcompile.images import as_images, compiled
from kcompile.metrics import similarity
from kcompile.progress import Meter
from kcompile.runtime.inputs import Given
from kcompile.scoring import Score
from kcompile.selection import Trial, Verdict, certify, sequence
from kcompile.targets import several
from kcompile.tuning import Tuning
from kcompile.variants import has_gates

KEEP = 0.98  # of the change, in measured extents
MEASURED = 4  # images that they are measured on
CORRECTED = (0.009, 0.023)  # shares of the positions that correct crops: on maps of 53 by 53 every 16th or 8th line


def tune(
    model: nn.Module,
    images: Any,
    *,
    target_ssim: float = 0.9,
    coverage: float = 0.9,
    confidence: float = 0.9,
    candidates: Sequence[Approximation] | None = None,
    patch_shape: int | Sequence[int] | None = None,
    stride: int | Sequence[int] | None = None,
    overlap: float | Sequence[float] | None = None,
    value: Any = 0.0,
    target: int | None = None,
    roi: Sequence[int] | None = None,
    score: Score = "logit",
    output: Any = None,
    seed: int = 0,
    progress: bool = False,
) -> Tuning:
    """Find the fastest approximation whose maps are good enough, and certify it on images that the search hasn't seen.

    The images are split at random. On one half all candidates are tried, on the other the best of them are tested from
    the safest to the fastest by exact binomial tests (`kcompile.selection`). Nothing is fitted or extrapolated.

    Args:
        model: What `incrementalize` returned, or a plain model.
        images: A list (or batch) of images like those that will be explained: independent draws, each scene once.
        target_ssim: Similarity to the exact map (`kcompile.metrics.similarity`) that a map must reach, 0 < s <= 1.
        coverage: Share of all such images whose maps must reach it.
        confidence: That they do.
        candidates: What is tried (those that this model can't have are left out); default: `search.default_candidates`.
        patch_shape: As for `occlusion`, like the rest of what says which maps are made.
        stride: See there.
        overlap: See there.
        value: See there.
        target: See there.
        roi: See there.
        score: See there; take "logit" or a log-probability, since probabilities saturate.
        output: See there.
        seed: Of the split.
        progress: Show a progress bar.

    Returns:
        A `Tuning`. Where no candidate could be certified its approximation is exact.

    Raises:
        InputError: Too few images for the guarantee (the message says how many it takes), one of them twice, or bad
            arguments.
    """
    coverage, confidence = check_goal(target_ssim, coverage, confidence)
    if several(target):
        raise InputError(f"target is {target}; allowed is one class: a certificate is for one map of an image")
    listed = None if candidates is None else _checked(candidates)
    inc = compiled(model, images, patch_shape)
    given, _ = as_images(images, inc)
    _check_once(given)
    chosen, certifying = split(len(given), images_needed(coverage, confidence), seed)
    job = experiment(inc, patch_shape, stride, overlap, value, roi, score, output)
    tried = default_candidates(job, [given[i] for i in chosen]) if listed is None else listed
    maps = Maps(job, target)
    with Meter(len(chosen) * (1 + len(tried)), None, progress) as meter:
        trials = _select(maps, [given[i] for i in chosen], tried, float(target_ssim), coverage, meter)
    order = sequence(trials, target_ssim, coverage)
    exact: list[Heatmap] = []

    def evaluate(trial: Trial[Approximation]) -> FloatArray:
        rest = [given[i] for i in certifying]
        exact.extend(maps.make(one, None)[0] for one in rest[len(exact) :])
        pairs = zip(exact, rest, strict=True)
        return np.array([quality(truth, maps.make(one, trial.candidate, truth.target)[0]) for truth, one in pairs])

    verdicts = certify(order, evaluate, target_ssim, coverage, confidence)
    facts = {
        "target_ssim": float(target_ssim),
        "coverage": coverage,
        "confidence": confidence,
        "kind": job.kind(target),
        "trials": tuple(_told(trial, target_ssim, verdicts) for trial in trials),
    }
    return _tuning(verdicts, len(certifying), facts)


def check_goal(
    target_ssim: float, coverage: float, confidence: float, images: int | None = None
) -> tuple[float, float]:
    """Coverage and confidence as floats, if the goal is one; for so many images, if they can do.

    Raises:
        InputError: A number that is not allowed, or too few images.
    """
    if isinstance(target_ssim, bool) or not isinstance(target_ssim, (int, float)) or not 0 < target_ssim <= 1:
        raise InputError(f"target_ssim is {target_ssim!r}; allowed is 0 < target_ssim <= 1")
    coverage, confidence = check_share("coverage", coverage), check_share("confidence", confidence)
    if images is not None:
        split(images, images_needed(coverage, confidence), 0)
    return coverage, confidence


def split(images: int, needed: int, seed: int) -> tuple[list[int], list[int]]:
    """Two halves of the images at random: for selection, and for certification (one more of an odd number).

    At random, since images often come in an order (by class), and the halves must be alike.

    Raises:
        InputError: Too few images: the second half must be able to certify, if all of its maps are good.
    """
    if images - images // 2 < needed or images < 2:
        raise InputError(
            f"{images} images are too few for this guarantee: it takes at least {max(2, 2 * needed - 1)} ({needed} to "
            "certify, and all of them must meet the target; more leave room for some that don't)"
        )
    order = np.random.default_rng(seed).permutation(images).tolist()
    return sorted(order[: images // 2]), sorted(order[images // 2 :])


def _checked(candidates: Iterable[Approximation]) -> list[Approximation]:
    """The candidates, if there are any and all are Approximations; InputError otherwise."""
    if not isinstance(candidates, Iterable):
        raise InputError(f"candidates is a {type(candidates).__name__}; allowed is a list of kcompile.Approximations")
    listed = list(candidates)
    for one in listed:
        if not isinstance(one, Approximation):
            raise InputError(f"candidates has a {type(one).__name__}, {one!r}; allowed are kcompile.Approximations")
    if not listed:
        raise InputError("candidates is empty; allowed are kcompile.Approximations, or None for the default ones")
    return listed


def _check_once(images: Sequence[Given]) -> None:
    """Refuse images that are given twice: one in each half would let the search see what it is certified on."""
    seen: dict[bytes, int] = {}
    for index, given in enumerate(images):
        key = b"".join(row.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes() for row in given.rows)
        if (first := seen.setdefault(hashlib.sha256(key).digest(), index)) != index:
            raise InputError(f"images {first} and {index} are equal; allowed are independent ones, each once")


@dataclass(frozen=True)
class Maps:
    """Makes maps of one kind.

    Attributes:
        job: What is done with each image.
        target: As for `occlusion`.
    """

    job: Experiment
    target: int | None

    def make(
        self, given: Given, approximation: Approximation | None, target: int | None = None
    ) -> tuple[Heatmap, float]:
        """A map, and the seconds of processor time that it took (of the clock, on an accelerator).

        Processor time: tuning runs for long, and other load would make the candidates that meet it look slow.
        """
        unchecked = None if approximation is None else replace(approximation, samples=0)
        job = replace(self.job, approximation=unchecked)
        on_cpu = given.rows[0].device.type == "cpu"
        clock = time.process_time if on_cpu else time.perf_counter
        start = clock()
        with Meter(job.count, None, shown=False) as meter:
            (heat,) = job.run([given], self.target if target is None else target, meter)
        if meter.done < job.count:
            raise KeyboardInterrupt  # half a map is none; the scan has taken the signal
        return heat, clock() - start


def quality(exact: Heatmap, approximate: Heatmap) -> float:
    """Similarity of two maps' scores; -inf where the approximate ones are not finite.

    Raises:
        InputError: The exact scores are not finite.
    """
    if not np.isfinite(approximate.scores).all() and np.isfinite(exact.scores).all():
        return -np.inf
    return similarity(exact.scores, approximate.scores)


def candidates_for(
    strides: Sequence[int], extents: Extents = (), gated: bool = False, positions: int = 0
) -> list[Approximation]:
    """What `tune` tries by default: drill-down, crops, linear tails and held gates, alone and together.

    Args:
        strides: Of the maps, per axis, in pixels.
        extents: What `measure_extents` found for the model; nothing for none.
        gated: The model has gates that can be held (`has_gates`). Most candidates hold them then, or update them to
            first order where there is a cut: behind a gate the exact map is dense.
        positions: Of a map; crops are then also corrected by some of them, computed exactly.
    """
    stride = max(strides)
    drills: list[dict[str, Any]] = [
        {"share": 0.05, "coarse": 2 * stride},
        {"share": 0.1, "coarse": 2 * stride},
        {"share": 0.1, "coarse": 4 * stride, "levels": 3},
        {"share": 0.2, "coarse": 4 * stride, "levels": 3},
    ]
    safer = [drills[1], drills[3]]
    made = [Approximation(tau=tau, **drill) for tau in (1.0, 0.4) for drill in drills]
    made += [Approximation(tau=tau, **drill) for tau in (0.6, 0.5) for drill in (*safer, drills[2])]
    made += [Approximation(extents=extents, **drill) for drill in ({}, *safer) if extents]
    made += [Approximation(cut=cut, **drill) for cut in (0.5, 0.8) for drill in ({}, *safer, drills[2])]
    if positions:
        few, more = (max(9, round(share * positions)) for share in CORRECTED)
        fast = [{"share": 0.05, "coarse": 4 * stride, "levels": 3}, *drills[2:]]
        for tau, drill in product((0.4, 0.3), fast):
            made.append(Approximation(tau=tau, correct=more, **drill))
            made += [Approximation(tau=tau, cut=0.9, correct=count, **drill) for count in sorted({few, more})]
    if not gated:
        return made
    held = [replace(one, gates="linear" if one.linear else "held") for one in (Approximation(), *made)]
    return held + [Approximation(**drill) for drill in safer]


def default_candidates(job: Experiment, images: Sequence[Given]) -> list[Approximation]:
    """`candidates_for` a model and some images of the half that it is chosen on.

    Extents are measured on the first of these; not under a memory budget, which wouldn't bound it.
    """
    inc, gated = job.question.inc, False
    extents: Extents = ()
    with suppress(InputError):  # from a file, it can't have any of these
        gated = has_gates(inc)
        if inc.memory_budget is None:
            extents = extents_of(job.question, images[:MEASURED], KEEP, held=gated)
    return candidates_for(strides_of(job.positions), extents, gated, job.count)


def _select(
    maps: Maps, images: list[Given], tried: list[Approximation], target: float, coverage: float, meter: Meter
) -> list[Trial[Approximation]]:
    """All candidates on these images; one that can't reach the coverage any more is dropped (-inf from then on).

    Maps are made without their error estimate; what its exact positions cost is counted, as they come with each map.
    """
    missable = math.floor((1 - coverage) * len(images) + 1e-9)
    qualities: list[list[float]] = [[] for _ in tried]
    costs: list[list[float]] = [[] for _ in tried]
    refused: dict[Approximation, str] = {}
    for number, given in enumerate(images):
        exact, seconds = maps.make(given, None)
        meter.advance(1, number)
        for candidate, found, cost in zip(tried, qualities, costs, strict=True):
            if sum(one < target for one in found) <= missable:
                similar, took = _try(maps, given, candidate, exact, refused)
                found.append(similar)
                cost.append(took / max(seconds, 1e-9) + min(candidate.samples / maps.job.count, 1))
            else:
                found.append(-np.inf)
            meter.advance(1, number)
        if len(refused) == len(set(tried)):
            raise InputError(f"this model can have none of the candidates: {'; '.join(sorted(set(refused.values())))}")
    return [
        Trial(candidate, np.array(found), float(np.median(cost)), refused.get(candidate, ""))
        for candidate, found, cost in zip(tried, qualities, costs, strict=True)
    ]


def _try(
    maps: Maps, given: Given, candidate: Approximation, exact: Heatmap, refused: dict[Approximation, str]
) -> tuple[float, float]:
    """Similarity and seconds of a candidate's map; one that this model can't have is never similar, and told why."""
    try:
        heat, seconds = maps.make(given, candidate, exact.target)
    except KCompileError as error:
        refused[candidate] = str(error)
        return -np.inf, np.inf
    return quality(exact, heat), seconds


def _told(trial: Trial[Approximation], target: float, verdicts: list[Verdict[Any]]) -> dict[str, Any]:
    tested = {verdict.candidate.candidate: verdict.holds for verdict in verdicts}
    return {
        "candidate": str(trial.candidate),
        "met": trial.met(target),
        "cost": trial.cost if np.isfinite(trial.cost) else None,
        "certified": tested.get(trial.candidate),
        **({"refused": trial.refused} if trial.refused else {}),
    }


def _tuning(verdicts: list[Verdict[Trial[Approximation]]], images: int, facts: dict[str, Any]) -> Tuning:
    """The last certified candidate; the exact path without one, which meets any target on all images."""
    held = [verdict for verdict in verdicts if verdict.holds]
    if not held:
        return Tuning(Approximation(), met=images, images=images, bound=1.0, worst=1.0, speedup=1.0, **facts)
    last = held[-1]
    return Tuning(
        last.candidate.candidate,
        met=last.met,
        images=last.images,
        bound=last.bound,
        worst=last.worst,
        speedup=1 / last.candidate.cost,
        **facts,
    )
