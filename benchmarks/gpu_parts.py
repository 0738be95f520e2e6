"""The parts of the GPU check, each of which can run in a process of its own, and what each of them reports."""

from __future__ import annotations

import argparse
import time
import traceback
import warnings
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch

import kcompile
from benchmarks.gpu_equivalence import Verdict, check_network, check_ops
from benchmarks.gpu_kernels import LOST, bandwidths, build, run_tests
from benchmarks.gpu_timing import VARIANTS, Settings, time_network
from benchmarks.networks import network
from kcompile.cuda_ops import triton_conv
from kcompile.runtime import lowering_convs

QUICK_SIZES = {"inception_v3": 107}  # the least that its pools allow is 75
TESTS_LIMIT = 120.0  # seconds

Report = dict[str, Any]
Save = Callable[[Report], None]


def parts(networks: list[str]) -> list[str]:
    """The names of all parts, in the order in which they run; networks come last."""
    return ["kernels", "tests", "ops", "bandwidths", *networks]


def run_part(name: str, args: argparse.Namespace, limit: float, save: Save) -> None:
    """Run one part.

    Args:
        name: One of `parts`.
        args: The command line.
        limit: Seconds that it should take at most.
        save: Takes what the part found; called whenever there is more.
    """
    device = torch.device(args.device)
    warnings.filterwarnings("error", message=LOST)  # the reference would be compared with itself
    set_precision(tf32=False)
    if name == "kernels":
        save({"kernels": build(device)})
    elif name == "tests":
        on_gpu = device.type == "cuda"
        save({"tests": run_tests(min(limit, TESTS_LIMIT)) if on_gpu else {"status": "not run: they need a GPU"}})
    elif name == "ops":
        save({"ops": check_ops(device, rounds=3 if args.quick else 20, seed=0)})
    elif name == "bandwidths":
        save({"bandwidths": bandwidths(device, args.quick)})
    else:
        Networks(name, device, args, time.perf_counter() + limit, save).run()


class Networks:
    """One network: equivalence in float32, then timings in each precision."""

    def __init__(self, name: str, device: torch.device, args: argparse.Namespace, deadline: float, save: Save) -> None:
        self.device, self.args, self.deadline, self.save = device, args, deadline, save
        self.row: Report = {"network": name, "status": "crashed"}
        self.timings: list[Report] = []

    def run(self) -> None:
        """Run all; what is done is saved even if the rest fails."""
        failed: Exception | None = None
        self._save()
        model, inc = self._compiled(torch.float32)
        verdict = check_network(inc, model, self.device, queries=8 if self.args.quick else 40, seed=0)
        self.row.update(status=verdict.status, error=verdict.error, change=verdict.change)
        print(f"{self.row['network']}: error {verdict.error:.1e}, change {verdict.change:.1e} of scale", flush=True)
        self._save()
        if self.device.type == "cpu" or triton_conv.reason_against(self.device) is None:
            direct = self._direct(inc, model)
            self.row.update(direct=direct.error, status=self.row["status"] if direct.status == "ok" else direct.status)
            self._save()
        for left, precision in zip(range(len(self.args.precisions), 0, -1), self.args.precisions, strict=True):
            limit = min((self.deadline - time.perf_counter()) / left, self.args.limit)
            if limit <= 0:
                continue
            try:
                self._time(precision, model, inc, limit)
            except Exception as error:  # the other precision may still run
                traceback.print_exc()
                failed = failed or error
        if failed is not None:
            raise failed

    def _direct(self, inc: kcompile.IncrementalModule, model: torch.nn.Module) -> Verdict:
        """The same check with every convolution that can be without its window; on a CPU nothing is lowered so."""
        inc.runners.executors = {}
        with mock.patch.object(lowering_convs, "measured", return_value=lambda _: 0):
            verdict = check_network(inc, model, self.device, queries=8 if self.args.quick else 40, seed=1)
        inc.runners.executors = {}
        return verdict

    def _time(self, precision: str, model: torch.nn.Module, inc: kcompile.IncrementalModule, limit: float) -> None:
        found: Report = {"network": self.row["network"], "precision": precision}
        self.timings.append(found)
        try:
            if precision == "bfloat16":
                model, inc = self._compiled(torch.bfloat16)
            set_precision(tf32=precision == "tf32")
            time_network(inc, model, self.device, settings(self.args, limit), found, self._save)
        except Exception as error:
            found["crash"] = f"{type(error).__name__}: {error}"
            raise
        finally:
            set_precision(tf32=False)
            self._save()

    def _save(self) -> None:
        self.save({"networks": [self.row], "timings": self.timings})

    def _compiled(self, dtype: torch.dtype) -> tuple[torch.nn.Module, kcompile.IncrementalModule]:
        name = self.row["network"]
        model, self.row["size"] = network(name, QUICK_SIZES.get(name, 64) if self.args.quick else 0)
        start = time.perf_counter()
        size = self.row["size"]
        inc = kcompile.incrementalize(model.to(dtype), (1, 3, size, size), self.args.patch)
        inc.policy = "incremental"  # what is checked and timed here is never full inference
        self.row["compile"] = time.perf_counter() - start
        return model.to(self.device), inc.to(self.device)


def set_precision(*, tf32: bool) -> None:
    """Let float32 products and convolutions use TF32, or not.

    By the older switches: torch.export (2.15) asks for them, and fails where the newer ones differ by operator.
    """
    torch.backends.cuda.matmul.allow_tf32 = tf32
    torch.backends.cudnn.allow_tf32 = tf32


def settings(args: argparse.Namespace, limit: float) -> Settings:
    """What to time, in so many seconds."""
    if args.quick:
        return Settings(args.patch, 4 * args.stride, 2, min(limit, 5), (4, 8), VARIANTS[:2])
    return Settings(args.patch, args.stride, args.rounds, limit, (64, 128, 256, 512))
