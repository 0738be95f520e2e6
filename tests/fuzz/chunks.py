"""One chunk of a long run. Apart from `__main__`, which spawned processes can't import."""

from __future__ import annotations

import json
import random
from dataclasses import asdict
from pathlib import Path

import torch

from tests.fuzz.campaign import Tally, WrongGraphError, search

CHUNK = 100


def record_of(state: Path, number: int) -> Path:
    """The file that says that a chunk is done."""
    return state / f"chunk-{number:05}.json"


def run_chunk(job: tuple[Path, int, int]) -> tuple[int, Tally | None, str]:
    """One chunk, in a process of its own; a chunk that fails is not recorded, so that it runs again."""
    state, seed, number = job
    torch.set_num_threads(1)
    try:
        tally = search(random.Random(f"{seed}/{number}").randrange(2**32), CHUNK)
    except WrongGraphError as error:
        return number, None, str(error)
    except Exception as error:  # of the fuzzer itself: the other chunks go on
        return number, None, repr(error)
    part = record_of(state, number).with_suffix(".part")
    part.write_text(json.dumps(asdict(tally)))
    part.rename(record_of(state, number))
    return number, tally, ""
