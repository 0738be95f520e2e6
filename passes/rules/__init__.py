"""Spatial rules: one file per kind of op. Importing this package fills the registry."""

from kcompile.passes.rules import channels, conv, pointwise, pool, shape

__all__ = ["channels", "conv", "pointwise", "pool", "shape"]
