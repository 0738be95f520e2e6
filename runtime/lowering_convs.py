"""GPU lowering of convolutions to `kcompile.cuda_ops.convolved`, which reads base and patch directly: without windows.

Whether that is faster than a window and PyTorch's convolution is measured, for the windows that a patch at the centre
of the image has, and kept (`kcompile.cuda_ops.tuning`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import inf, prod
from operator import attrgetter
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx

from kcompile.core.boxes import Boxes
from kcompile.core.plan import RAW_PATCH, Plan, Read
from kcompile.core.region import evaluate
from kcompile.cuda_ops import triton_conv
from kcompile.cuda_ops.convolved import TILES, WINDOWS, out_sizes, rounded_to_tf32
from kcompile.cuda_ops.tuning import Tuner, Way, tuner
from kcompile.runtime.lowering_nodes import limiting, replace, sole_user
from kcompile.runtime.scheduler import centre, geometry, patch_regions

aten, ops = torch.ops.aten, torch.ops.kcompile

DIRECT = True  # False: every convolution has a window that is written out

# Shares of the largest value by which a kernel may differ from PyTorch's convolution: about its own rounding.
ERRORS = {torch.float32: 1e-2, torch.float16: 1e-2, torch.bfloat16: 4e-2}  # float32: as TF32


@dataclass(frozen=True)
class Candidate:
    """A convolution of a window that nothing else reads, as it usually comes.

    Attributes:
        sizes: [H, W] of the padded base.
        extent: Of the window.
        patch: Cells of the patch tensor.
        origin: Where the window begins in the base.
        offset: Where the patch begins in the window.
        weight: [K, C, r, s].
        own: [K], or None.
        geometry: Stride, padding and dilation.
        limits: Least and largest value of the result.
        added: A window is added to the result, as a shortcut's.
    """

    sizes: tuple[int, ...]
    extent: tuple[int, ...]
    patch: tuple[int, ...]
    origin: tuple[int, ...]
    offset: tuple[int, ...]
    weight: Tensor
    own: Tensor | None
    geometry: tuple[list[int], list[int], list[int]]
    limits: tuple[float, float]
    added: bool = False


Choice: TypeAlias = Callable[[Candidate], int]  # a tile of `read_convolved`, or WINDOWS


def lower_convolutions(front: fx.GraphModule, plan: Plan, choice: Choice, tf32: bool = False) -> None:
    """Rewrite a front in place.

    A convolution takes along its bias, a window that alone is added to it, and a limiting activation behind.

    Args:
        front: A copy of an emitted front.
        plan: Its plan.
        choice: Says which tile is fastest, or that windows are.
        tf32: Weights are rounded for tensor cores.
    """
    rounded: dict[int, Tensor] = {}
    usual = _Usual(plan)
    for node in list(front.graph.nodes):
        candidate = _candidate(front, node, usual) if node.target is aten.conv2d.default else None
        if candidate is None or (tile := choice(candidate)) == WINDOWS:
            continue
        image, weight, own, stride, padding, dilation, _ = _arguments(node)
        if tf32:
            value = rounded.setdefault(id(candidate.weight), rounded_to_tf32(candidate.weight.detach()))
            front.register_buffer(f"tf32_{node.name}", value, persistent=False)
            with front.graph.inserting_before(node):
                weight = front.graph.get_attr(f"tf32_{node.name}")
        source, patch, origins, offsets, extent = image.args
        args = (source, patch, None, -inf, inf, origins, offsets, extent, weight, own, stride, padding, dilation)
        last = _last(node)
        args = (*args, *_added(node, last), *candidate.limits, tile)
        new = replace(front.graph, last, ops.read_convolved.default, args)
        new.meta["rule"] = node.meta.get("rule", "")
        if last is not node:
            front.graph.erase_node(node)


class _Usual:
    """A plan with its windows and boxes for a patch at the image's centre."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.windows = geometry(plan, centre(plan), plan.patch_shape)
        self.regions = evaluate(plan.regions, patch_regions(centre(plan), plan.patch_shape))

    def patch(self, read: Read) -> tuple[int, ...]:
        """Cells of the patch tensor of a read."""
        if read.patch is None or read.patch == RAW_PATCH:
            return tuple(self.plan.patch_shape)
        entry = self.plan.regions[read.patch]
        return Boxes.around(self.regions[read.patch], entry.shape, entry.units).extent


