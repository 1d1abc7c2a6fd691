"""A cache on disk, shared by inspection, what-if and merging, and by every process.

It holds three kinds of entries:

    factors   of one task matrix, gains first, so that a lower rank reads no more than its own share
    layers    merged layers at scaling 1, with their figures
    values    small facts about files, such as their hashes

A key holds everything that an entry depends on (see `file_key` and `digest`). Files are identified by path, size,
times and inode, so nothing is read to find out what is cached.

No entry can make a merge fail: a damaged entry is computed again, and one that cannot be written is not cached. When
the limit is reached, the entries that were used longest ago are removed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import re
import shutil
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, field
from functools import reduce
from operator import xor
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sftm_app.caching import TEMPORARY_SUFFIX
from sftm_app.errors import CheckpointError
from sftm_app.linalg.factors import Factors
from sftm_app.weights.header import FileStamp, read_header
from sftm_app.weights.partial import folder_lock
from sftm_app.weights.row_files import read_rows, read_whole, write_rows

# Below this shorter side an SVD takes about a millisecond, as long as reading a file.
MIN_SIDE = 64
# Disk space left for everything else.
FREE_BYTES = 2_000_000_000
# A process counts the bytes it writes, and lists the folder again after this share of the limit.
RECOUNT_SHARE = 1 / 64
STALE_S = 3600.0
HEADER_BYTES = 512  # at most
# What `Factors.how` says of factors that were cached.
CACHED = ", cached"

_PLACE = re.compile(r"[0-9a-f]{2}")
_ENTRY = re.compile(r"[0-9a-f]{64}\.safetensors")
_TEMPORARY = re.compile(rf"[0-9a-f]{{64}}\.safetensors\.[0-9a-f]{{16}}{re.escape(TEMPORARY_SUFFIX)}")


def digest(*parts: object) -> str:
    """A key: SHA-256, in hexadecimal, of the parts' `repr`."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def file_key(path: Path, stamp: FileStamp) -> tuple[object, ...]:
    """What identifies the content of a file on this machine, as part of a key."""
    return str(path.resolve()), *astuple(stamp)


def is_large(shape: Sequence[int]) -> bool:
    """Whether reading the factors of a matrix of this shape is faster than computing them."""
    return min(shape) >= MIN_SIDE


@dataclass(frozen=True)
class FactorKey:
    """What the factors of one task matrix depend on.

    Attributes:
        digest: see `digest`.
        shape: (m, n).
        dtype: of the factors.
        count: how many leading features are needed.
        device: where the factors are needed; not part of the key.
    """

    digest: str
    shape: tuple[int, int]
    dtype: torch.dtype
    count: int
    device: torch.device = field(default=torch.device("cpu"), compare=False)


@dataclass(frozen=True, eq=False)
class Entry:
    """What is cached under one key: tensors, and JSON values."""

    tensors: dict[str, Tensor]
    values: dict[str, Any]


@dataclass(frozen=True)
class CacheUse:
    """What a cache holds."""

    n_entries: int
    n_bytes: int


