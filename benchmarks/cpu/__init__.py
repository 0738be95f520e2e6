"""Parts of the CPU benchmark (`benchmarks/occlusion.py` is its command line)."""
