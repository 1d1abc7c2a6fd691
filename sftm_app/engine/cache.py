"""Factors of task matrices on disk: computed once, shared by inspection, what-if and merging, and by every process.

An entry is addressed by the SHA-256 of the task matrix itself (values, shape, dtype, order in memory), so it follows
from the content of the base's and the task's tensor and from what part of them is merged.
It holds the leading features up to a count, gains first, stored so that a lower rank reads no more than its own share.

What a method worked out of a whole layer before its scaling is kept in the same way, under all its task matrices; and
under files as they lie there (see checkpoints.lasting) what would take reading them: their hashes, and the addresses of
their task matrices.

Nothing here can make a merge fail: an entry that is damaged, or vanishes while it is read, is computed again, and one
that cannot be written is not kept. Entries used last stay; the least recently used go when the limit is reached.

SHA-256 rather than BLAKE2b: it is two to four times as fast on processors with instructions for it (measured on an
AMD EPYC under load, 0.8 against 0.2 GiB/s; a 768 x 768 SVD takes 0.5 s there, its hash 3 ms).
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
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any

import torch

from sftm_app import __version__
from sftm_app.architecture.known_architectures import FOLDER_NAME
from sftm_app.caching import GB_VARIABLE, cache_place
from sftm_app.errors import CheckpointError
from sftm_app.linalg.factors import Factors, Rank, n_kept
from sftm_app.linalg.low_rank import Delta, LowRank
from sftm_app.methods.base import CachedLayer
from sftm_app.units import format_bytes
from sftm_app.weights.partial import alone
from sftm_app.weights.row_files import TEMPORARY_SUFFIX, read_rows, read_whole, write_rows

# To be raised when `factorise` gives other factors than before.
VERSION = 1
# Below this shorter side the SVD takes about a millisecond, as long as finding and reading a file.
MIN_SIDE = 64
# Room that is left on the disk for everything else.
FREE_BYTES = 2_000_000_000
# A process counts the bytes it writes, and looks at the whole folder again after this share of the limit.
LOOK_SHARE = 1 / 64
STALE_S = 3600.0
HEADER_BYTES = 512  # at most
# What is said of factors that were found.
KEPT = ", kept"
# What was measured of this machine, see merging.cost.
SPEEDS_NAME = "speeds.json"

_PLACE = re.compile(r"[0-9a-f]{2}")
_ENTRY = re.compile(r"[0-9a-f]{64}\.safetensors")
_TEMPORARY = re.compile(rf"[0-9a-f]{{64}}\.safetensors\.[0-9a-f]{{16}}{re.escape(TEMPORARY_SUFFIX)}")


@dataclass(frozen=True)
class FactorKey:
    """What the factors of one task matrix (m, n) follow from.

    digest: SHA-256 of the matrix, in hexadecimal. count: how many leading features are needed at most. device: where
    the factors are to be; no part of the address.
    """

    digest: str
    shape: tuple[int, int]
    dtype: torch.dtype
    count: int
    device: torch.device = field(default=torch.device("cpu"), compare=False)


def is_large(shape: Sequence[int]) -> bool:
    """Whether a matrix's factors are sooner found than computed."""
    return min(shape) >= MIN_SIDE


def factor_key(change: Delta, rank: Rank = None) -> FactorKey | None:
    """The key of a task matrix (m, n), float32 or float64; None where its factors are as quickly computed as found: of
    low-rank changes, and below MIN_SIDE.

    rank: what will be kept of the factors, see n_kept. A share of energy needs all features: cut what get() gives.
    """
    if isinstance(change, LowRank) or not is_large(change.shape):
        return None
    m, n = change.shape
    in_rows = change.is_contiguous()
    values = change.detach().cpu()
    values = values if in_rows else values.T.contiguous()  # a transposed view costs no copy
    about = f"{VERSION} {m}x{n} {change.dtype} {'rows' if in_rows else 'columns'} "
    digest = hashlib.sha256(about.encode())
    digest.update(values.reshape(-1).view(torch.uint8).numpy().data)
    return FactorKey(digest.hexdigest(), (m, n), change.dtype, n_kept(rank, m, n), change.device)


