"""Paired timings of whole maps against named baselines; see README.md for the commands."""
