"""What one process may use: its caches, device, threads and memory. Entry points open a session and pass it down."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from sftm_app import __version__
from sftm_app.architecture.known_architectures import FOLDER_NAME, ArchitectureCache
from sftm_app.caching import GB_VARIABLE, cache_place
from sftm_app.machine_speed import SpeedFile
from sftm_app.units import format_bytes
from sftm_app.weights.disk_cache import DiskCache

SPEED_NAME = "speed.json"


@dataclass(frozen=True, eq=False)
class Session:
    """What a process may use.

    Attributes:
        cache: factors, layers and hashes on disk, or None where the cache is off.
        architectures: what transformers says of configs.
        speed: how fast this machine computes.
        n_threads: how many threads compute at once. Results are the same to the last bit only for equal numbers.
        device: where to compute when a recipe says "auto".
        memory: the memory budget when a recipe has none, such as "4GB".
    """

    cache: DiskCache | None
    architectures: ArchitectureCache
    speed: SpeedFile
    n_threads: int
    device: str = "auto"
    memory: str | None = None


def open_session(
    device: str = "auto", memory: str | None = None, environment: Mapping[str, str] = os.environ
) -> Session:
    """Open the session of a process. Touches no disk.

    Args:
        device: where to compute when a recipe says "auto".
        memory: the memory budget when a recipe has none.
        environment: SFTM_CACHE_DIR and SFTM_CACHE_GB say where the cache is and how large it may grow (0 turns it off).

    Returns:
        A session with as many threads as torch uses now.

    Raises:
        InputError: SFTM_CACHE_GB is not a number of gigabytes.
    """
    place = cache_place(environment)
    n_threads = torch.get_num_threads()
    return Session(
        DiskCache(place.folder, place.limit_bytes, made_by(n_threads)) if place else None,
        ArchitectureCache(place.folder / FOLDER_NAME if place else None),
        SpeedFile(place.folder / SPEED_NAME if place else None, n_threads),
        n_threads,
        device,
        memory,
    )


def made_by(n_threads: int) -> str:
    """What a computed layer depends on, apart from its inputs and settings: versions, processor and threads.

    The source of the mathematics is part of it: during development, two states have the same version number.
    """
    app = Path(__file__).parent
    files = sorted([*(app / "linalg").glob("*.py"), *(app / "methods").glob("*.py")])
    source = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
    return repr((__version__, torch.__version__, torch.backends.cpu.get_cpu_capability(), n_threads, source))


def describe_cache(session: Session, clear: bool = False) -> str:
    """Say what is cached, or clear the cache and say what was removed."""
    cache = session.cache
    if cache is None:
        return f"The cache is off. To turn it on, set {GB_VARIABLE} or --cache-gb to more than 0."
    found = cache.clear() if clear else cache.use()
    if clear:
        shutil.rmtree(cache.folder / FOLDER_NAME, ignore_errors=True)
        with contextlib.suppress(OSError):
            (cache.folder / SPEED_NAME).unlink(missing_ok=True)
    entries = "1 entry" if found.n_entries == 1 else f"{found.n_entries} entries"
    what = f"{entries} (factors, layers, hashes), {format_bytes(found.n_bytes)}"
    if clear:
        return f"{cache.folder}: removed {what}."
    return f"{cache.folder}: {what} of at most {format_bytes(cache.limit_bytes)}."
