"""Ops that change how a tensor's dimensions are arranged, not its cells; and fully connected layers.

A tensor's dimensions are the batch, the image's axes and any number of channel dimensions, in any order: [B, C, H, W],
[B, H, W, C], [B, groups, C, H, W]. These rules say where the axes go.
"""

from __future__ import annotations

from math import prod

from kcompile.core.axis_map import AxisMap, Blocks, Identity, Sliding
from kcompile.passes.record import OpRecord
from kcompile.passes.rules.channels import same_cells
from kcompile.passes.rules.registry import Refusal, Spatial, rule


@rule("aten.permute.default")
def permute(record: OpRecord) -> Spatial | Refusal:
    """Dimension i of the result is dimension ``dims[i]`` of the input."""
    dims = [dim % record.image.rank for dim in record.params["dims"]]
    return same_cells(record, tuple(dims.index(axis) for axis in record.image.axes))


@rule("aten.transpose.int")
def transpose(record: OpRecord) -> Spatial | Refusal:
    """Two dimensions change places."""
    image = record.image
    one, two = record.params["dim0"] % image.rank, record.params["dim1"] % image.rank
    swap = {one: two, two: one}
    return same_cells(record, tuple(swap.get(axis, axis) for axis in image.axes))


@rule("aten.unsqueeze.default")
def unsqueeze(record: OpRecord) -> Spatial | Refusal:
    """A new channel dimension of one cell."""
    at = record.params["dim"] % (record.image.rank + 1)
    return same_cells(record, tuple(axis + (axis >= at) for axis in record.image.axes))


@rule("aten.squeeze.dim", "aten.squeeze.dims")
def squeeze(record: OpRecord) -> Spatial | Refusal:
    """Channel dimensions of one cell disappear."""
    image = record.image
    gone = {dim for dim in record.dims("dim", image.rank) if dim and image.size(dim) == 1}
    if gone & set(image.axes):
        return Refusal("an axis of the map disappears")
    return same_cells(record, tuple(axis - sum(dim < axis for dim in gone) for axis in image.axes))


@rule("aten.expand.default", "aten.repeat.default", "aten.tile.default")
def repeat(record: OpRecord) -> Spatial | Refusal:
    """Copies along channel dimensions (`passes.grouping` has written -1 for what expand keeps)."""
    image = record.image
    name = {"aten.expand.default": "size", "aten.repeat.default": "repeats"}.get(record.op, "dims")
    given = list(record.params[name])
    given = [1] * (image.rank - len(given)) + given if name == "dims" else given  # tile is aligned from the right
    if len(given) != image.rank or any(given[axis] not in (-1, 1) for axis in (0, *image.axes)):
        return Refusal("it copies the map, or the batch")
    if name == "size" and any(given[axis] != -1 for axis in (0, *image.axes)):
        return Refusal("one cell is copied over the map")
    return same_cells(record)


@rule("aten.flatten.using_ints")
def flatten(record: OpRecord) -> Spatial | Refusal:
    """Channel dimensions are merged; channels behind an axis become its cells (depth to space).

    Two axes cannot be merged: after that every feature may have changed (Krypton section 2.2, global context).
    """
    image = record.image
    first, last = record.param("start_dim", 0) % image.rank, record.param("end_dim", -1) % image.rank
    inside = [axis for axis in image.axes if first <= axis <= last]
    if first == 0 or len(inside) > 1 or (inside and inside[0] != first):
        return Refusal("flattening makes positions into features: what follows reads the whole map")
    axes = tuple(axis - max(min(axis, last) - first, 0) for axis in image.axes)
    maps: list[AxisMap] = [Identity(size) for size in image.sizes]
    if inside:
        factor = prod(image.size(dim) for dim in range(first + 1, last + 1))
        maps[image.axes.index(first)] = Blocks(factor, image.size(first))
    return Spatial((tuple(maps),), axes=axes)


@rule("aten.unflatten.int")
def unflatten(record: OpRecord) -> Spatial | Refusal:
    """Channels are split; an axis is split into blocks and the channels inside them (space to depth)."""
    assert record.out is not None
    image = record.image
    dim, count = record.params["dim"] % image.rank, len(record.params["sizes"])
    axes = tuple(axis + (count - 1 if axis > dim else 0) for axis in image.axes)
    if dim not in image.axes:
        return same_cells(record, axes)
    sizes = [record.out.size(dim + i) for i in range(count)]
    block = prod(sizes[1:])
    maps: list[AxisMap] = [Identity(size) for size in image.sizes]
    maps[image.axes.index(dim)] = Sliding(block, block, 0, 1, image.size(dim), sizes[0])
    return Spatial((tuple(maps),), axes=axes, overrides=(("sizes", [-1, *sizes[1:]]),))


@rule("aten.pixel_shuffle.default", "aten.pixel_unshuffle.default")
def pixel_shuffle(record: OpRecord) -> Spatial | Refusal:
    """Blocks of channels become cells, or cells channels."""
    assert record.out is not None
    image = record.image
    if image.rank != 4 or 1 in image.axes:
        return Refusal("its input is laid out differently")
    if "unshuffle" in record.op:
        f = record.params["downscale_factor"]
        return Spatial((tuple(Sliding(f, f, 0, 1, image.size(a), record.out.size(a)) for a in image.axes),))
    f = record.params["upscale_factor"]
    return Spatial((tuple(Blocks(f, size) for size in image.sizes),))


@rule("aten.view.default", "aten.reshape.default", "aten._unsafe_view.default")
def reshape(record: OpRecord) -> Spatial | Refusal:
    """What `passes.grouping` could not write as merging and splitting of dimensions."""
    return Refusal("flattening makes positions into features: what follows reads the whole map")


@rule("aten.linear.default", "aten.addmm.default", "aten.mm.default", "aten.matmul.default")
def linear(record: OpRecord) -> Spatial | Refusal:
    """Of each cell's channels where they come last (NHWC blocks); over features it reads everything.

    See Krypton section 2.2, global context.
    """
    image = record.image
    fixed = record.inputs[0] is image and not any(spec.reached or spec.batched for spec in record.inputs[1:])
    last = image.rank - 1
    if not fixed or last in {0, *image.axes} or record.op not in ("aten.linear.default", "aten.matmul.default"):
        return Refusal("a fully connected layer reads the whole map")
    if len(record.inputs[1].shape) != 2:
        return Refusal("it multiplies by something else than one matrix")
    return same_cells(record)
