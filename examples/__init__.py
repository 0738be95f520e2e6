"""Runnable examples; import them from the root of a checkout."""
