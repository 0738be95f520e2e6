"""Hypothesis without deadlines: the machine may be busy."""

from hypothesis import settings

settings.register_profile("kcompile", deadline=None)
settings.load_profile("kcompile")
