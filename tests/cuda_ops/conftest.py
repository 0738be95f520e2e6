"""The CUDA kernels' source on CPU tensors."""

from __future__ import annotations

from pathlib import Path

import pytest

from kcompile.cuda_ops import cuda
from tests.support.cuda_on_cpu import CpuLauncher


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> CpuLauncher:
    """One launcher for all tests: each kernel is compiled once."""
    folder: Path = tmp_path_factory.mktemp("kernels")
    return CpuLauncher(folder)


@pytest.fixture
def on_cpu(built: CpuLauncher, monkeypatch: pytest.MonkeyPatch) -> CpuLauncher:
    """Inside the test, `cuda` runs its kernels on CPU tensors."""
    built.launched.clear()
    monkeypatch.setattr(cuda, "launcher", lambda _: built)
    return built
