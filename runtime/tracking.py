"""Tracking: `inc(images)` infers those rows incrementally that are patched copies of its base images.

Explainers written for a plain model (Captum, MONAI) call it with batches of patched images. Their rows are compared
with the base images (`recognition`); what isn't recognised, and every call that isn't plain inference, is the model's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from kcompile.core.errors import StaleWeightsError
from kcompile.core.interval import IntArray
from kcompile.runtime.base_store import BaseStore
from kcompile.runtime.queries import is_finite
from kcompile.runtime.recognition import Rows, cut, recognise

if TYPE_CHECKING:
    from kcompile.runtime.module import IncrementalModule

Modes = list[tuple[bool, int]]


def modes(model: nn.Module) -> Modes:
    """Per submodule: is it in training mode, and how many forward hooks has it?"""
    return [(m.training, len(m._forward_hooks) + len(m._forward_pre_hooks)) for m in model.modules()]


def infer(inc: IncrementalModule, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What the original model returns for these arguments; incrementally where that is possible."""
    images = _images(inc, args, kwargs)
    if images is None or not _as_compiled(inc):
        return inc.model(*args, **kwargs)
    with torch.no_grad():
        leaves = _tracked(inc, images)
    return inc.model(*args, **kwargs) if leaves is None else pytree.tree_unflatten(leaves, inc.outputs.spec)


def _images(inc: IncrementalModule, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """The images of a call that is plain inference of such images as the module was compiled for, else None."""
    if not inc.inputs.single or len(args) != 1 or kwargs or not isinstance(args[0], Tensor):
        return None
    (images,) = args
    if tuple(images.shape[1:]) != inc.plan.input_shape or not len(images):
        return None
    like = inc._like
    if images.dtype != like.dtype or images.device != like.device or images.layout != torch.strided:
        return None
    if torch.is_autocast_enabled(like.device.type) or (images.requires_grad and torch.is_grad_enabled()):
        return None
    if torch.compiler.is_compiling() or torch._C._is_tracing() or _is_wrapped(images):
        return None
    if type(images) is not Tensor and not hasattr(images, "as_tensor"):  # MONAI's MetaTensor holds a plain tensor
        return None
    plain: Tensor = images.as_subclass(Tensor)
    return plain


def _is_wrapped(images: Tensor) -> bool:
    """True under torch.func's transforms (vmap, jvp, …)."""
    return bool(torch._C._functorch.is_functorch_wrapped_tensor(images))


def _as_compiled(inc: IncrementalModule) -> bool:
    """True if the model is what was compiled: weights, modes, hooks. Drops the base where the weights changed."""
    if inc.training or not all(map(_can_be_merged, inc.outputs.entries)):
        return False
    now = modes(inc.model)
    if len(now) != len(inc._modes):
        return False
    if any((on and not was_on) or hooks != had for (on, hooks), (was_on, had) in zip(now, inc._modes, strict=True)):
        return False
    if inc._weights.matches(inc.model):
        return True
    inc.drop_base()
    return False


def _can_be_merged(entry: int | tuple[Any] | None) -> bool:
    """True for an output with a row per image, and for a constant that can't depend on the size of the batch."""
    return isinstance(entry, int) or (entry is not None and (entry[0] is None or isinstance(entry[0], str)))


def _tracked(inc: IncrementalModule, images: Tensor) -> list[Any] | None:
    """The flat outputs; None asks for the original model."""
    if inc._store is not None and inc._autocast is None:
        rows = recognise(images, inc._store.images, inc.plan.patch_shape)
        if rows.recognised:
            return _merged(inc, inc._store, images, rows)
    if not inc._tracks or not is_finite(images):
        return None
    try:
        return _rebased(inc, images)
    except StaleWeightsError:  # written through `.data`, which only materialize notices
        inc.drop_base()
        return None


def _rebased(inc: IncrementalModule, images: Tensor) -> list[Any] | None:
    """Make a call's images the base, or return to the one before, if they are copies of that.

    An explainer that changes more than a box in one call (a feature in two places) goes on with small changes of the
    same image in the next.
    """
    current = None if inc._store is None else inc._store.images
    if inc._earlier is not None and recognise(images, inc._earlier, inc.plan.patch_shape).recognised:
        inc.materialize(inc._earlier)
        inc._earlier = current
        return _tracked(inc, images)
    inc.materialize(images)
    inc._earlier = current
    return [leaf.clone() if isinstance(leaf, Tensor) else leaf for leaf in inc._flat_base]


def _merged(inc: IncrementalModule, store: BaseStore, images: Tensor, rows: Rows) -> list[Any] | None:
    """Outputs of all rows, in order: the base's, incremental ones and those of one batch that runs in full."""
    parts: list[tuple[IntArray, Any]] = []
    if len(rows.same):
        index = torch.from_numpy(rows.same % store.count).to(images.device)
        parts.append((rows.same, [leaf[index] if isinstance(leaf, Tensor) else leaf for leaf in inc._flat_base]))
    if len(rows.patched):
        patches = cut(images, rows.patched, rows.positions, inc.plan.patch_shape)
        parts.append(
            (rows.patched, inc.forward_patches(patches, rows.positions, base_index=rows.patched % store.count))
        )
    if len(rows.other):
        index = torch.from_numpy(rows.other).to(images.device)
        parts.append((rows.other, inc.model(images[index])))
    flat = [(indices, pytree.tree_leaves(outputs)) for indices, outputs in parts]
    if any(len(leaves) != len(inc._flat_base) for _, leaves in flat):
        return None
    merged = [_joined(len(images), [(i, leaves[k]) for i, leaves in flat]) for k in range(len(inc._flat_base))]
    return None if any(leaf is NotImplemented for leaf in merged) else merged


def _joined(count: int, parts: Sequence[tuple[IntArray, Any]]) -> Any:
    """One leaf of the outputs for all rows; NotImplemented if it doesn't have a row for each image."""
    first = parts[0][1]
    if not isinstance(first, Tensor):
        return first if all(leaf == first for _, leaf in parts) else NotImplemented
    for rows, leaf in parts:
        fits = isinstance(leaf, Tensor) and leaf.dtype == first.dtype and leaf.shape == (len(rows), *first.shape[1:])
        if not fits:
            return NotImplemented
    if len(parts) == 1:
        return first
    joined = first.new_empty((count, *first.shape[1:]))
    for rows, leaf in parts:
        joined.index_copy_(0, torch.from_numpy(rows).to(joined.device), leaf)
    return joined
