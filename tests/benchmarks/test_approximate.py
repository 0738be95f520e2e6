"""The benchmark of approximate maps, on the digits: small and quick."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kcompile
from benchmarks.approximate import figures, quality, report, study, timing
from benchmarks.approximate.cases import CASES, OTHER, TEST, TUNE, Compiled, lesion
from benchmarks.approximate.curve import Curve
from benchmarks.approximate.quality import TUNED, Store, measure
from kcompile import Approximation, Tuning
from kcompile.search import Maps
from kcompile.tuning import Kind

DIGITS = CASES["digits"]


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Any]:
    folder = tmp_path_factory.mktemp("results")
    kind = Kind("logit", (8, 8), (2, 2), (0, 0, 24, 24), "", "predicted", "None", "")
    setting = Approximation(share=0.3, coarse=4)
    Tuning(setting, 0.9, 0.9, 0.9, 25, 25, 0.91, 0.95, 2.0, kind).save(folder / "tuning-digits.json")
    store, net = Store(folder / "digits.json"), Compiled.of(DIGITS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quality, "KEPT", folder / "maps")
        assert not measure(net, store, TEST, 3, time.monotonic() - 1)  # no time: nothing
        assert measure(net, store, TEST, 3, time.monotonic() + 600)
        assert measure(net, store, TEST, 2, time.monotonic() + 600, net.methods())
        assert measure(net, store, OTHER, 2, time.monotonic() + 600)
    return store, net


def test_every_method_has_a_similarity_per_image_or_says_why_not(measured: tuple[Store, Any]) -> None:
    part = Store(measured[0].path).facts["sets"]["test"]  # as it was written
    assert sorted(part) == ["0", "1", "2"]
    for one in part.values():
        assert one[TUNED]["ssim"] <= 1
        assert one["exact"]["range"] > 0.1
        assert all("error" in found or -1 <= found["ssim"] <= 1 for name, found in one.items() if name != "exact")
    assert part["1"]["drill-down, r 0.25, stride x4"]["ssim"] > 0.3
    assert "drill-down, r 0.25, stride x4" not in part["2"]


def test_what_is_there_is_not_measured_again(measured: tuple[Store, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kcompile, "occlusion", lambda *_, **__: pytest.fail("a map was made"))
    assert measure(measured[1], measured[0], TEST, 3, time.monotonic() + 600)


def test_the_sets_share_no_image() -> None:
    pictures = [DIGITS.image(which, index) for which in (TUNE, TEST) for index in range(5)]
    assert not any(np.allclose(a, b) for i, a in enumerate(pictures) for b in pictures[:i])
    assert not np.allclose(lesion(TUNE, 1), lesion(TEST, 1), atol=0.1)
    assert not np.allclose(lesion(OTHER, 1), lesion(TEST, 1), atol=0.1)


def test_times_are_paired_and_reported(measured: tuple[Store, Any], tmp_path: Path) -> None:
    store, net = measured
    settings = {TUNED: Approximation(share=0.3, coarse=4)}
    found = timing.compare(DIGITS.load(), net.inc, DIGITS.image(TEST, 0), 2, settings, rounds=2)
    assert found["positions"] == 169
    assert all(len(found[way]["cpu"]) == 2 and min(found[way]["seconds"]) > 0 for way in ("eager", "exact", TUNED))
    median, low, high = timing.ratios(found, TUNED, "eager")
    assert low <= median <= high
    text = report.whole(
        {"digits": store.facts}, {"networks": {"digits": found}, "machine": {"summary": "here"}}, store.path.parent
    )
    assert "| digits | 30% of the positions after every 4 px |" in text
    assert "without a promise" in text
    written = figures.draw_all({"digits": store.facts}, None, tmp_path)
    assert [path.exists() for path in written] == [True, True]


def test_a_ratio_is_that_of_the_other_way_over_it() -> None:
    found = {"eager": {"cpu": [10.0, 30.0, 20.0]}, "tuned": {"cpu": [1.0, 2.0, 4.0]}}
    assert timing.ratios(found, "tuned", "eager", "cpu") == (10.0, 5.0, 15.0)


def test_settings_by_a_layers_name_do_not_carry_over() -> None:
    assert timing.like(Approximation(cut=0.25)) == Approximation(cut=0.25)
    with pytest.raises(kcompile.InputError, match="layer of one network"):
        timing.like(Approximation(cut="features.3"))
    with pytest.raises(kcompile.InputError, match="layers of one network"):
        timing.like(Approximation(extents={"conv2d": (3, 3)}))


def test_the_curve_goes_through_means_and_picks_the_smallest_threshold() -> None:
    taus = np.array([1.0, 0.8, 0.6, 0.4])
    means = 1 - (1 - taus) ** 2
    scatter = np.array([[0.05], [-0.05]])
    curve = Curve.fit(taus, means + scatter)
    assert curve.at(taus) == pytest.approx(means)
    assert curve.pick(0.9, np.arange(0.4, 1.0, 0.01)) == pytest.approx(0.69)
    assert curve.pick(1.5, taus) == 1.0


def test_a_stopped_search_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quality, "KEPT", tmp_path / "maps")
    monkeypatch.setattr(quality, "COVERAGE", 0.5)
    monkeypatch.setattr(quality, "CONFIDENCE", 0.7)  # two images certify it
    monkeypatch.setattr("kcompile.search.candidates_for", lambda *_: [Approximation(share=0.3, coarse=4)])
    store, net = Store(tmp_path / "digits.json"), Compiled.of(DIGITS)
    made: list[int] = []
    make = Maps.make

    def slow(self: Maps, *arguments: Any) -> Any:
        made.append(1)
        monkeypatch.setattr(time, "monotonic", lambda: 0.0 if len(made) % 2 else 100.0)  # each run: two maps
        return make(self, *arguments)

    monkeypatch.setattr(Maps, "make", slow)
    runs = 0
    while not (tmp_path / "tuning-digits.json").exists():
        monkeypatch.setattr(time, "monotonic", lambda: 0.0)
        with contextlib.suppress(quality.OutOfTimeError):
            quality.tune(net, store, 4, until=10.0)
        runs += 1
    assert runs >= 2
    assert len(made) in (4, 8)  # no map twice; none of the second half for a candidate that is not tested
    assert Tuning.load(tmp_path / "tuning-digits.json").images == 2


def test_a_study_compares_settings_on_few_images(measured: tuple[Store, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    net = measured[1]
    names = ["threshold 0.5", "extents that hold 0.98", "the same, 49 exact"]
    chosen = {name: setting for name, setting in study.settings(net).items() if name in names}
    monkeypatch.setattr(study, "settings", lambda _: chosen)
    found = study.compare(net, 2)
    assert set(found) == set(names)
    assert all(len(one["ssim"]) == 2 and 0 < one["work"] < 2 for one in found.values())
    times = {"network": "x", "cut": "y", "targets": {"4": {"gradients": 0.5, "position": 0.002}}}
    text = report.studied({"networks": {"digits": found}, "gradients": times})
    assert f"| threshold 0.5 | {np.mean(found['threshold 0.5']['ssim']):.3f} |" in text
    assert "| 4 | 0.50 | 2.00 |" in text
