"""Canonicalise: the passes that leave few kinds of ops for the rules to see, in order."""

from __future__ import annotations

from kcompile.passes.average_pool import SplitAveragePool
from kcompile.passes.batch_norm import FoldBatchNorm
from kcompile.passes.cells import SelectScatterToSlices, SelectToSqueeze, StackToCat
from kcompile.passes.constants import FoldConstants
from kcompile.passes.grouping import ExpandWithoutSizes, GroupReshapes
from kcompile.passes.infra import GraphPass
from kcompile.passes.no_ops import DropNoOps
from kcompile.passes.pieces import SplitToSlices
from kcompile.passes.shapes import ContiguousForMemoryOps, SelectToSlice, SqueezeToDims, ViewToReshape

__all__ = [
    "PASSES",
    "ContiguousForMemoryOps",
    "DropNoOps",
    "ExpandWithoutSizes",
    "FoldBatchNorm",
    "FoldConstants",
    "GroupReshapes",
    "SelectScatterToSlices",
    "SelectToSlice",
    "SelectToSqueeze",
    "SplitAveragePool",
    "SplitToSlices",
    "SqueezeToDims",
    "StackToCat",
    "ViewToReshape",
]

PASSES: list[GraphPass] = [
    DropNoOps(),
    FoldConstants(),
    ViewToReshape(),
    GroupReshapes(),
    ExpandWithoutSizes(),
    SqueezeToDims(),
    SplitToSlices(),
    SelectToSlice(),
    SelectToSqueeze(),
    SelectScatterToSlices(),
    StackToCat(),
    FoldBatchNorm(),
    SplitAveragePool(),
    FoldConstants(),
    ContiguousForMemoryOps(),
]