def _candidate(front: fx.GraphModule, node: fx.Node, usual: _Usual) -> Candidate | None:
    """What is to choose for a convolution; None if the op can't do it."""
    image, weight, own, stride, padding, dilation, groups = _arguments(node)
    value, summand = _value(front, weight), _value(front, own)
    if not _is_window(image) or groups != 1 or value is None or (own is not None and summand is None):
        return None
    read = image.meta["read"]
    where, base = usual.windows[read.name], usual.plan.base(read.base)
    padding = list(where.padding) if isinstance(padding, fx.Node) else padding
    sizes = tuple(size + low + high for size, (low, high) in zip(base.sizes, base.padding, strict=True))
    last = _last(node)
    joined = last.target is ops.read_joined.default
    limits: Any = last.args[-2:] if joined else None if last is node else limiting(last)
    assert where.offsets is not None, "a window with a patch says where that lies"
    return Candidate(
        sizes, tuple(where.extent), usual.patch(read), tuple(where.origins[0].tolist()),
        tuple(where.offsets[0].tolist()), value, summand, (stride, padding, dilation),
        tuple(limits or (-inf, inf)), joined,
    )  # fmt: skip


def _last(conv: fx.Node) -> fx.Node:
    """What alone uses a convolution and can be done by it: a sum with a window, a limiting activation; or itself."""
    user = sole_user(conv)
    if user is None:
        return conv
    if user.target is not ops.read_joined.default:
        return conv if limiting(user) is None else user
    patches: Any = user.args[1]
    *_, cat, scale, _, _, _ = user.args
    alone = len(patches) == 2 and list(patches).count(conv) == 1 and not cat and scale is None
    return user if alone and _column(user, 0)[patches.index(conv)] is None else conv


def _added(conv: fx.Node, last: fx.Node) -> list[Any]:
    """Base, patch, origins and offsets of the window that a sum adds to a convolution."""
    if last.target is not ops.read_joined.default:
        return [None] * 4
    (place,) = (place for place, patch in enumerate(_column(last, 1)) if patch is not conv)
    return [_column(last, column)[place] for column in (0, 1, 5, 6)]


def _column(joined: fx.Node, column: int) -> list[Any]:
    """One attribute of all windows of a join."""
    return list(joined.args[column])  # type: ignore[arg-type]


def _is_window(node: Any) -> bool:
    """A window of base and patch that the convolution alone reads."""
    return (
        isinstance(node, fx.Node)
        and node.target is ops.gather_superimpose.default
        and len(node.users) == 1
        and "read" in node.meta
    )


def _arguments(conv: fx.Node) -> list[Any]:
    defaults: list[Any] = [None, None, None, [1, 1], [0, 0], [1, 1], 1]
    given: list[Any] = [*conv.args, *defaults[len(conv.args) :]]
    image, weight, own, stride, padding, dilation, groups = given
    padding = padding if isinstance(padding, fx.Node) else _pair(padding)  # a node: known at run time
    return [image, weight, own, _pair(stride), padding, _pair(dilation), groups]


def _pair(value: Any) -> list[int]:
    values = [value] if isinstance(value, int) else list(value)
    return values * 2 if len(values) == 1 else values


def _value(module: fx.GraphModule, node: Any) -> Tensor | None:
    if not isinstance(node, fx.Node) or node.op != "get_attr":
        return None
    value = attrgetter(str(node.target))(module)
    return value if isinstance(value, Tensor) else None


def measured(like: Tensor, queries: int, budget: int | None) -> Choice | None:
    """Chooses by measuring on a tensor's device; None where there is nothing to choose: without tensor cores.

    Args:
        like: Of the module's type and device.
        queries: Usual number of queries in a batch.
        budget: Bytes that measuring may take, or None.
    """
    on_tensor_cores = is_tf32(like.dtype) or like.dtype in (torch.float16, torch.bfloat16)
    if not DIRECT or not on_tensor_cores or triton_conv.reason_against(like.device) is not None:
        return None
    return partial(_fastest, tuner(like.device), like, queries, budget)


