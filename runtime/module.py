"""IncrementalModule: a compiled model that infers patched copies of base images incrementally."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from kcompile.core.errors import (
    InputError,
    MemoryBudgetError,
    ModelModeError,
    NotMaterializedError,
    StaleWeightsError,
)
from kcompile.core.interval import IntArray
from kcompile.core.plan import Plan
from kcompile.cuda_ops.slab import release
from kcompile.runtime.autocast import autocast_dtype, described
from kcompile.runtime.base_store import BaseStore
from kcompile.runtime.budget import check_budget
from kcompile.runtime.executor import Executor, Group, Policy
from kcompile.runtime.fingerprint import Fingerprint
from kcompile.runtime.folding import Folding
from kcompile.runtime.inputs import Given, Inputs
from kcompile.runtime.memory import Memory
from kcompile.runtime.outputs import Outputs, Regions, place
from kcompile.runtime.portable import Portable
from kcompile.runtime.queries import channels_last, is_finite, magnitude, widest
from kcompile.runtime.query import Queries, read_queries
from kcompile.runtime.returning import Returning
from kcompile.runtime.runners import Runners
from kcompile.runtime.scheduler import work_share
from kcompile.runtime.tracking import infer, modes
from kcompile.runtime.transfers import upload
from kcompile.runtime.two_boxes import BASES, TwoBoxes


class IncrementalModule(Portable):
    """A model with its plan and graph modules; made by `kcompile.incrementalize`.

    Attributes:
        plan: What was decided at compile time; ``print(inc.plan)`` shows it.
        front: The incremental graph, with explicit gather and superimpose ops; ``print(inc.front.code)``.
        tail: The dense graph behind it.
        base_output: The model's output for the materialised images, or None.
        policy: "auto" runs a call incrementally or, where that is faster, in full (few queries, early gates, patches
            that reach everything); "incremental" and "full" force it. Results agree up to rounding.
        memory_budget: Most bytes that base images and queries take together, or None. It may be set at any time.
        switches_autocast: The model enters or leaves autocast by itself; then it can't be materialised inside of it.
    """

    policy: Policy = "auto"
    _memory_budget: int | None = None
    _tracks: bool = False  # a class attribute, so that `refresh` keeps what `track_base` set
    _autocast: torch.dtype | None

    def __init__(
        self,
        model: nn.Module,
        plan: Plan,
        modules: tuple[fx.GraphModule, fx.GraphModule, fx.GraphModule],
        inputs: Inputs,
        outputs: Outputs,
        like: Tensor,
        folding: Folding | None = None,
    ) -> None:
        """Hold the results of compilation; ``modules`` are materialize, front and tail."""
        super().__init__()
        self.model = model
        self.materializer, self.front, self.tail = modules
        self.plan, self.inputs, self.outputs = plan, inputs, outputs
        self.folding = folding or Folding()
        self.register_buffer("_like", like.new_empty(0), persistent=False)
        self.recompile: Callable[[nn.Module], IncrementalModule] | None = None
        self.base_output: Any = None
        self._store: BaseStore | None = None
        self._flat_base: list[Any] = []
        self._ordinary, self._widest = True, 0.0
        self.runners = Runners(self)
        self.switches_autocast, self._autocast = False, None
        self.watch()
        self._modes = modes(self.model)
        self._earlier: Tensor | None = None
        self.training = False

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the original model returns.

        Once there is a base (`materialize`, `track_base`), rows that differ from theirs only inside a box of the
        compiled patch shape are inferred incrementally, those that equal it get its output, the others run in full. Row
        i is compared with base i mod B. The original module runs where a call isn't plain inference: gradients of the
        images, autocast, training mode, new forward hooks, changed weights, other shapes, types or arguments.
        """
        if self._store is None and not self._tracks:
            return self.model(*args, **kwargs)
        return infer(self, args, kwargs)

    def track_base(self, enabled: bool = True) -> IncrementalModule:
        """Let calls of the module set its base images, so that explainers written for a plain model gain unchanged.

        A call of B rows becomes the base (B images) if none of its rows is recognised against the current one or the
        one before.

        Args:
            enabled: False keeps the base that there is; `drop_base` forgets it.

        Returns:
            The module itself.
        """
        self._tracks = enabled
        return self

    def drop_base(self) -> None:
        """Forget the base images and what was kept of them; memory that this thread's queries used goes back."""
        self._store, self._earlier, self.base_output, self._flat_base = None, None, None, []
        release()

    @torch.no_grad()
    def materialize(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model once on base images and keep what queries will read.

        Args:
            *args: One image [C, *S] or several [B, C, *S]; for a model with several inputs all of them, as the model
                itself is called.
            **kwargs: Inputs that are given by name.

        Returns:
            The model's output for the batch.

        Raises:
            InputError: Wrong shape, type or device.
            StaleWeightsError: The weights changed after compilation.
        """
        self._check_weights()  # first: a model that was cast takes other images
        return self.materialize_given(self.read(*args, **kwargs))

    def read(self, *args: Any, **kwargs: Any) -> Given:
        """The tensors of a call of the model, checked; a lone image becomes a batch of one."""
        return self.inputs.read(args, kwargs, self.plan, self._like)

    @torch.no_grad()
    def materialize_given(self, given: Given) -> Any:
        """As `materialize`, of what `read` returned."""
        self._check_weights(hashed=True)
        autocast = self._checked_autocast()
        if given.whole:
            self.drop_base()  # it is of the tensors that the graphs hold now
        if self.inputs.fill([self.materializer, self.front, self.tail], given):
            self.runners.executors = {}  # they may have packed them
        if (memory := self.runners.checked_memory(len(given.rows[0]), autocast)) is not None:
            self.drop_base()  # two of them needn't fit
        returning, images = Returning(self._memory_budget), channels_last(given.rows[0])
        self._store, flat, finite = self._materialized(images, given.rows[1:], autocast, memory)
        known = [*given.rows, *given.whole.values(), *flat]
        finite = finite and all(is_finite(value) for value in known if isinstance(value, Tensor))
        self._widest = widest(images)
        self._ordinary = finite and magnitude(images) <= self._widest
        self._autocast = autocast
        # What is given away may be written to; rows that equal their base get copies of this.
        self._flat_base = [leaf.clone() if isinstance(leaf, Tensor) else leaf for leaf in flat]
        self.base_output = pytree.tree_unflatten(list(flat), self.outputs.spec)
        returning.check()
        return self.base_output

    def keep_beside(self, tensors: Mapping[str, Tensor]) -> None:
        """Keep more tensors beside the base tensors, for a front that reads ``base_<name>``.

        Args:
            tensors: Each [1, *padded sizes, channels], as the base tensors are.
        """
        assert self._store is not None, "materialize comes first"
        self._store.tensors.update(tensors)

    def _checked_autocast(self) -> torch.dtype | None:
        if (now := autocast_dtype(self._like.device)) is not None and self.switches_autocast:
            raise ModelModeError(
                "the model enters or leaves autocast by itself, and its graph has only the casts: call materialize "
                "and forward_patches outside of torch.autocast"
            )
        return now

    def _materialized(
        self,
        images: Tensor,
        others: tuple[Tensor, ...],
        autocast: torch.dtype | None,
        memory: Memory | None = None,
        held: int = 0,
    ) -> tuple[BaseStore, list[Any], bool]:
        """The store of images, the flat outputs for them, and whether all that is stored is finite."""
        runner = self.runners.materializer(autocast)
        if memory is None:
            tensors, flat, finite = runner.run(images, others)
        else:
            at_once = memory.at_once(len(images), held)
            tensors, flat, finite = runner.run(images, others, at_once, memory.rows())
            held += 2 * sum(leaf.numel() * leaf.element_size() for leaf in flat if isinstance(leaf, Tensor))
        return BaseStore(tensors, images, others, held), flat, finite

    @property
    def memory_budget(self) -> int | None:
        """Most bytes that base images and queries take together, or None."""
        return self._memory_budget

    @memory_budget.setter
    def memory_budget(self, value: int | None) -> None:
        before, self._memory_budget = self._memory_budget, check_budget(value)
        self.runners = Runners(self)
        try:
            self.runners.checked_memory(1, autocast_dtype(self._like.device))
        except MemoryBudgetError:
            self._memory_budget, self.runners = before, Runners(self)
            raise

    def most_bases(self, most: int) -> int:
        """How many base images fit into the memory budget at once, up to ``most``; at least 1."""
        return self.runners.most_bases(most)

    def chunk_bytes(self) -> int:
        """Most bytes of patches to make at a time, where they differ by position."""
        return self.runners.chunk_bytes()

    @torch.no_grad()
    def forward_patches(
        self,
        patches: Any,
        positions: Any,
        *,
        base_index: Any = None,
        mask: Any = None,
        channels: Any = None,
        output: Literal["full", "region"] = "full",
    ) -> Any:
        """The model's output for patched copies of the base images, without building them.

        Args:
            patches: Scalar or [C] (fills the compiled patch shape, or the mask's), [C, h, w] for all queries or
                [N, C, h, w]; for two boxes also [N, 2, C, h, w].
            positions: Integers [N, axes], (row, col) of the patch's top-left corner. A patch may stick out of the image
                (negative positions too): it is cropped. [N, 2, axes] puts two boxes into each query; the second lies
                over the first.
            base_index: Integers [N], which of the materialised images each query is a copy of (default 0).
            mask: [h, w], [N, h, w] or [N, C, h, w] ([N, 2, …] for two boxes), 0 … 1: how much of the patch shows, over
                the base's own pixels (default: all of it).
            channels: Numbers of the channels that the patch changes (default: all).
            output: "full", or "region": outputs that are maps, as `MapRegion`s of what the patches can change.

        Returns:
            The model's output structure for N images.

        Raises:
            NotMaterializedError: No base image yet.
            InputError, PositionError: Bad patches or positions.
            StaleWeightsError: The weights changed after compilation.
        """
        if output not in ("full", "region"):
            raise InputError(f'output is {output!r}; allowed are "full" and "region"')
        queries = self._queries(patches, positions, base_index, mask, channels)
        regions = Regions(self.plan, queries.hull(self.plan.input_shape[1:])) if output == "region" else None
        results: list[Any] | None = None
        outputs: Sequence[Tensor] = ()
        for rows, whole in self._stream(queries):
            outputs = whole if regions is None else regions.cut(rows, whole)
            if results is None:
                results = [out.new_empty((len(queries), *out.shape[1:])) for out in outputs]
            place(results, upload(rows, self._like.device), outputs)
            del whole
            outputs = ()  # nothing of a group is kept while the next one is made
        self._give_back()
        if results is None:
            results = self.outputs.empty(self._flat_base)
            results = results if regions is None else list(regions.cut(np.zeros(0, np.int64), results))
        return self.restore(results if regions is None else regions.wrap(results))

    @torch.no_grad()  # a decorated generator is in this mode only while it runs, not while its consumer does
    def stream_patches(
        self, patches: Any, positions: Any, *, base_index: Any = None, mask: Any = None, channels: Any = None
    ) -> Iterator[tuple[IntArray, tuple[Tensor, ...], int]]:
        """As `forward_patches`, group by group: indices of the queries, their flat outputs, number of all queries."""
        queries = self._queries(patches, positions, base_index, mask, channels)
        try:
            for rows, outputs in self._stream(queries):
                yield rows, outputs, len(queries)
                del outputs
        finally:
            self._give_back()

    def _give_back(self) -> None:
        """Under a budget the memory that queries used goes back to the system after a call."""
        if self._memory_budget is not None:
            release()

    def _queries(self, patches: Any, positions: Any, base_index: Any, mask: Any, channels: Any) -> Queries:
        if self._store is None:
            raise NotMaterializedError("no base image yet: call materialize(image) before forward_patches")
        if (now := autocast_dtype(self._like.device)) != self._autocast:
            raise NotMaterializedError(
                f"the base was made {described(self._autocast)}, this call runs {described(now)}: call "
                "materialize(image) under the same autocast"
            )
        self._check_weights()
        if self.policy not in get_args(Policy):
            raise InputError(f"the module's policy is {self.policy!r}; allowed are {', '.join(get_args(Policy))}")
        count = self._store.count
        return read_queries(self.plan, self._like, count, patches, positions, base_index, mask, channels)

    def _stream(self, queries: Queries) -> Iterator[Group]:
        store = self._store
        assert store is not None
        ordinary = self._ordinary and queries.largest <= self._widest  # what lowered graphs are right for
        usual = ordinary and self._autocast is None
        executor = self.runners.usual() if usual else self.runners.as_emitted(self._autocast)
        if len(queries.boxes) == 1:
            (box,) = queries.boxes

            def patches(rows: IntArray) -> Tensor:
                return box.laid(rows, store.images, queries.base_index[rows], box.positions[rows])

            yield from executor.stream(store, patches, box.positions, queries.base_index, self.policy)
        elif len(queries):
            memory = None if self._memory_budget is None else self.runners.memory(self._autocast)
            most = BASES if memory is None else memory.bases(BASES, store.held)
            yield from TwoBoxes(self.plan, executor, store, self._patched_bases, self.policy, most).stream(queries)

    def _patched_bases(self, images: Tensor, which: IntArray) -> BaseStore:
        """The store of patched base images; ``which`` base each is a copy of."""
        assert self._store is not None
        index = torch.from_numpy(which).to(images.device)
        memory = None if self._memory_budget is None else self.runners.memory(self._autocast)
        others = tuple(other[index] for other in self._store.others)
        return self._materialized(images, others, self._autocast, memory, self._store.held)[0]

    def restore(self, results: Sequence[Any]) -> Any:
        """Put the tail's flat results into the structure that the model returns."""
        return self.outputs.restore(results, self._flat_base)

    def activation_of(self, key: Any) -> str | None:
        """The final softmax or sigmoid of one part of a structured output; None for the first that isn't constant."""
        return self.outputs.activation_of(key)

    def work_share(self) -> float:
        """Estimated multiply-adds of one query, as a share of a full inference's."""
        return work_share(self.plan)

    def new_runners(self) -> None:
        """Forget what runs the graphs, with all that it packed and captured: it is made again at first use."""
        self.runners = Runners(self)

    def executor(self) -> Executor:
        """The runner of front and tail, made at first use."""
        return self.runners.usual()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the compiled module to a file; `kcompile.load` reads it, without the compiler and the model's code.

        Base images and prepacked weights are left out, as in copies and pickles. The file is complete or, where writing
        fails, as it was before.

        Args:
            path: The file, which is replaced if it exists.

        Raises:
            SaveError: The file can't be written, or the model has what files can't hold: operators of other libraries,
                outputs of other classes than dicts, lists, tuples, named tuples and dataclasses.
            StaleWeightsError: The weights changed after compilation.
        """
        from kcompile.runtime.saving import save

        self._check_weights(hashed=True)
        save(self, path)

    def refresh(self) -> None:
        """Compile again after the model's weights changed; drops the base images.

        Raises:
            StaleWeightsError: The module was loaded from a file, and holds no model.
        """
        if self.recompile is None:
            raise StaleWeightsError(
                "this module was loaded from a file and holds no model to compile again: compile the changed model "
                "with kcompile.incrementalize"
            )
        self.__dict__.update(self.recompile(self.model).__dict__)
        self.new_runners()

    def watch(self, unread: frozenset[str] = frozenset()) -> None:
        """Take the weights as they are for those that were compiled; ``unread`` names buffers that don't matter."""
        self._weights = Fingerprint(self.model, unread)

    def _check_weights(self, *, hashed: bool = False) -> None:
        if self.training:
            raise ModelModeError("the module is in training mode, but was compiled for inference: call inc.eval()")
        if not self._weights.matches(self.model, hashed=hashed):
            raise StaleWeightsError("the model's weights changed after compilation: call inc.refresh()")