class DiskCache:
    """Entries in a folder, up to `limit_bytes` in all. Safe under threads and under several processes.

    Two processes that write at once stay below the limit together; every further one may exceed it by RECOUNT_SHARE.

    Attributes:
        made_by: what entries depend on, apart from their keys: versions and processor. Part of every key.
    """

    def __init__(self, folder: Path, limit_bytes: int, made_by: str = "") -> None:
        self.folder = folder
        self.limit_bytes = limit_bytes
        self.made_by = made_by
        self._written = math.inf  # bytes since this process last listed the folder; it never has
        self._lock = Lock()

    def factors(self, key: FactorKey | None, make: Callable[[], tuple[Factors, float]]) -> tuple[Factors, float]:
        """The first `key.count` features at least, and the energy of the whole matrix (its squared Frobenius norm).

        Cached factors say so in `how`. What `make` gives is cached. Raises what `make` raises, and nothing else.
        """
        if key is None:
            return make()
        known = self._read_factors(key)
        if known is not None:
            return known
        made, energy = make()
        kept = made.cut(key.count)
        if kept.rank:
            tensors = {"U": kept.U.cpu().T, "S": kept.S.cpu(), "Vh": kept.Vh.cpu()}
            tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
            about = {"how": made.how, "count": str(key.count), "energy": repr(energy)}
            checks = " ".join(map(str, _row_checks(tensors, (key.digest, sorted(about.items())))))
            self._put(self._path(key.digest), tensors, about | {"checks": checks})
        return made, energy

    def holds_factors(self, key: FactorKey | None) -> bool:
        """Whether as many features as the key asks for are cached. Reads only the entry's header."""
        if key is None:
            return False
        try:
            return int(read_header(self._path(key.digest)).metadata["count"]) >= key.count
        except (CheckpointError, ValueError, KeyError):
            return False

    def find(self, key: str | None) -> Entry | None:
        """The entry under a key, or None."""
        if key is None:
            return None
        path = self._path(key)
        if not os.path.exists(path):  # unlike Path.exists, False in a folder that may not be read
            return None
        try:
            tensors, about = read_whole(path)
            if about["checksum"] != _checksum(tensors, (key, about["values"])):
                raise ValueError("damaged")
            entry = Entry(tensors, json.loads(about["values"]))
        except (CheckpointError, ValueError, KeyError):
            _remove(path)
            return None
        with contextlib.suppress(OSError):
            os.utime(path)
        return entry

    def put(self, key: str | None, entry: Entry) -> None:
        """Cache an entry, if there is room for it."""
        if key is None:
            return
        values = json.dumps(entry.values)
        tensors = {name: tensor.cpu().contiguous() for name, tensor in entry.tensors.items()}
        self._put(self._path(key), tensors, {"values": values, "checksum": _checksum(tensors, (key, values))})

    def holds(self, key: str | None) -> bool:
        """Whether there is an entry under this key. Reads nothing."""
        return key is not None and os.path.exists(self._path(key))

    def value(self, key: str, make: Callable[[], str]) -> str:
        """A small text: cached, or made now and cached. Raises what `make` raises."""
        known = self.find(key)
        if known is not None and isinstance(known.values.get("value"), str):
            return str(known.values["value"])
        made = make()
        self.put(key, Entry({}, {"value": made}))
        return made

    def hash_of(self, path: Path, stamp: FileStamp, make: Callable[[], str]) -> str:
        """The SHA-256 of a file: cached, or made now and cached. Raises what `make` raises."""
        return self.value(hash_key(path, stamp), make)

    def use(self) -> CacheUse:
        """How much is cached now."""
        sizes = [status.st_size for _, status in self._matching(_ENTRY)]
        return CacheUse(len(sizes), sum(sizes))

    def clear(self) -> CacheUse:
        """Remove every entry, and return what was removed. Other files in the folder stay."""
        removed = [status.st_size for path, status in self._matching(_ENTRY) if _remove(path)]
        self._remove_temporary(older_than_s=0.0)
        for place in self._places():
            with contextlib.suppress(OSError):  # something else is in it
                place.rmdir()
        return CacheUse(len(removed), sum(removed))

    def _path(self, digest: str) -> Path:
        return self.folder / digest[:2] / f"{digest}.safetensors"

    def _read_factors(self, key: FactorKey) -> tuple[Factors, float] | None:
        path, (m, n) = self._path(key.digest), key.shape
        if not os.path.exists(path):
            return None
        try:
            tensors, about = read_rows(path, {"U": (m,), "S": (), "Vh": (n,)}, key.dtype, key.count)
            check = about.pop("checks").split()[len(tensors["S"]) - 1]
            if check != _checksum(tensors, (key.digest, sorted(about.items()))):
                raise ValueError("damaged")
            held, energy = int(about["count"]), float(about["energy"])
        except (CheckpointError, ValueError, KeyError, IndexError):
            _remove(path)
            return None
        if held < key.count:
            return None
        with contextlib.suppress(OSError):
            os.utime(path)
        S, device = tensors["S"], key.device
        U, Vh = tensors["U"].to(device).T.contiguous(), tensors["Vh"].to(device)
        return Factors(U, S.to(device), Vh, f"{about.get('how')}{CACHED}"), energy

    def _put(self, path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, str]) -> None:
        """Write an entry if there is, or can be made, room for it."""
        size = sum(tensor.nbytes for tensor in tensors.values()) + sum(map(len, about.values())) + HEADER_BYTES
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            # Room that one process has made is not there for another that looks before it is taken.
            with folder_lock(self.folder):
                if self._make_room(size):
                    write_rows(path, tensors, about)

    def _make_room(self, size: int) -> bool:
        """Whether an entry of `size` bytes may be written; removes the entries used longest ago for it."""
        # An entry that would push out most others is not worth it.
        if size > self.limit_bytes / 2 or shutil.disk_usage(self.folder).free < size + FREE_BYTES:
            return False
        with self._lock:
            if self._written + size > RECOUNT_SHARE * self.limit_bytes:
                self._evict((1 - 2 * RECOUNT_SHARE) * self.limit_bytes - size)
                self._written = 0
            else:
                self._written += size
        return True

    def _evict(self, target: float) -> None:
        """Remove entries, least recently used first, until at most `target` bytes are left."""
        self._remove_temporary(STALE_S)
        files = sorted(self._matching(_ENTRY), key=lambda found: found[1].st_mtime_ns)
        held = sum(status.st_size for _, status in files)
        for path, status in files:
            if held <= target:
                break
            _remove(path)  # False when another process has just removed it, which is as good
            held -= status.st_size

    def _remove_temporary(self, older_than_s: float) -> None:
        """Remove what processes that died left behind."""
        for path, status in self._matching(_TEMPORARY):
            if time.time() - status.st_mtime >= older_than_s:
                _remove(path)

    def _matching(self, pattern: re.Pattern[str]) -> Iterator[tuple[Path, os.stat_result]]:
        for place in self._places():
            for entry in _scan(place):
                if pattern.fullmatch(entry.name):
                    with contextlib.suppress(OSError):
                        yield Path(entry.path), entry.stat(follow_symlinks=False)

    def _places(self) -> list[Path]:
        """Our own folders inside the folder; a person may have chosen one with other things in it."""
        return [Path(place.path) for place in _scan(self.folder) if _PLACE.fullmatch(place.name)]