def _fastest(by: Tuner, like: Tensor, queries: int, budget: int | None, wanted: Candidate) -> int:
    weight = wanted.weight
    sizes = out_sizes(list(wanted.extent), weight, *wanted.geometry)
    if weight.dtype != like.dtype or weight.dim() != 4 or min(sizes) < 1:
        return WINDOWS
    row = prod(wanted.patch) * weight.shape[1] + 2 * prod(wanted.extent) * weight.shape[1]
    row = (row + (4 + 2 * wanted.added) * prod(sizes) * weight.shape[0]) * like.element_size()
    if budget is not None:
        queries = min(queries, budget // max(row, 1))
        if queries < 1:
            return WINDOWS
    steps = tuple(tuple(part) for part in wanted.geometry)
    shapes = (wanted.sizes, wanted.extent, wanted.patch, tuple(weight.shape), steps)
    key = ("read_convolved", like.dtype, queries, shapes, TILES, wanted.added)
    try:
        return by.choose(key, partial(_ways, like, queries, wanted, sizes), ERRORS[like.dtype])
    except torch.OutOfMemoryError:  # measuring takes more than running
        return WINDOWS


def is_tf32(dtype: torch.dtype) -> bool:
    """True where convolutions of this type run in TF32, on GPUs that have it."""
    return dtype is torch.float32 and triton_conv.uses_tf32()


def _ways(like: Tensor, queries: int, wanted: Candidate, sizes: list[int]) -> dict[int, Way]:
    """A window and PyTorch's convolution, and each tile of the kernel; numbers are random."""
    channels, weight = wanted.weight.shape[1], wanted.weight
    numbers = torch.Generator(like.device).manual_seed(0)  # the user's own random numbers stay as they are

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=like.dtype, device=like.device, generator=numbers)

    base = random(1, *wanted.sizes, channels)
    patch = random(queries, *wanted.patch, channels).movedim(-1, 1)
    origins = torch.tensor([[0, *wanted.origin]] * queries, device=like.device)
    offsets = torch.tensor([wanted.offset] * queries, device=like.device)
    extent = list(wanted.extent)
    read = (base, patch, None, -inf, inf, origins, offsets, extent)
    stride, padding, dilation = wanted.geometry
    added: list[Tensor | None] = [None] * 4
    if wanted.added:  # where exactly the patch lies makes no difference
        half = [-(-size // 2) for size in sizes]
        added = [
            random(1, *sizes, weight.shape[0]), random(queries, *half, weight.shape[0]).movedim(-1, 1),
            torch.zeros_like(origins), torch.zeros_like(offsets),
        ]  # fmt: skip

    def windows() -> Tensor:
        window = ops.read_activated(*read)  # its bias and activation cost nothing more where its result is read
        result = torch.nn.functional.conv2d(window, weight, None, stride, padding, dilation)
        if not wanted.added:
            return result
        below, above, *where = ([value, None] for value in added)
        above[1] = result
        ends = [[None] * 2, [-inf] * 2, [inf] * 2]
        return ops.read_joined(below, above, *ends, *where, sizes, False, None, None, -inf, inf)  # type: ignore[no-any-return]

    own = None if wanted.own is None else torch.zeros_like(wanted.own)  # it costs nothing, but is another kernel
    lines = rounded_to_tf32(weight.detach()) if is_tf32(like.dtype) else weight

    def direct(tile: int) -> Tensor:
        return triton_conv.convolve(*read, lines, own, stride, padding, dilation, *added, -inf, inf, tile)

    ways: dict[int, Way] = {WINDOWS: windows}
    if triton_conv.fits(base, patch, extent, weight, sizes, queries):
        widest = max(64, 2 * weight.shape[0])
        ways.update({tile: partial(direct, tile) for tile, t in enumerate(TILES) if t.filters <= widest})
    return ways
