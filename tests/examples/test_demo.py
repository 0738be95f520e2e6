"""The demo end to end, and the README's example."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import models

from kcompile import Heatmap

ROOT = Path(__file__).resolve().parents[2]


def demo(*options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "examples.demo", *map(str, options)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def value(report: str, name: str) -> float:
    """The number on a line of the report."""
    match = re.search(rf"^{name}\s+([-+.e\d]+)", report, re.MULTILINE)
    assert match, report
    return float(match[1])


def test_the_demo_finds_the_lesion_exactly_and_faster(tmp_path: Path) -> None:
    result = demo("--stride", 16, "--out", tmp_path / "new")
    assert result.returncode == 0, result.stderr
    report = result.stdout
    assert "fluid (2), probability 0.9" in report
    assert "16 x 16 patch at 196 positions" in report
    assert value(report, "difference") <= 1e-5
    assert " equal: of any probability" in report
    assert value(report, "ratio") == pytest.approx(value(report, "full") / value(report, "incremental"), rel=0.05)
    assert value(report, "lesion") >= 50  # per cent of the attribution, on some 6 % of the picture
    heat = Heatmap.load(tmp_path / "new/scores.npz")
    assert heat.complete
    assert heat.scores.shape == (14, 14)
    assert np.abs(heat.scores - heat.base_score).max() > 0.05  # the network reacts: the comparison above is not void
    with Image.open(tmp_path / "new/heat.png") as overlay:
        assert overlay.size == (1164, 564)


def test_the_demo_with_another_network_and_picture(tmp_path: Path) -> None:
    torch.save(models.squeezenet1_1(num_classes=5).state_dict(), tmp_path / "five.pt")
    Image.effect_noise((90, 70), 80).save(tmp_path / "noise.png")
    result = demo(
        "--model", "squeezenet1_1", "--weights", tmp_path / "five.pt", "--image", tmp_path / "noise.png",
        "--size", 64, "--stride", 24, "--patch", 8, "--out", tmp_path, "--threads", 1,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "8 x 8 patch at 9 positions; 1 thread\n" in result.stdout
    assert "lesion" not in result.stdout
    assert (tmp_path / "heat.png").exists()


def test_the_demo_reports_errors_in_a_line(tmp_path: Path) -> None:
    result = demo("--image", tmp_path / "none.png")
    assert result.returncode == 1
    assert result.stderr == f"error: there is no picture {tmp_path / 'none.png'}\n"


def test_the_examples_of_the_readme_run(tmp_path: Path) -> None:
    readme = (ROOT / "README.md").read_text()
    code = "\n".join(re.findall(r"```python\n(.*?)```", readme, re.DOTALL))  # each goes on from those before it
    found = "(normal.target, heat.target, fluid.target, none.target, len(heats))"
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{code}\nassert {found} == (0, 2, 2, 0, 2)"
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("2 0.9")
    assert "\nok: 32 positions" in result.stdout
    assert (tmp_path / "heat.png").exists()


def test_files_that_the_readme_links_to_exist() -> None:
    for link in re.findall(r"\]\(([^)#:]+)\)", (ROOT / "README.md").read_text()):
        assert (ROOT / link).exists(), link
