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
from benchmarks.approximate.cases import OTHER, TEST, TUNE, Compiled
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


def tune(net: Compiled, store: Store, images: int, until: float) -> kcompile.Tuning:
    """The network's tuning: that of the store, or a new one.

    Raises:
        OutOfTimeError: To be called again.
    """
    case = net.case
    path = store.path.with_name(f"tuning-{case.name}.json")
    if not path.exists():
        given = [case.image(TUNE, index) for index in range(images)]
        goal = {"target_ssim": TARGET, "coverage": COVERAGE, "confidence": CONFIDENCE}
        kept = {"folder": KEPT / case.name, "until": until}
        with mock.patch.object(search, "Maps", type("Kept", (KeptMaps,), kept)):
            found = kcompile.tune(net.inc, given, stride=case.stride, **goal)
        path.parent.mkdir(parents=True, exist_ok=True)
        found.save(path)
    return kcompile.Tuning.load(path)


def measure(
    net: Compiled,
    store: Store,
    which: int,
    images: int,
    until: float,
    methods: dict[str, kcompile.Approximation] | None = None,
) -> bool:
    """Similarities of some methods (None: of the tuned setting) on the images of a set; true if all are there.

    As far as the time allows.
    """
    if methods is None:
        tuning = kcompile.Tuning.load(store.path.with_name(f"tuning-{net.case.name}.json"))
        methods = {TUNED: tuning.approximation}
    part = store.of("sets", {TEST: "test", OTHER: "other"}[which])
    for index in range(images):
        found = part.get(str(index), {})
        left = {name: method for name, method in methods.items() if name not in found}
        if not left:
            continue
        if time.monotonic() > until:
            return False
        image = net.case.image(which, index)
        exact = kept_exact(net, image, KEPT / net.case.name / f"exact-{which}-{index}.npz")
        part[str(index)] = {**found, **_one(net, image, exact, left)}
        store.save()
    return True


def kept_exact(net: Compiled, image: torch.Tensor, path: Path) -> kcompile.Heatmap:
    """The exact map, with its processor time as its seconds: out of a file, or made and written there."""
    if not path.exists():
        heat, seconds = _map(net, image, kcompile.Approximation())
        path.parent.mkdir(parents=True, exist_ok=True)
        replace(heat, seconds=seconds).save(path)
    return kcompile.Heatmap.load(path)


def _one(
    net: Compiled, image: torch.Tensor, exact: kcompile.Heatmap, methods: dict[str, kcompile.Approximation]
) -> dict[str, Any]:
    base_time = exact.seconds
    found: dict[str, Any] = {"exact": {"cpu": base_time, "range": float(np.ptp(exact.scores))}}
    for name, method in methods.items():
        try:
            heat, seconds = _map(net, image, method, exact.target)
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
    net: Compiled, image: torch.Tensor, method: kcompile.Approximation, target: int | None = None
) -> tuple[kcompile.Heatmap, float]:
    start = time.process_time()
    bare = replace(method, samples=0)  # the error estimate's own positions don't change the map
    heat = kcompile.occlusion(net.inc, image, stride=net.stride, score="logit", target=target, approximation=bare)
    return heat, time.process_time() - start
