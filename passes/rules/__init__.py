"""Spatial rules: one file per kind of op. Importing this package fills the registry."""

from kcompile.passes.rules import borders, channels, conv, layout, pointwise, pool, resize

__all__ = ["borders", "channels", "conv", "layout", "pointwise", "pool", "resize"]
