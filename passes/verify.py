"""Verify a plan: what every later stage relies on."""

from __future__ import annotations

from kcompile.core.errors import VerificationError
from kcompile.core.plan import RAW_PATCH, Placement, Plan
from kcompile.core.region import MappedRegion
from kcompile.passes.planning import overhang


def verify_plan(plan: Plan) -> None:
    """Check a plan's internal consistency.

    Raises:
        VerificationError: Names the entry and what is wrong with it.
    """
    problem = _regions(plan) or _reads(plan) or _layers(plan)
    if problem:
        raise VerificationError(f"plan: {problem}")


def _regions(plan: Plan) -> str | None:
    for i, entry in enumerate(plan.regions):
        if not isinstance(entry, MappedRegion):
            if i:
                return f"r{i}: only region 0 may be the input's"
            continue
        for source, maps in zip(entry.sources, entry.maps, strict=True):
            if not 0 <= source < i:
                return f"r{i} is made of r{source}, which does not come before it"
            read, have = tuple(m.in_size for m in maps), plan.regions[source].shape
            if read != have:
                return f"r{i}: its maps read size {read}, r{source} has {have}"
            if tuple(m.out_size for m in maps) != entry.shape:
                return f"r{i}: its maps give size {tuple(m.out_size for m in maps)}, not {entry.shape}"
    return None


def _reads(plan: Plan) -> str | None:
    bases = {base.name: base for base in plan.bases}
    for read in plan.reads:
        base = bases.get(read.base)
        if base is None:
            return f"read {read.name}: no base tensor {read.base}"
        size = tuple(m.in_size for m in read.maps)
        if base.sizes != size:
            return f"read {read.name}: its maps read size {size}, {base.name} is {base.shape}"
        if read.target is not None and plan.regions[read.target].shape != tuple(m.out_size for m in read.maps):
            return f"read {read.name}: its maps do not give the size of r{read.target}"
        if read.patch not in (None, RAW_PATCH) and plan.regions[read.patch or 0].shape != base.sizes:
            return f"read {read.name}: the patch tensor r{read.patch} is not of the size of {base.name}"
        if any(
            need > have
            for wish, pad in zip(overhang(read.maps), base.padding, strict=True)
            for need, have in zip(wish, pad, strict=True)
        ):
            return f"read {read.name}: its window can stick out of {base.name}'s padding"
    return None


def _layers(plan: Plan) -> str | None:
    placement = {layer.name: layer.placement for layer in plan.layers}
    for layer in plan.layers:
        before = {placement[name] for name in layer.inputs if name in placement}
        if Placement.DENSE in before and layer.placement is Placement.INCREMENTAL:
            return f"{layer.name} is {layer.placement} but follows a dense node"
        if layer.placement is Placement.INCREMENTAL and layer.region is None:
            return f"{layer.name} is incremental without a region"
        if layer.placement is Placement.DENSE and not layer.reason:
            return f"{layer.name} is dense without a reason"
    return None
