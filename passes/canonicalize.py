"""Canonicalise: the passes that leave few kinds of ops for the rules to see, in order."""

from __future__ import annotations

from kcompile.passes.average_pool import SplitAveragePool
from kcompile.passes.batch_norm import FoldBatchNorm
from kcompile.passes.constants import FoldConstants
from kcompile.passes.infra import GraphPass
from kcompile.passes.no_ops import DropNoOps
from kcompile.passes.shapes import SelectToSlice, ViewToReshape

__all__ = [
    "PASSES",
    "DropNoOps",
    "FoldBatchNorm",
    "FoldConstants",
    "SelectToSlice",
    "SplitAveragePool",
    "ViewToReshape",
]

PASSES: list[GraphPass] = [
    DropNoOps(),
    FoldConstants(),
    ViewToReshape(),
    SelectToSlice(),
    FoldBatchNorm(),
    SplitAveragePool(),
    FoldConstants(),
]