def layer_key(digests: Sequence[str | None], about: object) -> str | None:
    """The key of what is worked out of several task matrices, in their order, in the way that `about` describes (by its
    repr), by this version on this processor with this number of threads; None where one of them has no digest."""
    if None in digests or not digests:
        return None
    by = (__version__, torch.__version__, torch.backends.cpu.get_cpu_capability(), torch.get_num_threads(), _sources())
    return hashlib.sha256(repr((VERSION, by, list(digests), about)).encode()).hexdigest()


def _note_key(about: str) -> str:
    return hashlib.sha256(repr((VERSION, __version__, torch.__version__, about)).encode()).hexdigest()


@lru_cache(maxsize=1)
def _sources() -> str:
    """Of the files that a layer's superposition follows from: while they are worked on, no version tells them apart."""
    folder = Path(__file__).parent
    files = sorted([*(folder.parent / "linalg").glob("*.py"), *(folder / "methods").glob("*.py")])
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def _checksum(tensors: Mapping[str, torch.Tensor], values: str) -> str:
    """Of a layer as it is kept: its tensors are megabytes that nothing else would tell from damaged ones."""
    found = zlib.crc32(values.encode())
    for name in sorted(tensors):
        found = zlib.crc32(tensors[name].reshape(-1).view(torch.uint8).numpy().data, found)
    return str(found)


@dataclass(frozen=True)
class CacheUse:
    """What a folder of factors holds."""

    n_entries: int
    n_bytes: int


