"""Arrays of a safetensors file without copies: the pages of a mapped file are shared by all processes that serve it.

The library copies every tensor that it gives out, so the layout (a length, a JSON header, the bytes) is read here.
Reference: https://huggingface.co/docs/safetensors, section "Format".
"""

from __future__ import annotations

import json
import math
import mmap
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tracer.errors import ArchiveError

_DTYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1",
    "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "u1", "BOOL": "?",
}  # fmt: skip
_MAX_HEADER = 100_000_000


def mapped(path: Path) -> mmap.mmap | bytes:
    """The content of a file, mapped read-only; an empty file as bytes, since it cannot be mapped."""
    with path.open("rb") as file:
        if not path.stat().st_size:
            return b""
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def arrays_of(content: mmap.mmap | bytes) -> dict[str, NDArray[Any]]:
    """Read-only views of the tensors, by name. Raises ArchiveError where the layout is not that of safetensors."""
    try:
        size = int.from_bytes(content[:8], "little")
        if len(content) < 8 or size > min(len(content) - 8, _MAX_HEADER):
            raise ArchiveError("the arrays are cut short")
        header = json.loads(content[8 : 8 + size])
        view = memoryview(content)[8 + size :]
        return {name: _array(view, spec) for name, spec in header.items() if name != "__metadata__"}
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise ArchiveError(f"the arrays cannot be read: {error!r}") from error


def _array(view: memoryview, spec: dict[str, Any]) -> NDArray[Any]:
    dtype, shape = np.dtype(_DTYPES[spec["dtype"]]), tuple(map(int, spec["shape"]))
    begin, end = map(int, spec["data_offsets"])
    n = math.prod(shape)
    if min(shape, default=0) < 0 or not 0 <= begin <= end <= len(view) or end - begin != n * dtype.itemsize:
        raise ValueError(f"{spec} does not fit {len(view)} bytes")
    flat = np.frombuffer(view[begin:end], dtype=dtype) if n else np.empty(0, dtype=dtype)
    return flat.reshape(shape)
