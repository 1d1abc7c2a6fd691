"""Mutated safetensors headers, each read by us and by the safetensors library: we never accept what it refuses."""

from __future__ import annotations

import json
import random
import tempfile
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from bench.faults.figures import Figure
from sftm_app.errors import CheckpointError
from sftm_app.weights.header import read_header

N_QUICK, N_FULL = 2_000, 100_000
_WORDS = (
    b"{", b"}", b"[", b"]", b",", b":", b'"', b"0", b"-", b"-0", b"1", b"e", b"1e2", b".", b"null", b"true", b"NaN",
    b"\\", b"\\u0000", b"\\ud800", b" ", b"\n", b"\0", b"\xff", b"\xef\xbb\xbf", b"dtype", b"shape", b"data_offsets",
    b"__metadata__", b"F32", b"F4", b"F8_E8M0", b"I64", b"BOOL", b"C64", b"18446744073709551616",
    b"9223372036854775808", b"4294967296", b'"a":', b'{"a":{}}', b"[0,8]",
)  # fmt: skip


def attack_headers(quick: bool, n: int | None = None) -> Figure:
    """Mutate headers: bytes, words, and values of entries."""
    generator = random.Random(0)
    n = n or (N_QUICK if quick else N_FULL)
    wrong: list[str] = []
    accepted = 0
    with tempfile.TemporaryDirectory(prefix="sftm-faults-") as name:
        file = Path(name) / "model.safetensors"
        for index in range(n):
            content = _mutated(generator)
            file.write_bytes(content)
            try:
                ours = {info.name: (info.shape, info.n_bytes) for info in read_header(file).tensors}
            except CheckpointError:
                continue
            except Exception as error:
                wrong.append(f"header {index}: {type(error).__name__}: {error} for {content[:200]!r}")
                continue
            accepted += 1
            if (refusal := _refused_by_library(file, ours)) is not None:
                wrong.append(f"header {index}: accepted, and safetensors says {refusal}: {content[:200]!r}")
    return Figure("mutated headers against safetensors", n, tuple(wrong), f"{accepted} accepted by both")


def _refused_by_library(file: Path, ours: dict[str, Any]) -> str | None:
    try:
        with safe_open(file, "pt") as opened:
            names = sorted(opened.keys())
            if names != sorted(ours):
                return f"other names: {names}"
            for name in names:
                if tuple(opened.get_tensor(name).shape) != ours[name][0]:
                    return f"another shape of {name!r}"
    except (SafetensorError, ValueError, RuntimeError, OverflowError) as error:
        return str(error)
    return None


def _mutated(generator: random.Random) -> bytes:
    header, size = _valid(generator)
    kind = generator.randrange(4)
    if kind == 0 and header:
        _change_value(generator, header)
    raw = bytearray(json.dumps(header, separators=(",", ":")).encode())
    if kind == 1:
        for _ in range(generator.randint(1, 3)):
            raw[generator.randrange(len(raw))] = generator.randrange(256)
    if kind >= 2:
        for _ in range(generator.randint(1, 2)):
            place = generator.randrange(len(raw) + 1)
            raw[place : place + generator.randrange(3) * generator.randrange(6)] = generator.choice(_WORDS)
    data = bytes(max(0, size + generator.choice((0, 0, 0, 0, 1, -1, 8))))
    length = len(raw) + generator.choice((0, 0, 0, 0, 0, 0, 1, -1, 2**40))
    return max(length, 0).to_bytes(8, "little") + bytes(raw) + data


def _valid(generator: random.Random) -> tuple[dict[str, Any], int]:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}} if generator.random() < 0.3 else {}
    place = 0
    for index in range(generator.randint(0, 4)):
        dtype, itemsize = generator.choice((("F32", 4), ("F16", 2), ("I64", 8), ("U8", 1), ("C64", 8), ("F8_E8M0", 1)))
        shape = [generator.randint(0, 3) for _ in range(generator.randint(0, 3))]
        n_bytes = itemsize
        for side in shape:
            n_bytes *= side
        header[f"w{index}"] = {"dtype": dtype, "shape": shape, "data_offsets": [place, place + n_bytes]}
        place += n_bytes
    return header, place


def _change_value(generator: random.Random, header: dict[str, Any]) -> None:
    names = [name for name in header if name != "__metadata__"]
    if not names:
        return
    entry = header[generator.choice(names)]
    odd: Any = generator.choice(
        (None, True, -1, 0, 1, 2**31, 2**53, 2**63, 2**64, 1.0, 1e300, "1", "", [], {}, [1] * 9, [2**32, 2**32, 0])
    )
    key = generator.choice(("dtype", "shape", "data_offsets"))
    if isinstance(entry[key], list) and entry[key] and generator.random() < 0.7:
        entry[key][generator.randrange(len(entry[key]))] = odd
    elif generator.random() < 0.8:
        entry[key] = odd
    else:
        del entry[key]
