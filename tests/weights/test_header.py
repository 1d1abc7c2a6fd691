"""The strict header reader: every file here is made by hand, byte by byte."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tiny_checkpoints import header_bytes

from sftm_app.errors import CheckpointError
from sftm_app.weights.header import TORCH_DTYPES, FileStamp, read_header

F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def entry(start: int, end: int, shape: list[Any] | None = None, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": [(end - start) // 4] if shape is None else shape, "data_offsets": [start, end]}


def read(tmp_path: Path, content: bytes) -> Any:
    file = tmp_path / "model.safetensors"
    file.write_bytes(content)
    return read_header(file)


BAD = {
    "empty": (b"", "0 bytes, too few"),
    "seven bytes": (b"\x02\0\0\0\0\0\0", "7 bytes, too few"),
    "only a length": (header_bytes({})[:8], "should be 2 bytes long but the file holds 8 bytes"),
    "header longer than the file": (
        (1000).to_bytes(8, "little") + b"{}",
        "should be 1000 bytes long .* holds 10 bytes",
    ),
    "length overflows": (b"\xff" * 8 + b"{}", "is cut off, or not a safetensors file"),
    "not UTF-8": (header_bytes(b'{"\xff": 1}'), "not valid JSON"),
    "not JSON": (header_bytes(b"{nonsense"), "not valid JSON"),
    "empty header": (header_bytes(b""), "not valid JSON"),
    "byte order mark": (header_bytes(b"\xef\xbb\xbf{}"), "not valid JSON"),
    "a JSON list": (header_bytes([]), "not a table"),
    "a JSON number": (header_bytes(3), "not a table"),
    "very deep JSON": (header_bytes(b'{"a":' + b"[" * 200_000), "not valid JSON"),
    "a number of 10000 digits": (header_bytes(b'{"a":' + b"9" * 10_000 + b"}"), "not valid JSON"),
    "NUL padding": (header_bytes(json.dumps({"a": F32}).encode() + b"\0" * 4, bytes(8)), "not valid JSON"),
    "Git LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "git lfs pull"),
    "web page": (b"\n <!DOCTYPE html><html><body>404</body></html>", "web page"),
    "short web page": (b"<html></html>", "web page"),
    "zip pickle": (b"PK\x03\x04" + bytes(60), "save_pretrained"),
    "pickle": (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19." + bytes(60), "save_pretrained"),
    "GGUF": (b"GGUF" + bytes(60), "save_pretrained"),
    "cut by a byte": (header_bytes({"a": F32}, bytes(7)), r"cut off.* asks for \d+ bytes, the file holds \d+"),
    "no data": (header_bytes({"a": F32}), "cut off"),
    "trailing bytes": (header_bytes({"a": F32}, bytes(9)), "bytes after its last tensor"),
    "data without tensors": (header_bytes({}, b"x"), "bytes after its last tensor"),
    "a hole": (header_bytes({"a": entry(0, 8), "b": entry(12, 16)}, bytes(16)), "a hole before tensor 'b'"),
    "a hole at the start": (header_bytes({"a": entry(4, 8)}, bytes(8)), "a hole before tensor 'a'"),
    "an overlap": (header_bytes({"a": entry(0, 8), "b": entry(4, 12)}, bytes(12)), "an overlap before tensor 'b'"),
    "the same bytes twice": (header_bytes({"a": entry(0, 8), "b": entry(0, 8)}, bytes(8)), "an overlap"),
    "reversed offsets": (header_bytes({"a": entry(8, 0, [2])}, bytes(8)), "impossible offsets"),
    "negative offsets": (header_bytes({"a": entry(-8, 0, [2])}, bytes(8)), "impossible offsets"),
    "offset overflows": (header_bytes({"a": entry(2**64, 2**64 + 8, [2])}, bytes(8)), "impossible offsets"),
    "three offsets": (header_bytes({"a": F32 | {"data_offsets": [0, 4, 8]}}, bytes(8)), "impossible offsets"),
    "fractional offsets": (header_bytes({"a": F32 | {"data_offsets": [0.0, 8.0]}}, bytes(8)), "impossible offsets"),
    "boolean offset": (header_bytes({"a": entry(0, 1, [1], "U8") | {"data_offsets": [False, True]}}, b"x"), "offsets"),
    "shape against size": (header_bytes({"a": entry(0, 8, [3])}, bytes(8)), r"'a' .*needs 12 bytes, .* gives it 8"),
    "dtype against size": (header_bytes({"a": F32 | {"dtype": "F64"}}, bytes(8)), "needs 16 bytes, .* gives it 8"),
    "shape overflows": (header_bytes({"a": F32 | {"shape": [2**62, 2**62]}}, bytes(8)), "impossible shape"),
    "negative shape": (header_bytes({"a": F32 | {"shape": [-2, -1]}}, bytes(8)), "impossible shape"),
    "shape is a text": (header_bytes({"a": F32 | {"shape": "2"}}, bytes(8)), "impossible shape"),
    "nine dimensions": (header_bytes({"a": F32 | {"shape": [1] * 8 + [2]}}, bytes(8)), "impossible shape"),
    "duplicate names": (
        header_bytes(b'{"a":%s,"a":%s}' % ((json.dumps(F32).encode(),) * 2), bytes(8)),
        "the name 'a' twice",
    ),
    "duplicate fields": (header_bytes(b'{"a":{"dtype":"F32","dtype":"F32"}}'), "'dtype' twice"),
    "unknown field": (header_bytes({"a": F32 | {"strides": [1]}}, bytes(8)), "missing or unknown fields"),
    "missing field": (header_bytes({"a": {"dtype": "F32", "shape": [2]}}, bytes(8)), "missing or unknown fields"),
    "entry is no table": (header_bytes({"a": 7}), "missing or unknown fields"),
    "unknown dtype": (
        header_bytes({"a": F32 | {"dtype": "F6_E2M3"}}, bytes(8)),
        "type 'F6_E2M3', which is not supported",
    ),
    "half a surrogate pair in the metadata": (
        header_bytes(b'{"__metadata__":{"\\ud800":"x"}}'),
        "not a table of texts",
    ),
    "half a pair": (header_bytes({"a": entry(0, 2, [4, 1], "F4")}, bytes(2)), "holds pairs, which shape .* cannot"),
    "offsets of -0": (header_bytes(b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[-0,8]}}', bytes(8)), "offsets"),
    "a size of -0": (header_bytes(b'{"a":{"dtype":"F32","shape":[-0],"data_offsets":[0,0]}}'), "impossible shape"),
    "strides overflow": (header_bytes({"a": entry(0, 0, [2**32, 2**32, 0])}), "impossible shape"),
    "strides overflow after 0": (header_bytes({"a": entry(0, 0, [0, 2**62, 2**62])}), "impossible shape"),
    "web page with a byte order mark": (b"\xef\xbb\xbf<!DOCTYPE html><html>404</html>", "web page"),
    "web page in UTF-16": ("\ufeff<html><body>404</body></html>".encode("utf-16-le"), "web page"),
    "dtype is a list": (header_bytes({"a": F32 | {"dtype": ["F32"]}}, bytes(8)), "not supported"),
    "metadata is a list": (header_bytes({"__metadata__": []}), "metadata"),
    "metadata is null": (header_bytes({"__metadata__": None}), "metadata"),
    "metadata holds a number": (header_bytes({"__metadata__": {"a": 1}}), "metadata"),
    "empty name": (header_bytes({"": F32}, bytes(8)), "name is empty"),
    "name too long": (header_bytes({"é" * 257: F32}, bytes(8)), "longer than 512 bytes"),
    "control character in a name": (header_bytes({"a\nb": F32}, bytes(8)), "control characters"),
    "NUL in a name": (header_bytes({"a\0": F32}, bytes(8)), "control characters"),
    "bidirectional name": (header_bytes({"a\u202eb": F32}, bytes(8)), "control characters"),
    "zero width name": (header_bytes({"a\u200bb": F32}, bytes(8)), "control characters"),
    "line separator in a name": (header_bytes({"a\u2028b": F32}, bytes(8)), "control characters"),
    "half a surrogate pair in a name": (
        header_bytes(b'{"\\ud800":%s}' % json.dumps(F32).encode(), bytes(8)),
        "control",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_refused_with_a_sentence_that_names_the_file(tmp_path: Path, case: str) -> None:
    content, said = BAD[case]
    with pytest.raises(CheckpointError, match=said) as caught:
        read(tmp_path, content)
    assert str(caught.value).startswith(str(tmp_path / "model.safetensors"))
    assert len(str(caught.value)) < 1500


def test_a_header_above_the_limit_is_not_read(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="16777217 bytes long, above the limit of 16777216"):
        file = tmp_path / "model.safetensors"
        file.write_bytes((16 * 2**20 + 1).to_bytes(8, "little") + b"{")
        os.truncate(file, 17 * 2**20 + 16)
        read_header(file)


def test_a_long_shape_does_not_make_a_long_message(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="impossible shape") as caught:
        read(tmp_path, header_bytes({"a": F32 | {"shape": [1] * 100_000}}, bytes(8)))
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("length", [0x3C, 0x3C20, 0x0280, 0x3C3C])
def test_a_valid_header_whose_length_looks_like_another_format(tmp_path: Path, length: int) -> None:
    """60 is "<", 0x3C20 is " <" and 640 is how a pickle begins; as lengths they mean nothing."""
    raw = json.dumps({"a": F32}, separators=(",", ":")).encode().ljust(length)
    assert len(raw) == length
    assert [info.name for info in read(tmp_path, header_bytes(raw, bytes(8))).tensors] == ["a"]


@pytest.mark.parametrize("share", [1, 4096, 0.5])
def test_truncated_file_gives_expected_and_actual_size(tmp_path: Path, share: float) -> None:
    file = tmp_path / "model.safetensors"
    save_file({"a": torch.zeros(100, 100)}, file)
    size = file.stat().st_size
    kept = size - share if isinstance(share, int) else int(size * share)
    os.truncate(file, kept)
    with pytest.raises(CheckpointError, match=f"asks for {size} bytes, the file holds {kept}"):
        read_header(file)


@pytest.mark.parametrize("code", TORCH_DTYPES)
def test_supported_types_are_read_as_safetensors_writes_them(tmp_path: Path, code: str) -> None:
    file = tmp_path / "model.safetensors"
    dtype = TORCH_DTYPES[code]
    save_file(
        {
            "a": torch.zeros(15 * dtype.itemsize, dtype=torch.uint8).view(dtype).view(3, 5),
            "scalar": torch.zeros(()),
            "none": torch.zeros(0, 4),
        },
        file,
        {"k": "v"},
    )
    header = read_header(file)
    infos = {info.name: info for info in header.tensors}
    assert (infos["a"].dtype, infos["a"].shape, infos["a"].n_bytes) == (dtype, (3, 5), 15 * dtype.itemsize)
    assert infos["a"].is_float == (code in ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"))
    assert (infos["scalar"].shape, infos["none"].n_bytes) == ((), 0)
    assert header.metadata == {"k": "v"}
    assert header.stamp == FileStamp.of(file) and header.stamp.size_bytes == file.stat().st_size


def test_offsets_point_at_the_bytes(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    save_file({"a": torch.tensor([1.5, -2.0]), "b": torch.tensor([7], dtype=torch.int64)}, file)
    raw = file.read_bytes()
    for info in read_header(file).tensors:
        found = torch.frombuffer(bytearray(raw[info.offset : info.offset + info.n_bytes]), dtype=info.dtype)
        assert found.tolist() == {"a": [1.5, -2.0], "b": [7]}[info.name]


@pytest.mark.parametrize(
    "name", ["<img src=x onerror=alert(1)>", "javascript:alert(1)", "$\\href{x}{y}$", "模型.重み", "é" * 256]
)
def test_unusual_but_harmless_names_are_kept(tmp_path: Path, name: str) -> None:
    assert [info.name for info in read(tmp_path, header_bytes({name: F32}, bytes(8))).tensors] == [name]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_pipe_folder_and_device_are_refused_within_a_second(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    started = time.monotonic()
    for path in (tmp_path / "pipe", tmp_path, Path("/dev/zero")):
        with pytest.raises(CheckpointError, match="not a regular file"):
            read_header(path)
    assert time.monotonic() - started < 1


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such file"):
        read_header(tmp_path / "none.safetensors")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_no_permission(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(header_bytes({"a": F32}, bytes(8)))
    file.chmod(0)
    with pytest.raises(CheckpointError, match="no permission"):
        read_header(file)


def test_missing_permission_is_reported_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(CheckpointError, match="no permission"):
        read_header(tmp_path / "model.safetensors")


def test_a_stamp_reveals_a_write_that_keeps_size_and_date(tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_bytes(b"first")
    before, status = FileStamp.of(file), file.stat()
    assert FileStamp.of(file) == before
    time.sleep(0.02)  # one tick of the file system's clock
    file.write_bytes(b"other")
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    after = FileStamp.of(file)
    assert (after.size_bytes, after.mtime_ns, after.inode) == (before.size_bytes, before.mtime_ns, before.inode)
    if os.name != "nt":  # where ctime is the file's creation
        assert after != before


def test_a_stamp_reveals_a_replacement(tmp_path: Path) -> None:
    file, other = tmp_path / "a", tmp_path / "b"
    file.write_bytes(b"first")
    before, status = FileStamp.of(file), file.stat()
    other.write_bytes(b"other")
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    os.replace(other, file)
    assert FileStamp.of(file) != before
