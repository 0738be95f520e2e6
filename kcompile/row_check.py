"""A model whose rows influence one another can't be compiled: a patched copy could not be inferred by itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import is_dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import register_dataclass
from torch.utils._pytree import tree_leaves

from kcompile.core.errors import InputError, ModelModeError
from kcompile.passes.capture import Example

_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


def check_rows(model: nn.Module, example: Example) -> None:
    """Refuse models in which one row of a batch changes another: NaN in one row must leave the other clean."""
    with _buffers_kept(model):
        _check_rows(model, example)


@contextmanager
def _buffers_kept(model: nn.Module) -> Iterator[None]:
    """What the model writes into its buffers, as counters or running means, is undone: NaN would stay there."""
    before = [
        (part, name, buffer, buffer.clone())
        for part in model.modules()
        for name, buffer in part._buffers.items()
        if buffer is not None
    ]
    try:
        yield
    finally:
        for part, name, buffer, values in before:
            part._buffers[name] = buffer
            if not torch.equal(buffer, values):
                with torch.no_grad():
                    buffer.copy_(values)


def has_rows(model: nn.Module, example: Example, index: int) -> bool:
    """True if a tensor beside the images has a row for each of them: one row of it doesn't reach another's output."""
    value = example.leaves[index]
    with _buffers_kept(model), torch.no_grad():
        try:
            return all(_row_stays(model, example, index, value, row) for row in (0, 1))
        except Exception:  # said where the images' rows are checked
            return True


def _row_stays(model: nn.Module, example: Example, index: int, value: Tensor, row: int) -> bool:
    outputs = []
    for changed in (False, True):
        probe = value.clone()
        if changed:  # a whole number may be an index: another row's is allowed
            probe[row] = torch.nan if value.is_floating_point() else value[1 - row]
        leaves = (*example.leaves[:index], probe, *example.leaves[index + 1 :])
        found = tree_leaves(_call(model, replace(example, leaves=leaves), example.images))
        outputs.append([leaf[1 - row] for leaf in found if isinstance(leaf, Tensor) and leaf.dim() and len(leaf) == 2])
    return all(
        torch.equal(a.isnan(), b.isnan()) and bool(((a == b) | a.isnan()).all()) for a, b in zip(*outputs, strict=True)
    )


def _check_rows(model: nn.Module, example: Example) -> None:
    for bad in (0, 1):
        probe = example.images.clone()
        probe[bad] = float("nan")
        try:
            with torch.no_grad():
                leaves = tree_leaves(_call(model, example, probe))
        except Exception:  # capture says where a model looks at its values, unless it doesn't run at all
            _check_runs(model, example)
            return
        for leaf in leaves:
            if not isinstance(leaf, Tensor) or not leaf.is_floating_point():
                continue
            if leaf.dim() and len(leaf) == 2:
                if bool(leaf[1 - bad].isnan().any()) and _rows_mix(model, example, 1 - bad):
                    raise ModelModeError(
                        "one row of a batch changes another (batch statistics, a norm over the batch, …): "
                        "patched copies cannot be inferred apart from each other"
                    )
            elif bool(leaf.isnan().any()):
                raise ModelModeError(
                    f"an output of shape {tuple(leaf.shape)} depends on the images, but has no row for each of them"
                )


@torch.no_grad()
def _rows_mix(model: nn.Module, example: Example, row: int) -> bool:
    """True if finite changes of the other row change one, too: kernels may let NaN alone leak (0 * NaN)."""
    outputs = []
    for factor in (1.0, 3.0):
        probe = example.images.clone()
        probe[1 - row] = probe[1 - row].flip(-1) * factor + (factor - 1.0)
        leaves = tree_leaves(_call(model, example, probe))
        floats = [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()]
        outputs.append(torch.cat([leaf[row].double().reshape(-1) for leaf in floats if leaf.dim() and len(leaf) == 2]))
    one, other = outputs
    close = torch.isclose(one, other, rtol=1e-5, atol=1e-6 * float(one.nan_to_num().abs().max()), equal_nan=True)
    return not bool(close.all())


@torch.no_grad()
def _check_runs(model: nn.Module, example: Example) -> None:
    try:
        _call(model, example, example.images)
    except Exception as error:
        shape = tuple(example.images.shape[1:])
        reason = _wrong_channels(model, example) or error
        raise InputError(f"the model does not run on images of shape {shape}: {reason}") from error


def _wrong_channels(model: nn.Module, example: Example) -> str | None:
    """Which layer of a model that does not run was given another number of channels than it takes; None if none."""
    found: list[str] = []
    names: dict[nn.Module, str] = {part: name for name, part in model.named_modules() if isinstance(part, _LAYERS)}

    def compare(layer: nn.Module, args: tuple[Any, ...]) -> None:
        if not args or not isinstance(args[0], Tensor):
            return
        wanted = layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels
        axis = -1 if isinstance(layer, nn.Linear) else 1
        what = "features" if axis == -1 else "channels"
        if args[0].dim() > 1 and args[0].shape[axis] != wanted:
            allowed = (wanted, *example.images.shape[2:])
            first = args[0].shape == example.images.shape
            hint = f"; allowed are images of shape {allowed}" if first else ""
            found.append(f"its layer {names[layer]!r} takes {wanted} {what}, and got {args[0].shape[axis]}{hint}")

    hooks = [layer.register_forward_pre_hook(compare) for layer in names]
    try:
        with suppress(Exception):  # the caller knows it
            _call(model, example, example.images)
    finally:
        for hook in hooks:
            hook.remove()
    return found[-1] if found else None


def _call(model: nn.Module, example: Example, images: Tensor) -> Any:
    args, kwargs = example.with_images(images).call
    output = model(*args, **kwargs)
    while unknown := {type(leaf) for leaf in tree_leaves(output) if is_dataclass(leaf)}:
        for kind in unknown:  # so that PyTorch sees what is in them; its own list of such classes is global
            register_dataclass(kind, serialized_type_name=f"{kind.__module__}.{kind.__qualname__}")
    return output
