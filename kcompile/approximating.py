"""Approximating: the scorer that a setting asks for, on modules that are compiled for it."""

from __future__ import annotations

from dataclasses import replace

import torch

from kcompile.approximation import Approximation
from kcompile.core.errors import InputError
from kcompile.corrected import Corrected, Whole
from kcompile.linear_scorer import Linear
from kcompile.remainder import Remainder
from kcompile.scorers import Exact, Question, Scorer
from kcompile.variants import Changes, Cropping, changed, has_gates, in_dtype


def approximate(question: Question, approximation: Approximation) -> Scorer:
    """What gives approximate scores.

    Raises:
        InputError: The model, or the state that it runs in, can't have this approximation.
    """
    if approximation.gates == "linear" and not approximation.linear:
        raise InputError("gates is 'linear', which needs a cut (0.99, say): what gates change goes into its gradient")
    if torch.is_autocast_enabled(question.inc._like.device.type):
        raise InputError(f"approximation is {approximation}: it can't run under autocast")
    asked = question
    if approximation.dtype is not None:
        question = replace(question, inc=in_dtype(question.inc, approximation.dtype))
    changes = Changes(Cropping(approximation.tau, approximation.extents), approximation.gates != "exact")
    if approximation.gates != "exact" and not has_gates(question.inc):
        raise InputError(f"gates is {approximation.gates!r}, but this model has no global gates; allowed is 'exact'")
    if approximation.linear:
        if approximation.rest == "linear":
            return _remainder(question, approximation, changes)
        linear = Linear(question, approximation, changes)
        return Corrected(asked, linear, approximation.correct) if approximation.correct else linear
    cropped = Exact(replace(question, inc=changed(question.inc, changes)))
    return Corrected(asked, Whole(cropped), approximation.correct) if approximation.correct else cropped


def _remainder(question: Question, approximation: Approximation, changes: Changes) -> Scorer:
    core = Exact(replace(question, inc=changed(question.inc, changes)))
    whole = Linear(question, approximation, replace(changes, cropping=Cropping()))
    return Remainder(core, whole, Linear(question, approximation, changes))
