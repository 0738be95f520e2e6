"""Approximate maps: how similar they are to the exact ones, whether promises are kept, and what it gains."""
