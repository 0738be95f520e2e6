"""Exports to ONNX, checked and opened in ONNX Runtime, and how they are compared with the torch runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

import kcompile
from kcompile.core.interval import IntArray
from kcompile.core.onnx_files import HEATMAP, INCREMENTAL, MATERIALIZE

CPU = ["CPUExecutionProvider"]


def exported(inc: kcompile.IncrementalModule, folder: Path, **options: Any) -> kcompile.OnnxModule:
    """Export, check every model in full, open."""
    kcompile.export_onnx(inc, folder, **options)
    for name in (MATERIALIZE, INCREMENTAL, HEATMAP):
        if (folder / name).exists():
            onnx.checker.check_model(str(folder / name), full_check=True)
    model = kcompile.load_onnx(folder, CPU, threads=1)
    model.policy = "incremental"  # small maps would be run in full, and tests of incremental inference test nothing
    return model


def assert_alike(got: Any, want: Any, before: Any = None, share: float = 1e-5) -> None:
    """Hold arrays against tensors, leaf by leaf: within ``share`` of the scale.

    Where ``before``, the base's output, is given, some number must differ from its by 1e-3 of the scale, else the
    comparison is void.
    """
    mine, theirs = pytree.tree_leaves(got), pytree.tree_leaves(want)
    assert len(mine) == len(theirs)
    bases = pytree.tree_leaves(before) if before is not None else [None] * len(mine)
    for one, other, base in zip(mine, theirs, bases, strict=True):
        if not isinstance(other, Tensor):
            assert one == other
            continue
        assert one.shape == tuple(other.shape)
        assert str(one.dtype) == str(other.dtype).removeprefix("torch.")
        values, wanted = one.astype(np.float64), other.double().numpy()
        assert (np.isnan(values) == np.isnan(wanted)).all()
        scale = max(float(np.nanmax(np.abs(wanted), initial=0)), 1e-30)
        assert np.nanmax(np.abs(values - wanted), initial=0) <= share * scale
        if base is not None and len(wanted):
            assert np.nanmax(np.abs(wanted - base.double().numpy())) >= 1e-3 * scale, "void: nothing reacts"


def anywhere(shape: tuple[int, ...], patch: tuple[int, ...], count: int) -> IntArray:
    """Random positions [count, axes] from one pixel on the image to the other end; corners first."""
    low, high = 1 - np.array(patch), np.array(shape[1:]) - 1
    places = np.random.default_rng(int(torch.randint(2**31, (1,)))).integers(low, high + 1, (count, len(patch)))
    places[: min(count, 2)] = np.stack([low, high])[: min(count, 2)]
    return places
