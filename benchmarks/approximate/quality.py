"""Qualities on held-out images, method by method: kept image by image, so that a stopped run goes on."""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

import kcompile
from benchmarks.approximate.cases import METHODS, OTHER, TEST, TUNE, Case
from kcompile import search
from kcompile.metrics import rendered_similarity, similarity
from kcompile.search import Maps

TARGET, COVERAGE, CONFIDENCE = 0.9, 0.9, 0.9
TUNED = "tuned"
KEPT = Path("out") / "approximate"


class Store:
    """A JSON file of one network's findings."""

    def __init__(self, path: Path) -> None:
        """Read what is there."""
        self.path = path
        self.facts: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}

    def of(self, *keys: str) -> dict[str, Any]:
        """A part of it, made where it is missing."""
        found = self.facts
        for key in keys:
            found = found.setdefault(key, {})
        return found

    def save(self) -> None:
        """Write it."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps(self.facts, indent=1) + "\n", encoding="utf-8")


class OutOfTimeError(Exception):
    """The run's minutes are over; what is done is kept."""


class KeptMaps(Maps):
    """Maps that are kept in files, so that a stopped search goes on where it was.

    Attributes:
        folder: Where they are.
        until: When no more are begun, by `time.monotonic`.
    """

    folder: Path
    until: float

    def make(
        self, given: Any, approximation: kcompile.Approximation | None, target: int | None = None
    ) -> tuple[kcompile.Heatmap, float]:
        """A map of the folder, or a new one."""
        asked = f"{self.job.positions.shape} {approximation!r} {target}".encode()
        path = self.folder / f"{hashlib.sha256(asked + given.rows[0].numpy().tobytes()).hexdigest()[:24]}.npz"
        if not path.exists():
            if time.monotonic() > self.until:
                raise OutOfTimeError
            heat, seconds = super().make(given, approximation, target)
            self.folder.mkdir(parents=True, exist_ok=True)
            replace(heat, seconds=seconds).save(path)
        heat = kcompile.Heatmap.load(path)
        return heat, heat.seconds


def tune(case: Case, inc: kcompile.IncrementalModule, store: Store, images: int, until: float) -> kcompile.Tuning:
    """The network's tuning: that of the store, or a new one.

    Raises:
        OutOfTimeError: To be called again.
    """
    path = store.path.with_name(f"tuning-{case.name}.json")
    if not path.exists():
        given = [case.image(TUNE, index) for index in range(images)]
        goal = {"target_ssim": TARGET, "coverage": COVERAGE, "confidence": CONFIDENCE}
        kept = {"folder": KEPT / case.name, "until": until}
        with mock.patch.object(search, "Maps", type("Kept", (KeptMaps,), kept)):
            found = kcompile.tune(inc, given, stride=case.stride, **goal)
        path.parent.mkdir(parents=True, exist_ok=True)
        found.save(path)
    return kcompile.Tuning.load(path)


def measure(
    case: Case,
    inc: kcompile.IncrementalModule,
    store: Store,
    which: int,
    images: int,
    until: float,
    compared: bool = False,
) -> bool:
    """Similarities on the images of a set, as far as the time allows; true if all are there.

    Of the tuned setting, or (``compared``) of all methods.
    """
    tuning = kcompile.Tuning.load(store.path.with_name(f"tuning-{case.name}.json"))
    methods = {TUNED: tuning.approximation}
    if compared:
        methods = {name: make(case.stride) for name, make in METHODS.items()}
    part = store.of("sets", {TEST: "test", OTHER: "other"}[which])
    for index in range(images):
        found = part.get(str(index), {})
        left = {name: method for name, method in methods.items() if name not in found}
        if not left:
            continue
        if time.monotonic() > until:
            return False
        part[str(index)] = {**found, **_one(case, inc, case.image(which, index), left)}
        store.save()
    return True


def _one(
    case: Case, inc: kcompile.IncrementalModule, image: torch.Tensor, methods: dict[str, kcompile.Approximation]
) -> dict[str, Any]:
    exact, base_time = _map(case, inc, image, kcompile.Approximation())
    found: dict[str, Any] = {"exact": {"cpu": base_time, "range": float(np.ptp(exact.scores))}}
    for name, method in methods.items():
        try:
            heat, seconds = _map(case, inc, image, method, exact.target)
        except kcompile.InputError as error:
            found[name] = {"error": str(error)}
            continue
        found[name] = {
            "ssim": similarity(exact.scores, heat.scores),
            "jet": rendered_similarity(exact.scores, heat.scores),
            "cpu": seconds,
            "exact_cpu": base_time,
        }
    return found


def _map(
    case: Case,
    inc: kcompile.IncrementalModule,
    image: torch.Tensor,
    method: kcompile.Approximation,
    target: int | None = None,
) -> tuple[kcompile.Heatmap, float]:
    start = time.process_time()
    bare = replace(method, samples=0)  # the error estimate's own positions don't change the map
    heat = kcompile.occlusion(inc, image, stride=case.stride, score="logit", target=target, approximation=bare)
    return heat, time.process_time() - start
