"""Fixtures of the command-line tests: a small picture and a runner."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result
from PIL import Image
from typer.testing import CliRunner

from examples.lesions.network import CHECKPOINT
from kcompile.cli import app

Run = Callable[..., Result]
LESIONS = "examples.lesions.network:load_pretrained"


@pytest.fixture
def picture(tmp_path: Path, seed: int) -> Path:
    """A colour PNG, 80 x 64 pixels: the shipped scan's lesion in a random tint, so that the network reacts."""
    with Image.open(CHECKPOINT.with_name("fluid.png")) as scan:
        grey = np.asarray(scan)[106:170, 82:162, None]
    pixels = (grey * np.random.default_rng(seed).uniform(0.85, 1, 3)).astype(np.uint8)
    path = tmp_path / "picture.png"
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Call the command in this process; `explain` writes into the test's own folder."""

    def call(*arguments: object) -> Result:
        words = [str(word) for word in arguments]
        if words[0] == "explain" and "--out" not in words:
            words += ["--out", str(tmp_path / "heat.png"), "--npz", str(tmp_path / "heat.npz")]
        return CliRunner().invoke(app, words)

    return call
