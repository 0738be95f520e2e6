"""Named errors. Every message says what was given and what is allowed (docs/design.md, section 8)."""


class KCompileError(Exception):
    """Base of every error that kcompile raises on purpose."""


class CaptureError(KCompileError):
    """The model could not be traced to a graph."""


class UnsupportedOpError(KCompileError):
    """An operator without a spatial rule was met under ``on_unsupported="error"``."""


class ModelModeError(KCompileError):
    """The model is in training mode, or its rows influence one another."""


class InputError(KCompileError, ValueError):
    """An image, a patch or a position has a wrong rank, size, type or device."""


class PositionError(InputError):
    """Positions have a wrong type or shape, or lie wholly outside the image."""


class NotMaterializedError(KCompileError):
    """A query came before a base image was materialised."""


class StaleWeightsError(KCompileError):
    """The model's weights changed after compilation."""


class SaveError(KCompileError):
    """A compiled module can't be written to a file, or a file can't be read."""


class MemoryBudgetError(KCompileError):
    """The memory budget is too small for the base images and a single query of them."""


class VerificationError(KCompileError):
    """The verifier found a pass's result to be inconsistent: a fault of the compiler."""


class OnnxExportError(KCompileError):
    """A compiled module can't be exported to ONNX: an op or a type has no counterpart there."""
