"""Ops after which a position is no longer visible in the tensor's shape, and heads."""

from __future__ import annotations

from kcompile.passes.record import OpRecord
from kcompile.passes.rules.registry import Refusal, Spatial, rule


@rule("aten.view.default", "aten.reshape.default", "aten._unsafe_view.default", "aten.flatten.using_ints")
def flatten(record: OpRecord) -> Spatial | Refusal:
    """After a flatten every feature may have changed (Krypton section 2.2, global context)."""
    return Refusal("flattening makes positions into features: what follows reads the whole map")


@rule("aten.linear.default", "aten.addmm.default", "aten.mm.default")
def linear(record: OpRecord) -> Spatial | Refusal:
    """A fully connected layer reads everything (Krypton section 2.2, global context)."""
    return Refusal("a fully connected layer reads the whole map")
