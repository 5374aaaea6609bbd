"""Our reader of safetensors against the library's, and against damaged files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.numpy import load, save

from tracer.errors import ArchiveError
from tracer.policies.tensors import arrays_of, mapped

DTYPES = ["f4", "f8", "f2", "i8", "i4", "i2", "i1", "u8", "u4", "u2", "u1", "?"]


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(
        st.text("abc./ é", min_size=1, max_size=8),
        st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 4), max_size=3)),
        max_size=5,
    )
)
def test_it_reads_what_the_library_writes(shapes: dict[str, tuple[str, list[int]]]) -> None:
    rng = np.random.default_rng(0)
    arrays: dict[str, NDArray[Any]] = {
        name: rng.integers(0, 2, tuple(shape)).astype(dtype) for name, (dtype, shape) in shapes.items()
    }
    content = save(arrays, metadata={"a": "b"})
    ours, library = arrays_of(content), load(content)
    assert set(ours) == set(library)
    for name, array in library.items():
        assert ours[name].dtype == array.dtype
        assert ours[name].shape == array.shape
        assert np.array_equal(ours[name], array)


def test_a_mapped_file_is_not_copied(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(save({"x": np.arange(1000, dtype=np.float32)}))
    x = arrays_of(mapped(path))["x"]
    assert not x.flags.owndata
    assert not x.flags.writeable
    with path.open("r+b") as file:  # what the file says, the array says: they are the same pages
        file.seek(-4, 2)
        file.write(np.float32(7.0).tobytes())
    assert x[-1] == 7.0


def test_an_empty_file_is_no_archive(tmp_path: Path) -> None:
    path = tmp_path / "empty"
    path.write_bytes(b"")
    with pytest.raises(ArchiveError, match="cut short"):
        arrays_of(mapped(path))


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_cut_file_is_refused(data: st.DataObject) -> None:
    content = save({"x": np.arange(6, dtype=np.float32).reshape(2, 3), "y": np.zeros(3, dtype=np.int64)})
    with pytest.raises(ArchiveError):
        arrays_of(content[: data.draw(st.integers(0, len(content) - 1))])


@pytest.mark.parametrize(
    "spec",
    [
        {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]},
        {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]},
        {"dtype": "F32", "shape": [1 << 62, 4], "data_offsets": [0, 0]},
        {"dtype": "O", "shape": [1], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [1]},
        {"dtype": "F32", "shape": "12", "data_offsets": [0, 8, 8]},
        {"dtype": "F32", "shape": [float("inf")], "data_offsets": [0, 8]},
        [],
        None,
    ],
)
def test_a_header_that_lies_is_refused(spec: object) -> None:
    header = json.dumps({"x": spec}).encode()
    with pytest.raises(ArchiveError, match="arrays"):
        arrays_of(len(header).to_bytes(8, "little") + header + bytes(8))


@pytest.mark.parametrize("header", [b"", b"[1]", b"{", b"\xff", b'"x"', b"[" * 100_000])
def test_a_header_that_is_no_mapping_is_refused(header: bytes) -> None:
    with pytest.raises(ArchiveError, match="arrays"):
        arrays_of(len(header).to_bytes(8, "little") + header + bytes(8))
