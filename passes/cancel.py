"""Cancel gather/superimpose pairs that undo each other, and fuse the pairs that are left."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx

from kcompile.core.plan import RAW_PATCH, Read
from kcompile.passes.infra import PassResult, calls, finish

ops = torch.ops.kcompile


def cancels(read: Read) -> bool:
    """True if the window is the patch tensor's own box for every batch: nothing of the base shows.

    The maps are identities and the op's region is the input's region (one number: equal for every possible patch), so
    both get the same box whatever the batch's extents are.
    """
    return read.patch not in (None, RAW_PATCH) and read.patch == read.target and read.maps_are_identities


@dataclass(frozen=True)
class CancelPairs:
    """Replace ``superimpose(gather(base), patch)`` by ``patch`` where `cancels` holds."""

    name: str = "cancel-pairs"

    def apply(self, module: fx.GraphModule) -> PassResult:
        """Rewrite each such pair."""
        modified = False
        for node in calls(module, ops.superimpose.default):
            if cancels(node.meta["read"]):
                patch = node.args[1]
                assert isinstance(patch, fx.Node)
                node.replace_all_uses_with(patch)
                module.graph.erase_node(node)
                modified = True
        return finish(module, modified)

    def postcondition(self, module: fx.GraphModule) -> str | None:
        """No such pair is left."""
        left = [node for node in calls(module, ops.superimpose.default) if cancels(node.meta["read"])]
        return f"{left[0]} shows nothing of the base" if left else None


@dataclass(frozen=True)
class FusePairs:
    """Make one op of a gather and the superimpose that alone uses it: the window is written once."""

    name: str = "fuse-pairs"

    def apply(self, module: fx.GraphModule) -> PassResult:
        """Rewrite each pair."""
        modified = False
        for node in calls(module, ops.superimpose.default):
            gather, patch, offsets = node.args
            if not isinstance(gather, fx.Node) or gather.target is not ops.gather.default or len(gather.users) > 1:
                continue
            base, origins, extent = gather.args
            with module.graph.inserting_before(node):
                name = node.name.replace("superimpose_", "gather_superimpose_", 1)
                both = module.graph.create_node(
                    "call_function", ops.gather_superimpose.default, (base, patch, origins, offsets, extent), name=name
                )
            both.meta = dict(node.meta)
            node.replace_all_uses_with(both)
            module.graph.erase_node(node)
            modified = True
        return finish(module, modified)

    def postcondition(self, module: fx.GraphModule) -> str | None:
        """Every superimpose that is left lies over something else than its own gather."""
        return None


@dataclass(frozen=True)
class DropUnusedInputs:
    """Drop the placeholders (base tensors and geometry) that no op uses any more."""

    name: str = "drop-unused-inputs"

    def apply(self, module: fx.GraphModule) -> PassResult:
        """Erase them; ``patches``, the first, stays."""
        unused = [node for node in list(module.graph.nodes)[1:] if node.op == "placeholder" and not node.users]
        for node in unused:
            module.graph.erase_node(node)
        return finish(module, bool(unused))

    def postcondition(self, module: fx.GraphModule) -> str | None:
        """Every placeholder but the first is used."""
        left = [node for node in list(module.graph.nodes)[1:] if node.op == "placeholder" and not node.users]
        return f"{left[0]} is unused" if left else None


def used_reads(module: fx.GraphModule) -> list[str]:
    """Names of the reads that are left in a front graph, in order."""
    nodes = calls(module, ops.gather.default, ops.superimpose.default, ops.gather_superimpose.default)
    return list(dict.fromkeys(node.meta["read"].name for node in nodes))
