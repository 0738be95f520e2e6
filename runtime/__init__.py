"""Runs a plan; imports nothing of the compiler."""
