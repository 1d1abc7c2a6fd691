"""A large header is refused within twice its own size of memory, and accepted as a small one is. (FAULTS A1)"""

from __future__ import annotations

import json
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tiny_checkpoints import header_bytes

from sftm_app.errors import CheckpointError
from sftm_app.weights.header import read_header
from sftm_app.weights.large_header import LARGE_BYTES, fault_of


def tensors(n: int, **more: Any) -> dict[str, Any]:
    """A valid header of n tensors of a byte each."""
    return {f"w{i}": {"dtype": "U8", "shape": [1], "data_offsets": [i, i + 1]} for i in range(n)} | more


def text(header: Any) -> bytes:
    return json.dumps(header, separators=(",", ":")).encode()


def at(begin: int, end: int) -> dict[str, Any]:
    return {"dtype": "U8", "shape": [end - begin], "data_offsets": [begin, end]}


FORMS = {
    "plain": text(tensors(3)),
    "empty": b" { } ",
    "spaces": json.dumps(tensors(3), indent=3).encode(),
    "metadata": text({"__metadata__": {"format": "pt", "a": 'b"\\{}é'}} | tensors(2)),
    "metadata last": text(tensors(2, __metadata__={})),
    "other order": b'{"a":{"data_offsets":[0,1],"shape":[1],"dtype":"U8"}}',
    "escapes": b'{"\\u0061\\"b":{"dtype":"U8","shape":[],"data_offsets":[0,1]}}',
    "eight dimensions": text({"a": {"dtype": "U8", "shape": [1] * 8, "data_offsets": [0, 1]}}),
    "any order of bytes": text({"b": at(1, 2), "a": at(0, 1), "none": at(1, 1)}),
}


@pytest.mark.parametrize("name", FORMS)
def test_the_form_of_valid_headers_is_accepted(name: str) -> None:
    assert fault_of(FORMS[name]) == ""


FAULTS = {
    "a list": (b"[1]", "is not a table"),
    "nothing": (b"", "is not a table"),
    "a number": (b'{"a":1}', "no tensor"),
    "a nest": (b'{"a":[[],[]]}', "no tensor"),
    "a minus": (b'{"a":{"dtype":"U8","shape":[-0],"data_offsets":[0,0]}}', "no tensor"),
    "nine dimensions": (text({"a": {"dtype": "U8", "shape": [1] * 9, "data_offsets": [0, 1]}}), "no tensor"),
    "an unknown field": (text({"a": {**at(0, 1), "x": 1}}), "no tensor"),
    "no offsets": (b'{"a":{"dtype":"U8","shape":[1],"shape":[1]}}', "without offsets"),
    "reversed": (b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[2,1]}}', "impossible offsets"),
    "twice": (b'{"a":' + text(at(0, 1)) + b',"a":' + text(at(1, 2)) + b"}", "a name twice"),
    "twice, spelled otherwise": (b'{"a":' + text(at(0, 1)) + b',"\\u0061":' + text(at(1, 2)) + b"}", "a name twice"),
    "hole": (text({"a": at(0, 1), "b": at(2, 3)}), "a hole or an overlap"),
    "overlap": (text({"a": at(0, 2), "b": at(1, 3)}), "a hole or an overlap"),
    "metadata of numbers": (b'{"__metadata__":{"a":1}}', "no tensor"),
    "more after it": (text(tensors(1)) + b" x", "goes on"),
    "cut off": (text(tensors(2))[:-1], "no tensor"),
    "a long name": (text({"a" * 5000: at(0, 1)}), "no tensor"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_is_not_a_header_is_said(name: str) -> None:
    raw, said = FAULTS[name]
    assert said in fault_of(raw)


HOSTILE = {
    "nest": b'{"a":[' + b"[]," * 700_000 + b"0]}",
    "texts": b'{"a":[' + b'"",' * 700_000 + b'""]}',
    "deep": b'{"a":' * 400_000,
    "name": b'{"' + b"\\u0061" * 350_000 + b'":1}',
    "metadata": b'{"__metadata__":{' + b'"a":"",' * 300_000 + b'"b":1}}',
    "overlap at the end": text(tensors(12_000, x=at(5, 6))),
    "twice": text(tensors(12_000))[:-1] + b',"w0":' + text(at(12_000, 12_001)) + b"}",
    "trailing": text(tensors(12_000)) + b"x",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_refused_header_takes_at_most_twice_its_size(tmp_path: Path, name: str) -> None:
    raw = HOSTILE[name]
    assert len(raw) > LARGE_BYTES
    file = tmp_path / "model.safetensors"
    file.write_bytes(header_bytes(raw, bytes(12_001)))
    del raw
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match="the header "):
            read_header(file)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2.2 * len(HOSTILE[name])


def test_a_large_header_is_read_as_safetensors_writes_it(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    save_file({f"layer.{i}.weight": torch.zeros(2, dtype=torch.float16) for i in range(9000)}, file, {"k": 'é"{'})
    started = time.perf_counter()
    header = read_header(file)
    assert time.perf_counter() - started < 5
    assert len(header.tensors) == 9000 and header.metadata == {"k": 'é"{'}
