"""The version of kcompile."""

__version__ = "0.1.0"
