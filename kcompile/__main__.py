"""`python -m kcompile`."""

from kcompile.cli import app

app(prog_name="kcompile")
