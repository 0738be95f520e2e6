"""Files in the user's cache directory that can be made again: whole or not there, whatever happens meanwhile."""

from __future__ import annotations

import hashlib
import os
import tempfile
from contextlib import suppress
from pathlib import Path

from kcompile.cuda_ops.native_build import cache_directory

DIGEST = hashlib.sha256().digest_size


def folder() -> Path | None:
    """Where they are kept; None where nowhere."""
    try:
        return cache_directory()
    except RuntimeError:  # no home directory
        return None


def read(file: Path) -> bytes | None:
    """What `write` kept, unless damaged."""
    try:
        whole = file.read_bytes()
    except OSError:
        return None
    digest, content = whole[:DIGEST], whole[DIGEST:]
    return content if hashlib.sha256(content).digest() == digest else None


def write(file: Path, content: bytes) -> None:
    """Keep it; other processes see all of it or nothing. A folder that can't be written is no error."""
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=file.parent, prefix=".writing-")
        try:
            with os.fdopen(handle, "wb") as out:
                out.write(hashlib.sha256(content).digest() + content)
            os.replace(temporary, file)
        except BaseException:
            os.unlink(temporary)
            raise
