"""Spatial rules: one file per kind of op. Importing this package fills the registry."""

from kcompile.passes.rules import borders, channels, conv, pointwise, pool, shape

__all__ = ["borders", "channels", "conv", "pointwise", "pool", "shape"]