class FactorStore:
    """Factors in a folder, up to `limit_bytes` in all. Safe under threads and under several processes.

    Two processes that write at once stay below the limit together; every further one may exceed it by LOOK_SHARE.
    """

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self.folder = folder
        self.limit_bytes = limit_bytes
        self._written = math.inf  # bytes since this process last looked at the folder; it never has
        self._lock = Lock()

    def get(self, key: FactorKey | None, make: Callable[[], Factors]) -> Factors:
        """The first `key.count` features at least as kept, or what `make` gives, which is kept then.

        Factors from here say ", kept" in `how`. Raises what `make` raises, and nothing else.
        """
        if key is None:
            return make()
        known = self._read(key)
        if known is not None:
            return known
        made = make()
        self._write(key, made)
        return made

    def keep(self, key: str | None, make: Callable[[], CachedLayer]) -> CachedLayer:
        """What is kept under a layer_key(), or what `make` gives, which is kept then. Raises what `make` raises."""
        if key is None:
            return make()
        path = self._path(key)
        if path.exists():
            try:
                tensors, about = read_whole(path)
                if about["checksum"] != _checksum(tensors, about["values"]):
                    raise ValueError("damaged")
                kept = CachedLayer(tensors, json.loads(about["values"]), found=True)
            except (CheckpointError, ValueError, KeyError):
                _remove(path)
            else:
                with contextlib.suppress(OSError):
                    os.utime(path)
                return kept
        made = make()
        values = json.dumps(made.values)
        tensors = {name: tensor.cpu().contiguous() for name, tensor in made.tensors.items()}
        self._put(path, tensors, {"values": values, "checksum": _checksum(tensors, values)})
        return made

    def recall(self, about: str, make: Callable[[], Any]) -> Any:
        """A value of JSON that follows from what `about` says and from this version alone, as kept, or what `make`
        gives, which is kept then. Raises what `make` raises."""
        return self.keep(_note_key(about), lambda: CachedLayer({}, {"value": make()})).values["value"]

    def recalls(self, about: str) -> bool:
        """Whether recall() would find something now. Reads nothing."""
        return self._path(_note_key(about)).exists()

    def holds_layer(self, key: str | None) -> bool:
        """Whether keep() would find something now. Reads nothing."""
        return key is not None and self._path(key).exists()

    def find(self, key: FactorKey) -> Factors | None:
        """The factors that get() would find now."""
        return self._read(key)

    def use(self) -> CacheUse:
        """How much is kept now."""
        sizes = [status.st_size for _, status in self._files()]
        return CacheUse(len(sizes), sum(sizes))

    def clear(self) -> CacheUse:
        """Remove every entry, and return what was removed. Other files in the folder stay."""
        removed = [status.st_size for path, status in self._files() if _remove(path)]
        self._remove_temporary(older_than_s=0.0)
        for place in self._places():
            with contextlib.suppress(OSError):  # something else is in it
                place.rmdir()
        return CacheUse(len(removed), sum(removed))

    def _path(self, digest: str) -> Path:
        return self.folder / digest[:2] / f"{digest}.safetensors"

    def _read(self, key: FactorKey) -> Factors | None:
        path, (m, n) = self._path(key.digest), key.shape
        if not path.exists():
            return None
        try:
            tensors, about = read_rows(path, {"U": (m,), "S": (), "Vh": (n,)}, key.dtype, key.count)
            held = int(about.get("count", "0"))
        except (CheckpointError, ValueError):
            _remove(path)
            return None
        S = tensors["S"]
        if not bool((S > 0).all() & (S[1:] <= S[:-1]).all()):
            _remove(path)
            return None
        if held < key.count:
            return None
        with contextlib.suppress(OSError):
            os.utime(path)
        device = key.device
        return Factors(
            tensors["U"].to(device).T.contiguous(), S.to(device), tensors["Vh"].to(device), f"{about.get('how')}{KEPT}"
        )

    def _write(self, key: FactorKey, made: Factors) -> None:
        kept = made.cut(key.count)
        if kept.rank:
            tensors = {"U": kept.U.cpu().T, "S": kept.S.cpu(), "Vh": kept.Vh.cpu()}
            self._put(self._path(key.digest), tensors, {"how": made.how, "count": str(key.count)})

    def _put(self, path: Path, tensors: Mapping[str, torch.Tensor], about: Mapping[str, str]) -> None:
        """Write an entry, where there is or can be made room for it."""
        size = sum(tensor.nbytes for tensor in tensors.values()) + sum(map(len, about.values())) + HEADER_BYTES
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            # Room that one process has made is not for another one that looks before it is taken.
            with alone(self.folder):
                if self._make_room(size):
                    write_rows(path, tensors, about)

    def _make_room(self, size: int) -> bool:
        """Whether an entry of `size` bytes may be written; removes those that were used longest ago for it."""
        # One that would push out most others is not worth it.
        if size > self.limit_bytes / 2 or shutil.disk_usage(self.folder).free < size + FREE_BYTES:
            return False
        with self._lock:
            if self._written + size > LOOK_SHARE * self.limit_bytes:
                self._evict((1 - 2 * LOOK_SHARE) * self.limit_bytes - size)
                self._written = 0
            else:
                self._written += size
        return True

    def _evict(self, target: float) -> None:
        """Remove entries, least recently used first, until at most `target` bytes are left."""
        self._remove_temporary(STALE_S)
        files = sorted(self._files(), key=lambda found: found[1].st_mtime_ns)
        held = sum(status.st_size for _, status in files)
        for path, status in files:
            if held <= target:
                break
            # One that another process has just removed is gone all the same.
            _remove(path)
            held -= status.st_size

    def _files(self) -> Iterator[tuple[Path, os.stat_result]]:
        yield from self._matching(_ENTRY)

    def _remove_temporary(self, older_than_s: float) -> None:
        """What processes that died left behind."""
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
        """Our folders inside the folder, which a person may have chosen with other things in it."""
        return [Path(place.path) for place in _scan(self.folder) if _PLACE.fullmatch(place.name)]


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


def open_store(environment: Mapping[str, str] = os.environ) -> FactorStore | None:
    """The store that SFTM_CACHE_DIR and SFTM_CACHE_GB (default 10; 0 = none) ask for. Touches no disk.

    Raises
        InputError: SFTM_CACHE_GB is not a number of gigabytes.
    """
    place = cache_place(environment)
    return FactorStore(place.folder, place.limit_bytes) if place else None


def look_into(clear: bool = False, environment: Mapping[str, str] = os.environ) -> str:
    """A sentence on what is kept, or on what was removed. Raises as open_store()."""
    store = open_store(environment)
    if store is None:
        return f"No factors are kept: the cache is switched off. Give {GB_VARIABLE} or --cache-gb more than 0."
    found = store.clear() if clear else store.use()
    if clear:
        shutil.rmtree(store.folder / FOLDER_NAME, ignore_errors=True)
        _remove(store.folder / SPEEDS_NAME)
    entries = "1 entry" if found.n_entries == 1 else f"{found.n_entries} entries"
    what = f"{store.folder}: {entries} (factors, layers, what is known of files), {format_bytes(found.n_bytes)}"
    return f"{what}, were removed." if clear else f"{what} of at most {format_bytes(store.limit_bytes)}."
