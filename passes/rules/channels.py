"""Ops that join channels, mix them cell by cell, or reduce over them."""

from __future__ import annotations

from itertools import accumulate

from kcompile.core.axis_map import Identity, Sliding
from kcompile.passes.record import OpRecord
from kcompile.passes.rules.registry import Refusal, Spatial, rule


def same_cells(record: OpRecord, axes: tuple[int, ...] | None = None) -> Spatial:
    """Each cell stands for itself, in every input with a batch.

    Args:
        record: The op.
        axes: Dimensions of the result that are the image's axes, where the op moves them.
    """
    maps = tuple(Identity(size) for size in record.image.sizes)
    return Spatial(tuple(maps if spec.batched else None for spec in record.inputs), axes=axes)


@rule("aten.cat.default")
def concat(record: OpRecord) -> Spatial | Refusal:
    """Along channels the region is the hull of all inputs' regions (Krypton section 3.3, eq. 22).

    Along an axis each input is a window that zeros surround, and what is joined is their sum.
    """
    image, dim = record.image, record.param("dim", 0) % record.image.rank
    if dim == 0:
        return Refusal("it joins tensors along the batch")
    if not all(spec.batched and spec.axes in ((), image.axes) for spec in record.inputs):
        return Refusal("it joins tensors that are laid out differently, or without batch")
    if dim not in image.axes:
        return same_cells(record)
    if len({spec.dtype for spec in record.inputs}) > 1:
        return Refusal("it joins tensors of several types along an axis of the map")
    assert record.out is not None
    sizes = [spec.size(dim) for spec in record.inputs]
    maps = []
    for low, size in zip([0, *accumulate(sizes)], sizes, strict=False):
        place = Sliding(1, 1, low, 1, size, record.out.size(dim))
        maps.append(tuple(place if axis == dim else Identity(record.out.size(axis)) for axis in image.axes))
    return Spatial(tuple(maps), fill=-0.0, summed=True)  # x + 0.0 loses the sign of -0.0, x + -0.0 loses none


@rule("aten.slice_scatter.default")
def slice_scatter(record: OpRecord) -> Spatial | Refusal:
    """Channels written over others: the hull of both regions."""
    image = record.image
    if record.param("dim", 0) % image.rank in {0, *image.axes}:
        return Refusal("it writes over a part of the map")
    if not all(spec.batched and spec.axes in ((), image.axes) for spec in record.inputs):
        return Refusal("it joins tensors that are laid out differently, or without batch")
    return same_cells(record)


@rule("aten.mean.dim", "aten.sum.dim_IntList", "aten.amax.default", "aten.amin.default", "aten.argmax.default",
      "aten.argmin.default", "aten.prod.dim_int", "aten.all.dim", "aten.any.dim", "aten.logsumexp.default",
      "aten.var.correction", "aten.var.dim", "aten.std.correction", "aten.std.dim",
      "aten.linalg_vector_norm.default", "aten.norm.ScalarOpt_dim")  # fmt: skip
def reduce_channels(record: OpRecord) -> Spatial | Refusal:
    """Along channels each cell stands for itself; any other reduction reads the whole map."""
    image = record.image
    gone = record.dims("dim", image.rank)
    if gone & {0, *image.axes}:
        return Refusal("it reduces over the whole map")
    if record.param("keepdim", False):
        return same_cells(record)
    return same_cells(record, tuple(axis - sum(dim < axis for dim in gone) for axis in image.axes))


@rule("aten.softmax.int", "aten.log_softmax.int", "aten.cumsum.default", "aten.cumprod.default", "aten.glu.default",
      "aten.index_select.default", "aten.repeat_interleave.self_int")  # fmt: skip
def along_channels(record: OpRecord) -> Spatial | Refusal:
    """Along a channel dimension each cell stands for itself; along another the whole map is read."""
    if record.dims("dim", record.image.rank) & {0, *record.image.axes}:
        return Refusal("it works along an axis of the map")
    if any(spec.reached for spec in record.inputs[1:]):
        return Refusal("its indices depend on the image")
    return same_cells(record)


@rule("aten.index.Tensor")
def index_channels(record: OpRecord) -> Spatial | Refusal:
    """Channels picked by one list of numbers."""
    given = [(dim, spec) for dim, spec in enumerate(record.params["indices"]) if spec is not None]
    if len(given) != 1 or given[0][0] in {0, *record.image.axes} or len(given[0][1].shape) != 1 or given[0][1].reached:
        return Refusal("it picks cells by index")
    return same_cells(record)


@rule("aten.prelu.default")
def prelu(record: OpRecord) -> Spatial | Refusal:
    """A slope for each cell of dimension 1, or one for all."""
    if record.inputs[1].reached:
        return Refusal("its slopes depend on the image")
    if record.inputs[1].shape[0] != 1 and 1 in record.image.axes:
        return Refusal("its slopes differ along an axis of the map")
    return same_cells(record)


@rule("aten.channel_shuffle.default", "aten.native_channel_shuffle.default")
def channel_shuffle(record: OpRecord) -> Spatial | Refusal:
    """Channels change places."""
    return Refusal("it moves an axis of the map") if 1 in record.image.axes else same_cells(record)


@rule("aten.layer_norm.default")
def layer_norm(record: OpRecord) -> Spatial | Refusal:
    """A norm over trailing channel dimensions is one of each cell by itself (NHWC blocks)."""
    image = record.image
    normed = range(image.rank - len(record.params["normalized_shape"]), image.rank)
    if set(normed) & {0, *image.axes} or any(spec.reached for spec in record.inputs[1:]):
        return Refusal("it normalises over the whole map")
    return same_cells(record)


@rule("aten.group_norm.default", "aten.instance_norm.default")
def group_norm(record: OpRecord) -> Spatial | Refusal:
    """Statistics over space: a patch changes every cell."""
    return Refusal("it normalises over the whole map")


@rule("aten.scaled_dot_product_attention.default")
def attention(record: OpRecord) -> Spatial | Refusal:
    """Every cell may read every other."""
    return Refusal("attention reads the whole map")
