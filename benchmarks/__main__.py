"""`python -m benchmarks`: the table of whole maps."""

from benchmarks.occlusion import main

main()
