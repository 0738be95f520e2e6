"""Analyse a model: how much of an inference a patch leaves unchanged, layer by layer (Krypton section 3.1)."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from torch import fx, nn

from kcompile.accepted import as_module
from kcompile.api import image_shape, patch_size
from kcompile.core.errors import InputError
from kcompile.core.plan import Placement
from kcompile.core.region import Region
from kcompile.example_call import example_batch
from kcompile.extents import krypton_extents, own_boxes
from kcompile.grid import grid
from kcompile.passes.canonicalize import PASSES
from kcompile.passes.capture import capture
from kcompile.passes.infra import run_passes
from kcompile.passes.place import Placed, place
from kcompile.passes.propagate import NodeInfo, propagate
from kcompile.runtime.module import IncrementalModule
from kcompile.savings import Analysis, LayerAnalysis, Work

__all__ = ["Analysis", "LayerAnalysis", "Work", "analyze", "measure", "trace"]


def analyze(
    model: nn.Module,
    input_shape: Sequence[int] | None = None,
    patch_shape: int | Sequence[int] | None = None,
    *,
    stride: int = 4,
) -> Analysis:
    """How much of an inference a patch leaves unchanged, per layer and in total (eq. 10-14).

    Two forms stand side by side. *Krypton*: one worst-case box for all positions, for a patch in the middle
    (`extents.krypton_extents`). *Own boxes*: each position's exact box, averaged over a whole map. Layers count by
    their regions, also where the compiler chose to run them dense because the region covers nearly everything.
    Weights are not looked at, only shapes: a model on the "meta" device will do.

    Args:
        model: In eval mode, or what `incrementalize` returned.
        input_shape: (B, C, *S) or (C, *S) of the images; default: that of the compiled module.
        patch_shape: Patch size in pixels, one number for a square; default: that of the compiled module, else 16.
        stride: Distance of the map's positions, in pixels.

    Raises:
        InputError: Bad or missing shapes or stride.
        ModelModeError: The model is in training mode.
        CaptureError: The model can't be traced.
    """
    if isinstance(model, IncrementalModule):
        image, patch = model.plan.input_shape, model.plan.patch_shape
    elif input_shape is None:
        raise InputError("input_shape is missing; give (B, C, H, W) or (C, H, W) for a model that is not compiled yet")
    else:
        image, patch = image_shape(input_shape), (16,) * (len(image_shape(input_shape)) - 1)
    image = image if input_shape is None else image_shape(input_shape)
    patch = patch_size(patch if patch_shape is None else patch_shape, image)
    return measure(_graph(model, image), image, patch, stride)


def trace(model: nn.Module, image: tuple[int, ...]) -> fx.GraphModule:
    """The canonical graph of a model for images (C, *S); it serves `measure` for any patch size."""
    model = as_module(model)
    return run_passes(capture(model, example_batch(model, image)).module, PASSES).module


def _graph(model: nn.Module, image: tuple[int, ...]) -> fx.GraphModule:
    """The canonical graph: a compiled module's own if it is for this image size and still has its annotations."""
    if not isinstance(model, IncrementalModule):
        return trace(model, image)
    held = model.materializer
    annotated = "val" in next(iter(held.graph.nodes)).meta
    return held if annotated and model.plan.input_shape == image else trace(model.model, image)


def measure(graph: fx.GraphModule, image: tuple[int, ...], patch: tuple[int, ...], stride: int = 4) -> Analysis:
    """Analyse a canonical graph; see `analyze`."""
    found = propagate(graph, image, patch)
    placed, worst = place(found), krypton_extents(found, patch)
    positions = grid(image[1:], patch, stride).reshape(-1, len(patch))
    own = own_boxes(found, patch, positions)
    layers = tuple(
        _layer(info, placed[node], worst.get(node), None if info.region is None else own[info.region])
        for node, info in found.nodes.items()
        if info.record.out is not None
    )
    return Analysis(image, patch, stride, len(positions), layers)


def _layer(info: NodeInfo, placed: Placed, worst: tuple[int, ...] | None, own: Region | None) -> LayerAnalysis:
    assert info.record.out is not None
    sizes = info.record.out.sizes or info.record.out.shape[1:]
    if placed.placement is Placement.REUSE:
        worst, mean, share, worst_share = (0,) * len(sizes), (0.0,) * len(sizes), 0.0, 0.0
    elif own is None or worst is None:
        worst, mean, share, worst_share = sizes, tuple(map(float, sizes)), 1.0, 1.0
    else:
        mean = tuple(float(axis.size.mean()) for axis in own.axes)
        share, worst_share = float(own.cells.mean()) / prod(sizes), prod(worst) / prod(sizes)
    full = info.macs
    work = Work(full, full * worst_share, full * share, full * (1 if placed.placement is Placement.DENSE else share))
    return LayerAnalysis(
        name=info.node.name,
        module=info.module,
        op=info.record.op,
        rule=info.rule,
        shape=info.record.out.shape,
        placement=placed.placement,
        reason=placed.reason,
        krypton_extent=worst,
        own_extent=mean,
        work=work,
    )