def hash_key(path: Path, stamp: FileStamp) -> str:
    """The key under which the SHA-256 of a file is cached."""
    return digest("SHA-256", file_key(path, stamp))


def _checksum(tensors: Mapping[str, Tensor], facts: object) -> str:
    """Of an entry: CRC-32 of its key and values, and of every tensor. Nothing else would tell a damaged tensor."""
    found = [zlib.crc32(_bytes(tensor).data, _start(name, facts)) for name, tensor in tensors.items()]
    return str(reduce(xor, found, _start("", facts)))


def _row_checks(tensors: Mapping[str, Tensor], facts: object) -> Iterator[str]:
    """The checksums of the first row, the first two, ... of tensors that share their first dimension."""
    found = {name: _start(name, facts) for name in tensors}
    rows = {name: _bytes(tensor).reshape(len(tensor), -1) for name, tensor in tensors.items()}
    for index in range(len(next(iter(rows.values())))):
        found = {name: zlib.crc32(rows[name][index].data, check) for name, check in found.items()}
        yield str(reduce(xor, found.values(), _start("", facts)))


def _start(name: str, facts: object) -> int:
    return zlib.crc32(repr((name, facts)).encode())


def _bytes(tensor: Tensor) -> NDArray[np.uint8]:
    found: NDArray[np.uint8] = tensor.reshape(-1).view(torch.uint8).numpy()
    return found


def _scan(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as found:
            return list(found)
    except OSError:
        return []


def _remove(path: Path) -> bool:
    try:
        path.unlink()
    except OSError:
        return False
    return True
