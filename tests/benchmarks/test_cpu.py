"""The parts of the CPU benchmark: naive sides, rounds, kinds of step, memory, the report."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import kcompile
from benchmarks import machine
from benchmarks.cpu import memory, naive, pairs, report, steps
from benchmarks.cpu.captum_side import Captum, captum
from benchmarks.cpu.cases import Case
from benchmarks.maps import IntArray, occluded, own_box_macs, positions_of, sample_of
from benchmarks.networks import network

CASE = Case("tiny", 1, patch=6, stride=2, queries=10)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return network("tiny")[0]


@pytest.fixture(scope="module")
def inc(model: nn.Module) -> kcompile.IncrementalModule:
    return kcompile.incrementalize(model, (1, 3, 32, 32), 6)


@pytest.mark.parametrize("name", ["eager", "onnxruntime", "openvino-f32"])
@pytest.mark.parametrize("count", [1, 4, 11])
def test_naive_sides_infer_patched_images(name: str, count: int, model: nn.Module, seed: int) -> None:
    models = naive.Models(model, 32, 4, 1)
    try:
        side = naive.build(name, models)
    except naive.MissingError as error:
        pytest.skip(str(error))
    finally:
        models.close()
    image, positions = torch.randn(3, 32, 32), np.random.default_rng(seed).integers(0, 26, (count, 2))
    seconds, outputs = side.time(image, positions, 6)
    with torch.no_grad():
        torch.testing.assert_close(outputs, model(occluded(image, positions, 6)), atol=1e-5, rtol=1e-4)
    assert seconds > 0


@pytest.mark.parametrize(
    ("name", "package"), [("onnxruntime", "onnxruntime"), ("openvino", "openvino"), ("onnxruntime", "onnxscript")]
)
def test_what_is_not_installed_is_named(
    name: str, package: str, model: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda module, *rest: None if module == package else find(module))
    models = naive.Models(model, 32, 4, 1)
    with pytest.raises(naive.MissingError, match=rf"{package} is not installed .*kcompile\[bench\]"):
        naive.build(name, models)
    models.close()


def test_compile_needs_a_compiler(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor import cpp_builder, exc

    def none() -> str:
        raise exc.InvalidCxxCompiler

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", none)
    with pytest.raises(naive.MissingError, match=r"needs a C\+\+ compiler"):
        naive.build("compile", naive.Models(model, 32, 4, 1))


def test_captum_stops_after_enough_windows(model: nn.Module, seed: int) -> None:
    seen: list[int] = []

    class Spy(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            seen.append(len(images))
            return model(images)

    side = captum(naive.Models(Spy().eval(), 32, 8, 1), 2)
    assert isinstance(side, Captum)
    seconds, outputs = side.time(torch.randn(3, 32, 32), positions_of(32, 6, 2)[:20], 6)
    assert seen == [1, 8, 8, 8]  # the base, then enough for 20 windows
    assert seconds > 0
    assert outputs is None


class Scripted:
    """A naive side that infers by the plain model, and is wrong by ``off``."""

    def __init__(self, name: str, model: nn.Module, off: float = 0.0) -> None:
        self.name, self.model, self.off = name, model, off
        self.calls: list[IntArray] = []

    def time(self, image: Tensor, positions: IntArray, patch: int) -> tuple[float, Tensor]:
        self.calls.append(positions)
        with torch.no_grad():
            return 3.0 * len(positions), self.model(occluded(image, positions, patch)) + self.off


def test_rounds(inc: kcompile.IncrementalModule, model: nn.Module, seed: int) -> None:
    everything = positions_of(32, 6, 1)
    sides = [Scripted("right", model), Scripted("wrong", model, 0.5)]
    ours = pairs.Incremental(inc, torch.randn(3, 32, 32), CASE, everything, sample_of(inc, everything, 0))
    rounds = pairs.paired(replace(ours, positions=ours.sample.positions), sides, 3, 20)  # type: ignore[union-attr]
    covered = np.concatenate(sides[0].calls)
    assert sorted(map(tuple, covered.tolist())) == sorted(map(tuple, everything.tolist()))
    assert [len(call) for call in sides[1].calls] == [20, 20, 20]
    assert rounds.naive == {"right": [3.0] * 3, "wrong": [3.0] * 3}
    assert rounds.errors["incremental"] <= 1e-5
    assert rounds.errors["wrong"] > 1e-2
    assert rounds.change > 1e-3
    assert rounds.ratios("right", 7) == [21.0 / seconds for seconds in rounds.incremental]


def test_a_wrong_incremental_side_is_seen(
    inc: kcompile.IncrementalModule, model: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    positions = pairs.stratified(inc, positions_of(32, 6, 2), 10)
    ours = pairs.Incremental(inc, torch.randn(3, 32, 32), CASE, positions, None)
    forward = inc.forward_patches
    monkeypatch.setattr(inc, "forward_patches", lambda *given: forward(*given).roll(1, 0))
    assert pairs.paired(ours, [Scripted("right", model)], 1, 20).errors["incremental"] > 1e-3


def test_stratified_positions(inc: kcompile.IncrementalModule) -> None:
    everything = positions_of(32, 6, 1)
    chosen = pairs.stratified(inc, everything, 64)
    assert len({tuple(position) for position in chosen.tolist()}) == 64
    assert own_box_macs(inc, chosen).mean() == pytest.approx(own_box_macs(inc, everything).mean(), rel=0.02)


@pytest.mark.parametrize(
    ("op", "kind", "in_tail"),
    [
        ("mkldnn::_convolution_pointwise", "conv", "tail conv"),
        ("kcompile::gather_winograd", "conv", "tail conv"),
        ("kcompile::gather_superimpose", "gather", "head"),
        ("aten::max_pool2d", "pool", "head"),
        ("aten::linear", "head", "head"),
        ("aten::cat", "join", "head"),
        ("aten::gelu", "other ops", "head"),
    ],
)
def test_kinds_of_step(op: str, kind: str, in_tail: str) -> None:
    assert (steps.kind_of(op, tail=False), steps.kind_of(op, tail=True)) == (kind, in_tail)


def test_time_by_kind_of_step(inc: kcompile.IncrementalModule) -> None:
    everything = positions_of(32, 6, 2)
    image, tail = torch.randn(3, 32, 32), inc.executor().tail
    for sample in (sample_of(inc, everything, 0), None):
        found = steps.times(inc, image, sample, everything[:9])
        assert sum(found.values()) == pytest.approx(1)
        assert all(found[kind] > 0 for kind in ("gather", "conv", "pool", "head", "geometry"))
        assert (found["materialise"] > 0) == (sample is not None)
    assert inc.executor().tail is tail


@pytest.mark.skipif(not memory.RESET.exists(), reason="needs Linux's /proc")
def test_peak_memory_is_what_the_work_took() -> None:
    size = 96 << 20
    kept: list[Any] = []

    def work(keep: bool) -> None:
        block = torch.ones(size, dtype=torch.uint8)
        kept.extend([block] * keep)

    passing, keeping = (memory.peak(lambda keep=keep: work(keep)) for keep in (False, True))  # type: ignore[misc]
    for found in (passing, keeping, memory.peak(lambda: None)):
        if found["above"] is None:
            pytest.skip("the high-water mark can't be reset here")
        assert found["above"] < 1.3 * size
    assert passing["above"] >= 0.95 * size  # the system counts pages in lots
    assert keeping["above"] >= 0.95 * size
    assert memory.peak(lambda: None)["above"] < size / 2  # type: ignore[operator]
    assert len(kept) == 1


def test_a_crashing_child_is_an_error() -> None:
    with pytest.raises(RuntimeError, match=r"(?s)memory no_such_network incremental.*no_such_network"):
        memory.measure(Case("no_such_network", 1))


def test_what_is_not_exact_does_not_count() -> None:
    against = {"ms": 2.0, "ratio": 3.0, "lowest": 2.5, "highest": 3.5, "error": None, "share_of_bound": 0.6}
    row: dict[str, Any] = {
        "network": "tiny", "size": 32, "patch": 6, "stride": 2, "threads": 1, "queries": 0, "positions": 10,
        "timed": 10, "compile": 1.0, "incremental": 0.01, "bound": 5.0, "baselines": {"eager": against},
        "skipped": {"openvino": "openvino is not installed"}, "error": 1e-6, "change": 0.1, "counts": True,
        "others": None, "steps": None, "memory": None,
    }  # fmt: skip
    whole = {
        "machine": machine.describe(),
        "batch": 16,
        "rounds": 1,
        "command": "x",
        "baselines": ["eager", "openvino"],
    }
    text = report.page({**whole, "rows": [row]})
    assert "**3.00x** (2.50–3.50), 2.0 | – |" in text
    assert "| 5.00 | – | 60% | 1.0e-06 | 1.0e-01 | – |" in text
    assert "openvino was skipped: openvino is not installed" in text
    text = report.page({**whole, "rows": [{**row, "error": 1e-3, "counts": False}]})
    assert "**3.00x**" not in text
    assert "1.0e-03 (**does not count**)" in text


def test_the_machine_is_described_without_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.node", lambda: "a-name")
    made = machine.as_text(machine.describe())
    assert torch.__version__.split("+")[0] in made
    assert "a-name" not in made


def test_other_load_is_a_share() -> None:
    with machine.others() as busy:
        sum(range(200_000))
    assert busy.share is None or 0 <= busy.share <= 1
