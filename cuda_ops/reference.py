"""Pure-torch reference of the ops: any device, any number of spatial axes, index arithmetic only."""

from __future__ import annotations

import torch
from torch import Tensor

from kcompile.cuda_ops.schema import channels_last_empty


def _cells(first: Tensor, extent: list[int], axis: int) -> Tensor:
    """Coordinates of a window along one axis, shaped to broadcast over [N, *extent]."""
    steps = torch.arange(extent[axis], device=first.device)
    shape = [1] * (len(extent) + 1)
    shape[0], shape[axis + 1] = -1, extent[axis]
    return (first[:, None] + steps).reshape(shape)


def gather(base: Tensor, origins: Tensor, extent: list[int]) -> Tensor:
    """Read one window per query.

    Args:
        base: Padded base tensors [B, *sizes, C].
        origins: [N, 1 + axes]: index of the base, then the window's first cell per axis, in padded coordinates.
        extent: Cells of the window per axis.

    Returns:
        Windows [N, C, *extent], channels-last in memory.
    """
    origins = origins.to(base.device)
    rows = origins[:, 0].reshape([-1] + [1] * len(extent))
    cells = [_cells(origins[:, axis + 1], extent, axis) for axis in range(len(extent))]
    return base[(rows, *cells)].movedim(-1, 1)


def superimpose(window: Tensor, patch: Tensor, offsets: Tensor) -> Tensor:
    """Lay one patch tensor over each window; what sticks out of the window is cropped.

    Args:
        window: [N, C, *extent].
        patch: [N, C, *patch extent].
        offsets: [N, axes]: the patch's first cell in window coordinates; may be negative.

    Returns:
        A new tensor of the window's shape, channels-last in memory.
    """
    offsets = offsets.to(window.device)
    extent, sizes = list(window.shape[2:]), list(patch.shape[2:])
    inside = torch.ones([window.shape[0]] + [1] * len(extent), dtype=torch.bool, device=window.device)
    cells = []
    for axis, size in enumerate(sizes):
        cell = _cells(-offsets[:, axis], extent, axis)
        inside = inside & (cell >= 0) & (cell < size)
        cells.append(cell.clamp(0, max(size - 1, 0)))
    rows = torch.arange(window.shape[0], device=window.device).reshape([-1] + [1] * len(extent))
    laid = patch.movedim(1, -1)[(rows, *cells)].movedim(-1, 1)
    result = channels_last_empty(window, window.shape[0], window.shape[1], extent)
    return result.copy_(torch.where(inside.unsqueeze(1), laid, window))


def gather_superimpose(base: Tensor, patch: Tensor, origins: Tensor, offsets: Tensor, extent: list[int]) -> Tensor:
    """`gather`, then `superimpose`, as one op."""
    return superimpose(gather(base, origins, extent), patch, offsets)


def crop(window: Tensor, start: Tensor, at: Tensor, size: list[int], stride: list[int], shift: list[int]) -> Tensor:
    """Cut the wanted boxes out of results that are larger.

    Args:
        window: Results [N, C, *cells]; the first cell of each stands at ``start * stride - shift``.
        start: [N, axes], where the window that the op read begins.
        at: [N, axes], where the wanted box begins.
        size: The box's cells per axis.
        stride: Per axis, cells of the result per cell that was read.
        shift: Per axis, as a transposed convolution's padding.

    Returns:
        [N, C, *size], channels-last in memory.
    """
    device = window.device
    first = start.to(device) * torch.tensor(stride, device=device) - torch.tensor(shift, device=device)
    rows = torch.arange(window.shape[0], device=device).unsqueeze(1)
    origins = torch.cat([rows, at.to(device) - first], dim=1)
    return torch.ops.kcompile.gather(window.movedim(1, -1).contiguous(), origins, size)  # type: ignore[no-any-return]


def resample(
    window: Tensor, start: Tensor, at: Tensor, size: list[int], index: list[Tensor], factor: list[Tensor]
) -> Tensor:
    """Weighted sums of cells, one axis after the other.

    Args:
        window: [N, C, *cells], beginning at ``start``.
        start: [N, axes], where the windows begin in their tensor.
        at: [N, axes], where the wanted boxes begin in the result's tensor.
        size: The box's cells per axis.
        index: Per axis the cells that each output reads, [out, taps], -1 for none; empty for an axis that stays.
        factor: Per axis their factors, [out, taps]; empty where each output is a copy of one cell.

    Returns:
        [N, C, *size], channels-last in memory.
    """
    device = window.device
    result = window.movedim(1, -1)
    rows = torch.arange(window.shape[0], device=device)[:, None]
    for axis, cells in enumerate(size):
        wanted = at[:, axis, None].to(device) + torch.arange(cells, device=device)
        if not index[axis].numel():
            continue
        cell = index[axis][wanted]
        reads = (cell - start[:, axis, None, None].to(device)).clamp(min=0)
        lines = result.movedim(axis + 1, 1)
        if not factor[axis].numel():
            summed = lines[rows, reads[:, :, 0]]
        else:
            summed = torch.zeros((), dtype=window.dtype, device=device)
            for tap in range(reads.shape[2]):
                one = (*wanted.shape, *(1,) * (lines.dim() - 2))
                term = lines[rows, reads[:, :, tap]] * factor[axis][wanted][:, :, tap].reshape(one)
                summed = summed + term.masked_fill((cell[:, :, tap] < 0).reshape(one), 0.0)  # 0 * inf is NaN
        result = summed.movedim(1, axis + 1)
    unchanged = not any(part.numel() for part in index)  # then contiguous() could alias the window
    laid = result.clone(memory_format=torch.contiguous_format) if unchanged else result.contiguous()
    return laid.movedim(-1, 1)


def contract(patch: Tensor, base: Tensor, slopes: Tensor) -> Tensor:
    """How far linear functions of a tensor move where patches change it: sums of slope times change.

    Args:
        patch: Patch tensors [N, C, *extent].
        base: The base in the same boxes [N, C, *extent].
        slopes: The functions' gradients there [N, K * C, *extent], those of the first function first.

    Returns:
        [N, K], in the type of ``slopes``.
    """
    change = (patch - base).movedim(1, -1).unsqueeze(-2).to(slopes.dtype)
    rows = slopes.movedim(1, -1).unflatten(-1, (-1, patch.shape[1]))
    moved: Tensor = (rows * change).sum(dim=[*range(1, rows.dim() - 2), rows.dim() - 1])
    return moved
