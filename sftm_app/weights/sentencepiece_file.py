"""Reads the pieces of a sentencepiece model: a protocol buffer whose first field repeats the pieces, in order of ids.

Written here because the file comes from anywhere: no other reader of it is needed, and none of its text is run.
Format: https://github.com/google/sentencepiece/blob/master/src/sentencepiece_model.proto,
https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

from collections.abc import Iterator

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_PIECES, _PIECE = 1, 1


def read_pieces(raw: bytes) -> list[str]:
    """The pieces of a sentencepiece model, in the order of their ids.

    Raises:
        ValueError: it is not a sentencepiece model.
    """
    pieces = [_text(value) for field, value in _fields(raw) if field == _PIECES and isinstance(value, bytes)]
    if not pieces:
        raise ValueError("holds no pieces")
    return pieces


def _text(message: bytes) -> str:
    for field, value in _fields(message):
        if field == _PIECE and isinstance(value, bytes):
            return value.decode("utf-8")
    raise ValueError("a piece has no text")


def _fields(raw: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The fields of a message: their numbers and values."""
    place = 0
    while place < len(raw):
        key, place = _varint(raw, place)
        kind = key & 7
        if kind == _VARINT:
            value, place = _varint(raw, place)
            yield key >> 3, value
            continue
        size, place = _varint(raw, place) if kind == _BYTES else ({_FIXED64: 8, _FIXED32: 4}.get(kind, -1), place)
        if size < 0 or place + size > len(raw):
            raise ValueError("is cut off or of another format")
        yield key >> 3, raw[place : place + size]
        place += size


def _varint(raw: bytes, place: int) -> tuple[int, int]:
    """A number of a variable number of bytes, and the place after it."""
    value = 0
    for shift in range(0, 70, 7):
        if place >= len(raw):
            break
        byte = raw[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
    raise ValueError("is cut off or of another format")
