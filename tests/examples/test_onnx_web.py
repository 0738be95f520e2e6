"""The example in JavaScript: heatmap.onnx in onnxruntime-web under Node, against the torch runtime."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

import kcompile
from tests.support.equivalence import SHAPE, compiled, noise

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "onnx_web" / "heatmap.mjs"
PACKAGE = "onnxruntime-web"


def _node() -> str:
    node = shutil.which("node")
    if node is None:
        pytest.skip("Node is not installed")
    found = subprocess.run([node, "-e", f"import({PACKAGE!r})"], cwd=SCRIPT.parent, capture_output=True)
    if found.returncode:
        pytest.skip(f"{PACKAGE} is not there: npm install --no-save {PACKAGE} in examples/onnx_web")
    return node


def test_scores_in_javascript(tmp_path: Path, seed: int) -> None:
    node, inc, image = _node(), compiled(), noise(SHAPE)
    inc.policy = "incremental"
    kcompile.export_onnx(inc, tmp_path / "exported", embed=True)
    image.numpy().tofile(tmp_path / "pixels.bin")
    command = [node, str(SCRIPT), str(tmp_path / "exported"), "4", str(tmp_path / "pixels.bin")]
    told = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert told.returncode == 0, told.stderr
    first, *lines = told.stdout.strip().splitlines()
    got = np.array([[float(score) for score in line.split()] for line in lines])
    want = kcompile.occlusion(inc, image, stride=4)
    target, base = re.findall(r"[\d.]+", first)[:2]
    assert int(target) == want.target
    assert abs(float(base) - want.base_score) <= 1e-5
    assert np.abs(got - want.scores).max() <= 1e-5
    assert np.abs(got - want.base_score).max() >= 1e-3, "void: nothing reacts"
