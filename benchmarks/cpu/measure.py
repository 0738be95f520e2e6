"""All numbers of one case, and what is made once for several cases."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import nn

import kcompile
from benchmarks.cpu import memory, steps
from benchmarks.cpu.captum_side import captum
from benchmarks.cpu.cases import Case
from benchmarks.cpu.naive import BUILDERS, MissingError, Models, Naive, build
from benchmarks.cpu.pairs import Incremental, NaiveSide, incremental_map, paired, stratified, summary
from benchmarks.machine import others
from benchmarks.maps import own_box_bound, positions_of, sample_of
from benchmarks.networks import network

BASELINES = (*BUILDERS, "captum")
STEPS_SAMPLE = 256  # positions of the pass that tells the kinds of step apart


@dataclass(frozen=True)
class Options:
    """How to measure.

    Attributes:
        baselines: Names out of `BASELINES`; the first is "eager", with which outputs are compared.
        batch: Images per call of the naive sides.
        rounds: A/B rounds.
        share: Positions per round of each baseline but the first.
        steps: Measure the time by kind of step.
        memory: Measure peak memory.
    """

    baselines: Sequence[str] = BASELINES
    batch: int = 16
    rounds: int = 4
    share: int = 128
    steps: bool = True
    memory: bool = True


@dataclass
class Bench:
    """Measures cases; a network, its compiled module and its baselines are kept for the next case that needs them."""

    options: Options
    tell: Callable[[str], None] = lambda text: None
    _kept: dict[str, tuple[Any, Any]] = field(default_factory=dict)

    def measure(self, case: Case) -> dict[str, Any]:
        """The row of one case: its numbers, under the names that benchmarks/README.md explains."""
        torch.set_num_threads(case.threads)
        model, size = self._keep("network", (case.network, case.size), lambda: network(case.network, case.size))
        key = (case.network, case.size, case.patch, case.threads)  # oneDNN may pack by them
        inc, compiled = self._keep("compiled", key, lambda: _compile(model, size, case.patch))
        naives, skipped = self._naives(model, size, case)
        everything = positions_of(size, case.patch, case.stride)
        sample = None if case.queries else sample_of(inc, everything, case.sample)
        positions = stratified(inc, everything, case.queries) if sample is None else sample.positions
        ours = Incremental(inc, torch.randn(3, size, size), case, positions, sample)
        warm = sample_of(inc, everything, 64)
        incremental_map(inc, ours.image, warm)
        if case.queries:
            ours.run()
        with others() as busy:
            rounds = paired(ours, naives, self.options.rounds, self.options.share)
        bound = own_box_bound(inc, positions if case.queries else everything)
        baselines = {naive.name: summary(rounds, naive.name, ours.images) for naive in naives}
        for row in baselines.values():
            row["share_of_bound"] = row["ratio"] / bound
        return {
            **asdict(case), "size": size, "positions": ours.images, "timed": len(positions), "compile": compiled,
            "batch": case.batch(self.options.batch), "incremental": statistics.median(rounds.incremental),
            "seconds": rounds.incremental, "bound": bound, "baselines": baselines, "skipped": skipped,
            "error": rounds.errors["incremental"], "change": rounds.change,
            "counts": rounds.errors["incremental"] <= 1e-4 and rounds.change >= 1e-3,
            "others": busy.share, "steps": self._steps(ours), "memory": self._memory(case),
        }  # fmt: skip

    def close(self) -> None:
        """Remove the files of the baselines."""
        if "baselines" in self._kept:
            self._kept.pop("baselines")[1][0].close()

    def _keep(self, what: str, key: Any, make: Callable[[], Any]) -> Any:
        if what in self._kept and self._kept[what][0] == key:
            return self._kept[what][1]
        if what in ("network", "baselines"):
            self.close()
        self._kept.pop(what, None)  # first, so that not both are in memory
        self._kept[what] = (key, make())
        return self._kept[what][1]

    def _naives(self, model: nn.Module, size: int, case: Case) -> tuple[list[NaiveSide], dict[str, str]]:
        """The baselines that run here, and why the others don't."""
        batch = case.batch(self.options.batch)

        def make() -> tuple[Models, list[Naive], dict[str, str]]:
            models = Models(model, size, batch, case.threads)
            made, skipped = [], {}
            for name in self.options.baselines:
                if name != "captum":
                    try:
                        made.append(build(name, models))
                    except MissingError as error:
                        skipped[name] = str(error)
                        self.tell(f"{name} is skipped: {error}")
            return models, made, skipped

        key = (case.network, case.size, batch, case.threads)
        models, made, missing = self._keep("baselines", key, make)
        naives, skipped = list(made), dict(missing)
        if "captum" in self.options.baselines:
            try:
                naives.append(captum(models, case.stride))
            except MissingError as error:
                skipped["captum"] = str(error)
                self.tell(f"captum is skipped: {error}")
        return naives, skipped

    def _steps(self, ours: Incremental) -> dict[str, float] | None:
        if not self.options.steps:
            return None
        whole = ours.sample
        some = None if whole is None else sample_of(ours.inc, whole.everything, ours.case.sample or STEPS_SAMPLE)
        return steps.times(ours.inc, ours.image, some, ours.positions)

    def _memory(self, case: Case) -> dict[str, Any] | None:
        return memory.measure(case) if self.options.memory and not case.queries else None


def _compile(model: nn.Module, size: int, patch: int) -> tuple[kcompile.IncrementalModule, float]:
    start = time.perf_counter()
    inc = kcompile.incrementalize(model, (1, 3, size, size), patch)
    inc.executor()
    return inc, time.perf_counter() - start
