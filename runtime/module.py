"""IncrementalModule: a compiled model that infers patched copies of base images incrementally."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, get_args

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from kcompile.core.errors import InputError, ModelModeError, NotMaterializedError, StaleWeightsError
from kcompile.core.interval import IntArray
from kcompile.core.plan import Plan
from kcompile.core.region import evaluate
from kcompile.runtime.base_store import BaseStore
from kcompile.runtime.executor import Executor, Policy
from kcompile.runtime.fingerprint import Fingerprint
from kcompile.runtime.full import full_graph
from kcompile.runtime.lowering import available, lower
from kcompile.runtime.notes import restore_notes, take_notes
from kcompile.runtime.queries import (
    as_positions,
    check_base_index,
    check_images,
    check_positions,
    is_finite,
    patch_source,
)
from kcompile.runtime.scheduler import centre, geometry, patch_regions

_GRAPHS = ("materializer", "front", "tail")


class IncrementalModule(nn.Module):
    """A model with its plan and graph modules; made by `kcompile.incrementalize`.

    Attributes:
        plan: What was decided at compile time; ``print(inc.plan)`` shows it.
        front: The incremental graph, with explicit gather and superimpose ops; ``print(inc.front.code)``.
        tail: The dense graph behind it.
        base_output: The model's output for the materialised images, or None.
        policy: "auto" runs a call incrementally or, where that is faster, in full (few queries, early gates, patches
            that reach everything); "incremental" and "full" force it. Results agree up to rounding.
    """

    policy: Policy = "auto"
    _like: Tensor

    def __init__(
        self,
        model: nn.Module,
        plan: Plan,
        modules: tuple[fx.GraphModule, fx.GraphModule, fx.GraphModule],
        outputs: Sequence[int | tuple[Any]],
        out_spec: pytree.TreeSpec,
        activations: Sequence[str | None],
        like: Tensor,
    ) -> None:
        """Hold the results of compilation; ``modules`` are materialize, front and tail."""
        super().__init__()
        self.model = model
        self.materializer, self.front, self.tail = modules
        self.plan = plan
        self.activations = tuple(activations)
        self._outputs, self._out_spec = tuple(outputs), out_spec
        self.register_buffer("_like", like.new_empty(0), persistent=False)
        self.recompile: Callable[[nn.Module], IncrementalModule] | None = None
        self.base_output: Any = None
        self._store: BaseStore | None = None
        self._flat_base: list[Any] = []
        self._finite = True
        self._executor: Executor | None = None
        self._weights = Fingerprint(self.model)
        self.training = False

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the original model returns."""
        return self.model(*args, **kwargs)

    @torch.no_grad()
    def materialize(self, image: Tensor) -> Any:
        """Run the model once on base images and keep what queries will read.

        Args:
            image: One image [C, *S] or several [B, C, *S].

        Returns:
            The model's output for the batch.

        Raises:
            InputError: Wrong shape, type or device.
            StaleWeightsError: The weights changed after compilation.
        """
        self._check_weights(hashed=True)
        batch = check_images(image, self.plan, self._like)
        images = _channels_last(batch)
        flat, sources = self.materializer(images)
        made = [source for base, source in zip(self.plan.bases, sources, strict=True) if base.batched]
        self._finite = all(is_finite(value) for value in (batch, *made, *flat) if isinstance(value, Tensor))
        self._store = BaseStore.fill(self.plan, sources, images.clone())
        self._flat_base = list(flat)
        self.base_output = pytree.tree_unflatten(self._flat_base, self._out_spec)
        return self.base_output

    @torch.no_grad()
    def forward_patches(self, patches: Any, positions: Any, *, base_index: Any = None) -> Any:
        """The model's output for patched copies of the base images, without building them.

        Args:
            patches: Scalar or [C] (fills the compiled patch shape), [C, h, w] for all queries or [N, C, h, w].
            positions: Integers [N, axes], (row, col) of the patch's top-left corner. A patch may stick out of the image
                (negative positions too): it is cropped.
            base_index: Integers [N], which of the materialised images each query is a copy of (default 0).

        Returns:
            The model's output structure for N images.

        Raises:
            NotMaterializedError: No base image yet.
            InputError, PositionError: Bad patches or positions.
            StaleWeightsError: The weights changed after compilation.
        """
        count, results = 0, None
        for rows, outputs, total in self.stream_patches(patches, positions, base_index=base_index):
            if results is None:
                results = [out.new_empty((total, *out.shape[1:])) for out in outputs]
            index = torch.from_numpy(rows).to(self._like.device)
            for into, out in zip(results, outputs, strict=True):
                into.index_copy_(0, index, out)
            count += len(rows)
        if results is None:
            reached = [out for out, e in zip(self._flat_base, self._outputs, strict=True) if isinstance(e, int)]
            results = [out.new_empty((0, *out.shape[1:])) for out in reached]
        return self.restore(results)

    @torch.no_grad()  # a decorated generator is in this mode only while it runs, not while its consumer does
    def stream_patches(
        self, patches: Any, positions: Any, *, base_index: Any = None
    ) -> Iterator[tuple[IntArray, tuple[Tensor, ...], int]]:
        """As `forward_patches`, group by group: indices of the queries, their flat outputs, number of all queries."""
        if self._store is None:
            raise NotMaterializedError("no base image yet: call materialize(image) before forward_patches")
        self._check_weights()
        where = as_positions(positions, len(self.plan.patch_shape))
        source, sizes = patch_source(patches, self.plan, len(where), self._like)
        check_positions(where, self.plan, sizes)
        bases = check_base_index(base_index, len(where), self._store.count)
        finite = self._finite and is_finite(patches)  # fused activations would turn NaN into 0
        if self.policy not in get_args(Policy):
            raise InputError(f"the module's policy is {self.policy!r}; allowed are {', '.join(get_args(Policy))}")
        executor = self.executor() if finite else Executor(self.plan, self.front, self.tail, self._full())
        for rows, outputs in executor.stream(self._store, source, where, bases, self.policy):
            yield rows, outputs, len(where)

    def restore(self, results: Sequence[Tensor]) -> Any:
        """Put the tail's flat results into the structure that the model returns."""
        flat = [results[entry] if isinstance(entry, int) else entry[0] for entry in self._outputs]
        return pytree.tree_unflatten(flat, self._out_spec)

    def activation_of(self, key: Any) -> str | None:
        """The final softmax or sigmoid of one part of a structured output; None for the first that isn't constant."""
        if key is None:
            return next(
                (a for a, entry in zip(self.activations, self._outputs, strict=True) if isinstance(entry, int)), None
            )
        named = pytree.tree_unflatten(list(range(len(self._outputs))), self._out_spec)
        index = getattr(named, key) if isinstance(key, str) and not isinstance(named, dict) else named[key]
        return self.activations[index] if isinstance(index, int) else None

    def work_share(self) -> float:
        """Estimated multiply-adds of one query, as a share of a full inference's."""
        full = max(self.plan.full_macs(), 1)
        boxes = evaluate(self.plan.regions, patch_regions(centre(self.plan), self.plan.patch_shape))
        cells = [float(box.cells[0]) for box in boxes]
        macs = sum(c * w for c, w in zip(cells, self.plan.cell_macs(), strict=True)) + self.plan.dense_macs()
        return min(macs / full, 1.0)

    def executor(self) -> Executor:
        """The runner of front and tail, made at first use."""
        if self._executor is None:
            front, tail = self.front, self.tail
            if available(self._like.dtype, self._like.device):
                usual = geometry(self.plan, centre(self.plan), self.plan.patch_shape)
                front, tail = (
                    lower(front, {name: where.extent for name, where in usual.items()}),
                    lower(tail, {}, owned=True),
                )
            self._executor = Executor(self.plan, front, tail, self._full())
        return self._executor

    def _full(self) -> fx.GraphModule:
        return full_graph(self.materializer, [isinstance(entry, int) for entry in self._outputs])

    def refresh(self) -> None:
        """Compile again after the model's weights changed; drops the base images."""
        if self.recompile is None:
            raise StaleWeightsError("this module holds no model to compile again")
        self.__dict__.update(self.recompile(self.model).__dict__)

    def _check_weights(self, *, hashed: bool = False) -> None:
        if self.training:
            raise ModelModeError("the module is in training mode, but was compiled for inference: call inc.eval()")
        if not self._weights.matches(self.model, hashed=hashed):
            raise StaleWeightsError("the model's weights changed after compilation: call inc.refresh()")

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles are made without what can be made again: prepacked weights and base images."""
        dropped: dict[str, Any] = {"_executor": None, "_store": None, "base_output": None, "_flat_base": []}
        notes = {part: take_notes(getattr(self, part)) for part in _GRAPHS}
        return {**self.__dict__, **dropped, "_notes": notes}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """See `__getstate__`."""
        notes = state.pop("_notes")
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        for part, of_calls in notes.items():
            restore_notes(getattr(self, part), of_calls)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> IncrementalModule:
        """Moves keep the plan, casts compile again (folded weights would keep the old rounding); bases are dropped."""
        current, dtype = self._weights.matches(self.model), self._like.dtype
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._store, self._executor, self.base_output, self._flat_base = None, None, None, []
        if self._like.dtype != dtype and self.recompile is not None:
            self.refresh()
        elif current:
            self._weights = Fingerprint(self.model)
        return self


def _channels_last(batch: Tensor) -> Tensor:
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    return batch.contiguous(memory_format=formats.get(batch.dim(), torch.contiguous_format))
