"""Checks a large safetensors header before it is parsed as JSON, within about twice its own size of memory.

A header of 16 MB that is wrong could make JSON values of 400 MB before anybody looks at them. So its text is read entry
by entry here, and only numbers are kept: where each tensor begins and ends, and a hash of its name. What passes is a
header in form; header.py then checks each entry, as it does for small headers.
"""

from __future__ import annotations

import hashlib
import json
import re
from array import array

import numpy as np

# Smaller headers are parsed at once. Those of models have 50 KB.
LARGE_BYTES = 512 * 1024

# Texts of metadata. Training tools write hundreds.
MAX_TEXTS = 100_000
# Bytes of a name as the header spells it; one character may take six.
MAX_NAME = 4096

_SPACE = rb"[ \t\n\r]*"
_NUMBER = rb"(?:0|[1-9][0-9]{0,18})"
_NUMBERS = rb"\[" + _SPACE + rb"(?:" + _NUMBER + _SPACE + rb"(?:," + _SPACE + _NUMBER + _SPACE + rb"){0,7})?\]"
_COLON = _SPACE + rb":" + _SPACE
_FIELD = rb'"(?:dtype"' + _COLON + rb'"[A-Z0-9_]{1,16}"|(?:shape|data_offsets)"' + _COLON + _NUMBERS + rb")" + _SPACE
_QUOTE = re.compile(_SPACE + rb'"')
_STOP = re.compile(rb'["\\]')
_ENTRY = re.compile(_COLON + rb"\{" + _SPACE + _FIELD + rb"(?:," + _SPACE + _FIELD + rb"){2}\}" + _SPACE + rb"([,}])")
_OFFSETS = re.compile(
    rb'"data_offsets"' + _COLON + rb"\[" + _SPACE + rb"([0-9]+)" + _SPACE + rb"," + _SPACE + rb"([0-9]+)"
)
_TABLE = re.compile(_COLON + rb"\{" + _SPACE + rb"(\}?)")
_BETWEEN = re.compile(_COLON + rb'"')
_NEXT = re.compile(_SPACE + rb"([,}])")
_NOTHING = re.compile(_SPACE)


def fault_of(raw: bytes) -> str:
    """What is wrong with the form of a header; "" if nothing is.

    Args:
        raw: the JSON text of the header.
    """
    begins, ends, hashes = array("Q"), array("Q"), array("q")
    place = _NOTHING.match(raw).end()  # type: ignore[union-attr]
    if raw[place : place + 1] != b"{":
        return "is not a table of tensors"
    place += 1
    empty = _NEXT.match(raw, place)
    more = empty is None
    place = empty.end() if empty else place
    while more:
        name = _string(raw, place, MAX_NAME)
        if name is None or name[1] - name[0] > MAX_NAME:
            return "has an entry that is no tensor"
        entry = _ENTRY.match(raw, name[1])
        if entry is None:
            after = _after_texts(raw, name[1]) if raw[slice(*name)] == b'__metadata__"' else None
            if after is None:
                return "has an entry that is no tensor"
            place, more = after
            continue
        offsets = _OFFSETS.search(raw, name[1], entry.end())
        if offsets is None:
            return "has an entry without offsets"
        begin, end = int(offsets[1]), int(offsets[2])
        if not begin <= end < 2**63:
            return "has impossible offsets"
        begins.append(begin)
        ends.append(end)
        hashes.append(_hash(raw[name[0] : name[1] - 1]))
        place, more = entry.end(), entry[1] == b","
    if _NOTHING.match(raw, place).end() < len(raw):  # type: ignore[union-attr]
        return "goes on after its end"
    return _fault_of_columns(begins, ends, hashes)


def _fault_of_columns(begins: array[int], ends: array[int], hashes: array[int]) -> str:
    names = np.sort(np.frombuffer(hashes, np.int64)) if hashes else np.empty(0, np.int64)
    if (names[1:] == names[:-1]).any():
        return "holds a name twice"
    del names
    if not begins:
        return ""
    order = np.lexsort((np.frombuffer(ends, np.uint64), np.frombuffer(begins, np.uint64)))
    last = 0
    for index in order.tolist():
        if begins[index] != last:
            return "leaves a hole or an overlap between tensors"
        last = ends[index]
    return ""


def _string(raw: bytes, place: int, longest: int = 1 << 62) -> tuple[int, int] | None:
    """Where the string at `place` begins, after its quote, and where it ends, with its quote; None if it is none."""
    quote = _QUOTE.match(raw, place)
    if quote is None:
        return None
    place = quote.end()
    while (stop := _STOP.search(raw, place)) is not None:
        if stop[0] == b'"':
            return quote.end(), stop.end()
        place = stop.end() + 1
        if place - quote.end() > longest:
            break
    return None


def _after_texts(raw: bytes, place: int) -> tuple[int, bool] | None:
    """Where the table of texts ends that begins at `place`, and whether an entry follows; None if there is none."""
    table = _TABLE.match(raw, place)
    if table is None:
        return None
    place, more = table.end(), not table[1]
    for _ in range(MAX_TEXTS):
        if not more:
            break
        key = _string(raw, place)
        between = _BETWEEN.match(raw, key[1]) if key else None
        text = _string(raw, between.end() - 1) if between else None
        after = _NEXT.match(raw, text[1]) if text else None
        if after is None:
            return None
        place, more = after.end(), after[1] == b","
    end = None if more else _NEXT.match(raw, place)
    return (end.end(), end[1] == b",") if end else None


def _hash(name: bytes) -> int:
    if b"\\" in name:  # two spellings of one name
        name = json.loads(b'"' + name + b'"').encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "little", signed=True)
