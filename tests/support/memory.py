"""Measures memory: what PyTorch's allocator hands out while a function runs."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from kcompile.cuda_ops import slab


def peak_bytes(function: Callable[[], Any]) -> int:
    """Most bytes at any time that a function holds of PyTorch's CPU memory; what it frees of others' does not count.

    Memory inside of ops counts too (temporary tensors), what oneDNN takes for itself doesn't. Nothing goes into slabs
    meanwhile, which PyTorch doesn't count.
    """
    outside = mock.patch.object(slab, "LEAST", sys.maxsize)
    with outside, profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled, torch.no_grad():
        result = function()
        del result
    assert profiled.profiler is not None
    events = [event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    return int(np.cumsum([event.nbytes() for event in events]).max(initial=0))
