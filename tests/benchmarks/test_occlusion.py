"""The CPU benchmark from its command line, on a tiny network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import occlusion
from benchmarks.cpu import cases
from benchmarks.cpu.report import interactive
from benchmarks.cpu.steps import KINDS

SMALL = ["tiny", "--patch", "6", "--stride", "2", "--rounds", "2", "--threads", str(torch.get_num_threads())]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs the command and gives its report; what it printed and wrote must agree."""
    monkeypatch.setattr(occlusion, "RESULTS", tmp_path)

    def report(*words: str) -> Any:
        occlusion.main([*SMALL, *words, "--write", "out"])
        assert (tmp_path / "out.md").read_text() in capsys.readouterr().out
        return json.loads((tmp_path / "out.json").read_text())

    return report


def check(row: dict[str, Any], names: set[str]) -> None:
    assert row["counts"]
    assert row["error"] <= 1e-5
    assert row["change"] >= 1e-3
    assert set(row["baselines"]) | set(row["skipped"]) == names
    assert set(row["baselines"]) >= {"eager"}
    for name, found in row["baselines"].items():
        assert found["lowest"] <= found["ratio"] <= found["highest"]
        assert found["share_of_bound"] == pytest.approx(found["ratio"] / row["bound"])
        if name not in ("eager", "captum"):
            assert found["error"] <= (0.1 if name == "openvino" else 1e-5)


def test_maps(run: Any) -> None:
    names = {"eager", "onnxruntime", "openvino-f32", "openvino", "captum"}
    report = run("--baselines", *sorted(names - {"eager"}))
    (row,) = report["rows"]
    check(row, names)
    assert row["positions"] == row["timed"] == 196
    assert set(row["steps"]) == set(KINDS)
    assert sum(row["steps"].values()) == pytest.approx(1)
    assert min(row["steps"].values()) >= 0
    if row["memory"] is not None:
        assert row["memory"]["incremental"] > 0
        assert row["memory"]["ratio"] == row["memory"]["incremental"] / row["memory"]["full"]
    assert report["machine"]["packages"]["torch"] == torch.__version__.split("+")[0]


def test_interactive(run: Any) -> None:
    rows = run(
        "--suite", "interactive", "--queries", "0", "1", "20", "--sample", "0", "--baselines", "eager", "--no-memory"
    )["rows"]
    assert [(row["queries"], row["positions"], row["batch"]) for row in rows] == [(1, 1, 1), (0, 196, 16), (20, 20, 16)]
    for row in rows:
        check(row, {"eager"})
    assert "% |" in interactive(rows).splitlines()[-1]
    assert interactive([rows[0], rows[2]]) == ""
    for row in (rows[0], rows[2]):
        assert row["memory"] is None
        assert row["steps"]["materialise"] == 0


def test_samples(run: Any) -> None:
    words = ["--suite", "samples", "--sample", "50", "--baselines", "eager", "--no-steps", "--no-memory"]
    rows = run(*words, "--patch", "5", "6", "--stride", "1")["rows"]
    threads = torch.get_num_threads()
    assert {(row["patch"], row["threads"]) for row in rows} == {(5, threads), (6, threads), (5, 1), (6, 1)}
    for row in rows:
        check(row, {"eager"})
        assert row["steps"] is row["memory"] is None
        assert row["timed"] < row["positions"] == (33 - row["patch"]) ** 2


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # torch.compile's own
def test_compiled(run: Any) -> None:
    (row,) = run("--baselines", "compile", "--no-steps", "--no-memory")["rows"]
    check(row, {"eager", "compile"})


def test_the_suites_cover_what_they_should() -> None:
    whole = cases.maps([], 2)
    assert [case.network for case in whole] == ["vgg16", "resnet18", "inception_v3", "resnet50"]
    assert all((case.patch, case.stride, case.sample, case.queries) == (16, 4, 0, 0) for case in whole)
    some = cases.samples([], 2)
    assert {case.network for case in some} == {*cases.MAIN, *cases.OTHERS}
    assert all(0 < case.sample <= 64 for case in some)
    vgg = {(case.patch, case.stride, case.threads) for case in some if case.network == "vgg16"}
    assert vgg == {(8, 4, 2), (32, 4, 2), (16, 8, 2), (16, 4, 1)}
    assert {case.queries for case in cases.interactive([], 2)} == {0, 1, 16, 64, 256}


def test_the_command_line_changes_a_suite() -> None:
    words = [
        "vgg16",
        "resnet18",
        "--suite",
        "interactive",
        "--queries",
        "0",
        "16",
        "1",
        "--patch",
        "8",
        "--threads",
        "2",
    ]
    listed = occlusion.cases(occlusion._arguments(words))
    want = [(1, 0), (0, 64), (16, 0)]  # those of one batch together
    assert [(case.queries, case.sample) for case in listed] == want + want
    assert [case.network for case in listed] == ["vgg16"] * 3 + ["resnet18"] * 3
    assert {case.patch for case in listed} == {8}


@pytest.mark.parametrize("words", [["--suite", "all"], ["--baselines", "tensorflow"]])
def test_what_does_not_exist_is_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        occlusion.main(words)
    assert f"invalid choice: '{words[1]}'" in capsys.readouterr().err
