"""Long runs: ``python -m tests.fuzz --graphs 10000 --jobs 2 --state .fuzz``; a run that was stopped goes on."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import sys
from pathlib import Path

from tests.fuzz.campaign import Tally
from tests.fuzz.chunks import CHUNK, record_of, run_chunk


def main() -> int:
    """Check the chunks that are not done yet; 1 if a graph is inferred wrongly."""
    options = _options()
    options.state.mkdir(parents=True, exist_ok=True)
    chunks = -(-options.graphs // CHUNK)
    seed = _seed(options.state, options.seed, chunks)
    done = {number: Tally(**json.loads(record_of(options.state, number).read_text()))
            for number in range(chunks) if record_of(options.state, number).exists()}  # fmt: skip
    print(f"run seed: {seed} (repeat with --seed {seed}); {len(done)} of {chunks} chunks are done", flush=True)
    left = [(options.state, seed, number) for number in range(chunks) if number not in done]
    total, failures = Tally(), 0
    for tally in done.values():
        total.add(tally)
    with multiprocessing.get_context("spawn").Pool(options.jobs) as pool:
        for number, tally, message in pool.imap_unordered(run_chunk, left):
            if tally is None:
                failures += 1
                print(f"chunk {number} FAILED: {message}", flush=True)
                continue
            total.add(tally)
            print(f"chunk {number}: {tally}", flush=True)
        pool.close()
        pool.join()
    print(f"{total}; {failures} failing chunks")
    return 1 if failures else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--graphs", type=int, default=10000, help="how many, in chunks of 100")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--state", type=Path, default=Path(".fuzz"), help="folder that remembers chunks that are done")
    parser.add_argument("--seed", type=int, help="the run's seed; another one than the folder's begins a new run")
    return parser.parse_args()


def _seed(state: Path, given: int | None, chunks: int) -> int:
    """The seed of the run in the folder; a fresh one, and an empty folder, if that is finished or another is wanted."""
    file = state / "seed"
    old = int(file.read_text()) if file.exists() else None
    finished = all(record_of(state, number).exists() for number in range(chunks))
    if old is not None and (given == old if given is not None else not finished):
        return old
    for record in state.glob("chunk-*.json"):
        record.unlink()
    seed = random.SystemRandom().randrange(2**32) if given is None else given
    file.write_text(str(seed))
    return seed


if __name__ == "__main__":
    sys.exit(main())
