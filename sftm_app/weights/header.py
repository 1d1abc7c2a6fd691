"""Strict reader of the safetensors header.

It reads only the header, never the weights, so 560 tensors take milliseconds. It is stricter than the safetensors
library on purpose: an accepted file has no holes, no overlaps, no duplicate names and exactly the size in its header.

Format: 8 bytes little-endian length N, N bytes of JSON, then the data. https://github.com/huggingface/safetensors
"""

from __future__ import annotations

import errno
import json
import math
import os
import reprlib
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sftm_app.errors import CheckpointError
from sftm_app.weights.large_header import LARGE_BYTES, fault_of
from sftm_app.weights.regular import open_file

MAX_HEADER_BYTES = 16 * 1024 * 1024
MAX_NAME_BYTES = 512
MAX_DIMENSIONS = 8

TORCH_DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "F8_E8M0": torch.float8_e8m0fnu,
    "F4": torch.float4_e2m1fn_x2,
    "C64": torch.complex64,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
DTYPE_CODES = {dtype: code for code, dtype in TORCH_DTYPES.items()}
# What a merge computes with. Everything else is copied byte by byte.
FLOATS = frozenset(TORCH_DTYPES[code] for code in ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"))


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a file. `offset` is where its bytes begin, counted from the start of the file."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int
    n_bytes: int

    @property
    def is_float(self) -> bool:
        """Whether it holds floating-point numbers that a merge computes with; scales and packed pairs are none."""
        return self.dtype in FLOATS


@dataclass(frozen=True)
class FileStamp:
    """Identifies the content of a file together with its path: a write or a replacement gives another stamp.

    ctime_ns is the time of the last change of the file's state (its creation on Windows). Programs cannot set it, so it
    also reveals a write that keeps size and date. A chmod or a new hard link changes it too.
    """

    size_bytes: int
    mtime_ns: int
    ctime_ns: int
    inode: int

    @classmethod
    def of(cls, file: Path | str | int) -> FileStamp:
        """The stamp of a path or of an open descriptor. Raises OSError."""
        status = os.stat(file)
        return cls(status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)


@dataclass(frozen=True)
class Header:
    """The tensors of one file in the order of their bytes, its free-text metadata, and its stamp when it was read."""

    tensors: tuple[TensorInfo, ...]
    metadata: dict[str, str]
    stamp: FileStamp


def shape_in_file(dtype: torch.dtype, shape: tuple[int, ...]) -> list[int]:
    """The shape of a tensor as a header gives it: torch counts pairs of packed 4-bit numbers."""
    return [*shape[:-1], shape[-1] * 2] if dtype == torch.float4_e2m1fn_x2 else list(shape)


def open_regular(path: Path) -> int:
    """Open a regular file for reading and return its descriptor. Raises CheckpointError, also for a pipe or device."""
    try:
        return open_file(path)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: there is no such file. Check the path.") from None
    except PermissionError:
        raise CheckpointError(f"{path}: no permission to read this file. Change its permissions or copy it.") from None
    except (OSError, ValueError) as error:
        if getattr(error, "errno", None) == errno.EINVAL:
            raise CheckpointError(
                f"{path}: is not a regular file. Pick a .safetensors file or the folder that holds it."
            ) from None
        why = getattr(error, "strerror", None) or error
        raise CheckpointError(f"{str(path)[:500]}: cannot be opened ({why}). Check the path.") from None


def read_header(path: Path, max_header_bytes: int = MAX_HEADER_BYTES) -> Header:
    """Read and verify the header of a safetensors file.

    Raises:
        CheckpointError: the file cannot be read, or its header is invalid; names the tensor, expected and found.
    """
    with os.fdopen(open_regular(path), "rb") as file:
        # Taken before the first byte is read, so that any later change of the file changes its stamp.
        stamp = FileStamp.of(file.fileno())
        file_bytes = stamp.size_bytes
        start = file.read(8)
        if file_bytes < 8:
            raise CheckpointError(f"{path}: holds {file_bytes} bytes, too few for a safetensors file. {_AGAIN}")
        length = int.from_bytes(start, "little")
        following = file.read(56)
        # The length of a valid header can look like the start of another format: 640 is how a pickle begins.
        if length > file_bytes - 8 or not following.startswith(b"{"):
            _refuse_other_formats(path, start + following)
        if length > file_bytes - 8:
            raise CheckpointError(
                f"{path}: the header should be {length} bytes long but the file holds {file_bytes} bytes in all. "
                f"It is cut off, or not a safetensors file. {_AGAIN}"
            )
        if length > max_header_bytes:
            raise CheckpointError(
                f"{path}: the header is {length} bytes long, above the limit of {max_header_bytes}. "
                "If the file is valid, raise the limit."
            )
        file.seek(8)
        raw = file.read(length)
    return _verify(path, _parse(path, raw), 8 + length, stamp)


_AGAIN = "Download it again."


def _refuse_other_formats(path: Path, start: bytes) -> None:
    if start.startswith(b"version https://git-lfs"):
        raise CheckpointError(
            f"{path}: is a Git LFS pointer, not the weights themselves. Download it again with `git lfs pull`."
        )
    # A page may begin with a byte-order mark, and be in UTF-16.
    if start.lstrip(b"\xef\xbb\xbf\xff\xfe\0 \t\r\n")[:1] == b"<":
        raise CheckpointError(f"{path}: is a web page saved under this name, not weights. {_AGAIN}")
    if start.startswith((b"PK\x03\x04", b"\x80\x02", b"GGUF")):
        raise CheckpointError(
            f"{path}: is not in safetensors format. Load the model with transformers and save it with "
            "`model.save_pretrained(folder)`, which writes safetensors."
        )


def _parse(path: Path, raw: bytes) -> dict[str, Any]:
    def no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                raise CheckpointError(f"{path}: the header holds the name {key!r} twice. {_AGAIN}")
            found[key] = value
        return found

    if len(raw) > LARGE_BYTES and (fault := fault_of(raw)):
        raise CheckpointError(f"{path}: the header {fault}. {_AGAIN}")
    try:
        header = json.loads(raw.decode("utf-8"), object_pairs_hook=no_duplicates, parse_int=_natural)
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, a number of thousands of digits, too deep
        raise CheckpointError(f"{path}: the header is not valid JSON ({type(error).__name__}). {_AGAIN}") from None
    if not isinstance(header, dict):
        raise CheckpointError(f"{path}: the header is not a table of tensors. {_AGAIN}")
    return header


def _verify(path: Path, header: dict[str, Any], data_start: int, stamp: FileStamp) -> Header:
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(map(_is_text, (*metadata, *metadata.values()))):
        raise CheckpointError(f"{path}: the metadata in the header is not a table of texts. {_AGAIN}")
    infos = sorted((_tensor_info(path, name, entry, data_start) for name, entry in header.items()), key=_by_offset)
    expected = data_start
    for info in infos:
        if info.offset != expected:
            kind = "a hole" if info.offset > expected else "an overlap"
            raise CheckpointError(
                f"{path}: there is {kind} before tensor {info.name!r}: its bytes should start at {expected}, but the "
                f"header says {info.offset}. {_AGAIN}"
            )
        expected += info.n_bytes
    if expected != stamp.size_bytes:
        kind = "is cut off" if stamp.size_bytes < expected else "has bytes after its last tensor"
        raise CheckpointError(
            f"{path}: {kind}: the header asks for {expected} bytes, the file holds {stamp.size_bytes}. {_AGAIN}"
        )
    return Header(tuple(infos), metadata, stamp)


def _by_offset(info: TensorInfo) -> tuple[int, int]:
    return info.offset, info.n_bytes


def _tensor_info(path: Path, name: str, entry: Any, data_start: int) -> TensorInfo:
    _check_name(path, name)
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise CheckpointError(f"{path}: the header entry of tensor {name!r} has missing or unknown fields. {_AGAIN}")
    dtype = TORCH_DTYPES.get(entry["dtype"]) if isinstance(entry["dtype"], str) else None
    if dtype is None:
        raise CheckpointError(
            f"{path}: tensor {name!r} has the type {reprlib.repr(entry['dtype'])}, which is not supported. "
            f"Supported are {', '.join(TORCH_DTYPES)}."
        )
    shape, offsets = entry["shape"], entry["data_offsets"]
    if not _is_naturals(shape) or len(shape) > MAX_DIMENSIONS:
        raise CheckpointError(f"{path}: tensor {name!r} has the impossible shape {reprlib.repr(shape)}. {_AGAIN}")
    if not _is_naturals(offsets) or len(offsets) != 2 or offsets[1] < offsets[0]:
        raise CheckpointError(f"{path}: tensor {name!r} has the impossible offsets {reprlib.repr(offsets)}. {_AGAIN}")
    if math.prod(max(size, 1) for size in shape) >= 2**60:  # its strides would overflow, even if it is empty
        raise CheckpointError(f"{path}: tensor {name!r} has the impossible shape {reprlib.repr(shape)}. {_AGAIN}")
    if dtype == torch.float4_e2m1fn_x2:
        if not shape or shape[-1] % 2:
            raise CheckpointError(f"{path}: tensor {name!r} holds pairs, which shape {shape} cannot. {_AGAIN}")
        shape = [*shape[:-1], shape[-1] // 2]
    expected, found = math.prod(shape) * dtype.itemsize, offsets[1] - offsets[0]
    if expected != found:
        raise CheckpointError(
            f"{path}: tensor {name!r} of shape {entry['shape']} and type {entry['dtype']} needs {expected} bytes, "
            f"the header gives it {found}. {_AGAIN}"
        )
    return TensorInfo(name, dtype, tuple(shape), data_start + offsets[0], found)


def _natural(text: str) -> int:
    """A whole number of the header; -1 for one with a sign, such as -0, which safetensors refuses too."""
    return int(text) if text[0] != "-" else -1


def _is_text(value: Any) -> bool:
    """Whether a value is a text that has a form in UTF-8: half a surrogate pair has none."""
    return isinstance(value, str) and (
        value.isascii() or not any("\ud800" <= character <= "\udfff" for character in value)
    )


def _is_naturals(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 2**63 for item in value)


def _check_name(path: Path, name: str) -> None:
    if name.isascii() and name.isprintable() and 0 < len(name) <= MAX_NAME_BYTES:
        return
    # Bidirectional and other control characters could make one name look like another on the screen.
    if not name or len(name.encode("utf-8", "surrogatepass")) > MAX_NAME_BYTES:
        raise CheckpointError(f"{path}: a tensor name is empty or longer than {MAX_NAME_BYTES} bytes. {_AGAIN}")
    if any(unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp") for character in name):
        raise CheckpointError(f"{path}: the tensor name {name!r} holds control characters. {_AGAIN}")
