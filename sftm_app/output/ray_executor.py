"""Merge the tensors of a plan by the workers of a Ray cluster.

Ray schedules: a task is one tensor of the output, the costliest first. Its worker reads the inputs, puts the tensor's
bytes in their place in the output, and sends back their checksum and its lines of the report. Nothing else crosses the
network, so inputs and output lie on storage that all machines share, under the same paths. A worker that dies costs the
tensor that it was at, which Ray gives to another one.

A merge that is stopped takes its output folder away, and workers stop at the next tensor because of that, if the
connection to them did not end already. ray.cancel is not used: where the task has just ended, Ray 2.60 aborts the
process that asks for it.

Results are those of one process: workers compute with its number of threads, and refuse where versions, processor or
inputs differ from it.
"""

from __future__ import annotations

import logging
import os
import socket
import tempfile
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch

from sftm_app.engine.cache import FactorStore, open_store
from sftm_app.engine.records import TensorRecord
from sftm_app.engine.run import run
from sftm_app.errors import CheckpointError, InputError, JobError, OutputError, ResourceError, SFTMError
from sftm_app.linalg.parallel import n_processors
from sftm_app.output.executors import WriteEntries, WrittenTensor
from sftm_app.output.meter import MemoryMeter
from sftm_app.output.resume import made_by
from sftm_app.planning.memory import entry_bytes
from sftm_app.planning.plan import Plan, PlanEntry
from sftm_app.units import format_distinct
from sftm_app.weights.checkpoint import Checkpoint
from sftm_app.weights.header import FileStamp
from sftm_app.weights.partial import LOCK_NAME
from sftm_app.weights.writer import Place, WeightsWriter, write_at

SHARED = "Inputs and output have to lie on storage that all machines of the cluster share, under the same paths."
# How often a tensor is tried again whose worker died.
N_RETRIES = 3
# Tasks that wait at Ray for each one that can run; more would only be more to cancel.
WAITING = 4
REACH_S = 10.0
# What Ray sets aside for objects is for much larger ones than a plan.
STORE_BYTES = 100_000_000


@dataclass(frozen=True)
class RayExecutor:
    """See the top of this file; an Executor for save().

    address: "auto" or HOST:PORT of a running cluster that this machine is part of; None starts one on this machine,
    which ends with the merge. workers: processes of that one, by default as many as have a CPU for each of their
    threads (torch.get_num_threads()). A cluster that the caller is connected to (ray.init) is used as it is.
    """

    address: str | None = None
    workers: int | None = None
    name: str = "ray"

    @contextmanager
    def ready(self, plan: Plan) -> Iterator[WriteEntries]:
        """Connects to the cluster.

        Raises
            InputError: Ray is not installed, or the cluster cannot be reached or has no machine for this plan's device
                and threads.
            ResourceError: no machine of the cluster has the memory for one of the tensors.
        """
        ray = _library()
        with _connected(ray, self.address, self.workers):
            needs = {"CPU": torch.get_num_threads(), "GPU": int(plan.device.type == "cuda")}
            machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
            _refuse_too_small(plan, needs, machines)
            n_slots = sum(int(machine.get("CPU", 0) // needs["CPU"]) for machine in machines)
            yield lambda entries, writer: _place(ray, plan, needs, WAITING * n_slots, entries, writer)


def _library() -> Any:
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # it would report to its makers
    try:
        import ray
    except ImportError:
        raise InputError(
            'The executor ray needs Ray, which is not installed. Run `pip install "sftm-studio[cluster]"`, or choose '
            "the executor local."
        ) from None
    return ray


@contextmanager
def _connected(ray: Any, address: str | None, workers: int | None) -> Iterator[None]:
    if ray.is_initialized():
        yield
        return
    options: dict[str, Any] = {"address": address}
    with ExitStack() as stack:
        if address is None:
            n_threads = torch.get_num_threads()
            n_workers = workers or max(1, n_processors() // n_threads)
            # Paths of sockets may not be long, so no place deeper than /tmp.
            root = "/tmp" if os.name == "posix" else None
            place = tempfile.TemporaryDirectory("", f"sftm-ray-{os.getpid()}-", root, ignore_cleanup_errors=True)
            options = {"address": "local", "num_cpus": n_workers * n_threads, "include_dashboard": False}
            options |= {"object_store_memory": STORE_BYTES, "_temp_dir": stack.enter_context(place)}
        stack.callback(ray.shutdown)
        try:
            _knock(address)
            ray.init(**options, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, RuntimeError, ValueError, OSError, ray.exceptions.RayError) as error:
            where = f"at {address!r} cannot be joined" if address else "cannot be started on this machine"
            raise InputError(
                f"A Ray cluster {where} ({_first_line(error)}). Check the address, that this machine runs Ray (`ray "
                "status`) and, where the cluster asks for a token, RAY_AUTH_MODE=token; or choose the executor local."
            ) from None
        yield


def _knock(address: str | None) -> None:
    """Raises OSError when nobody answers there; Ray itself would try for minutes."""
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), REACH_S).close()


def _refuse_too_small(plan: Plan, needs: Mapping[str, int], machines: Sequence[Mapping[str, float]]) -> None:
    """Ray would wait for ever for a machine that has what a task needs."""
    able = [machine for machine in machines if all(machine.get(name, 0) >= n for name, n in needs.items())]
    if not able:
        most = max((int(machine.get("CPU", 0)) for machine in machines), default=0)
        gpu = " and a GPU" if needs["GPU"] else ""
        raise InputError(
            f"No machine of the Ray cluster has {needs['CPU']} CPUs{gpu} for one worker (most CPUs: {most}). A worker "
            f"takes as many as torch has threads here: set OMP_NUM_THREADS={most or 1}, or choose another device."
        )
    room = max(machine.get("memory", 0) for machine in able)
    largest = max(plan.entries, key=lambda entry: _bytes_of(plan, entry))
    if _bytes_of(plan, largest) > room:
        needed, offered = format_distinct(_bytes_of(plan, largest), int(room))
        raise ResourceError(
            f"{largest.name!r} needs about {needed} of memory, and no machine of the "
            f"Ray cluster offers more than {offered}. Choose a lower rank or fewer tasks."
        )


def _bytes_of(plan: Plan, entry: PlanEntry) -> int:
    return entry_bytes(entry, plan.preflight, plan.recipe.params, device=plan.device)


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__).rstrip(".")


# ---- in the process that merges ----


@dataclass(frozen=True)
class _Job:
    """What every worker has to know. plan: without entries. lock: what tells that a folder is this merge's output."""

    plan: Plan
    made_by: dict[str, Any]
    lock: bytes


@dataclass(frozen=True)
class _Made:
    """What a worker sends back of one tensor that it has put in its place."""

    checksum: int
    records: tuple[TensorRecord, ...]
    worker: str
    peak_bytes: int


def _place(
    ray: Any, plan: Plan, needs: Mapping[str, int], limit: int, entries: Sequence[PlanEntry], writer: WeightsWriter
) -> Generator[WrittenTensor, None, None]:
    if not entries:
        return
    lock = _lock_beside(writer.place(entries[0].name))
    assert lock is not None
    # In a list, Ray leaves the reference to the worker, which looks it up once and not for every tensor.
    job = [ray.put(_Job(replace(plan, entries=(), cost=None), made_by(plan.device), lock))]
    task = ray.remote(num_cpus=needs["CPU"], num_gpus=needs["GPU"], max_retries=N_RETRIES)(_merge)
    left = sorted(entries, key=lambda entry: entry.cost)
    running: dict[Any, PlanEntry] = {}
    while left or running:
        while left and len(running) < limit:
            entry = left.pop()
            own = task.options(memory=_bytes_of(plan, entry))
            running[own.remote(job, entry, writer.place(entry.name))] = entry
        (done,), _ = ray.wait(list(running), num_returns=1)
        entry = running.pop(done)
        made = _result(ray, done, entry)
        if not writer.keep(entry.name, made.checksum):
            raise OutputError(
                f"{entry.name!r}: what {made.worker} wrote into {writer.place(entry.name).path} is not what is read "
                f"there. {SHARED}"
            )
        yield WrittenTensor(entry, made.checksum, made.records, made.worker, made.peak_bytes)


def _result(ray: Any, done: Any, entry: PlanEntry) -> _Made:
    """What a task came to. Errors of ours and of the disk come back as themselves."""
    try:
        made: _Made = ray.get(done)
        return made
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, SFTMError | OSError):
            raise error.cause from None
        if "failed to import on the worker" in str(error):
            raise JobError(
                "A worker of the Ray cluster cannot load SFTM Studio. Install the same version on all its machines."
            ) from None
        raise
    except ray.exceptions.OutOfMemoryError:
        raise ResourceError(
            f"Out of memory at {entry.name!r}, on a machine of the Ray cluster. Choose a lower rank or fewer tasks."
        ) from None
    except ray.exceptions.RayError as error:
        raise JobError(
            f"{entry.name!r}: its worker died each of {N_RETRIES + 1} times ({_first_line(error)}). Look whether its "
            "machine ran out of memory, or choose the executor local."
        ) from None


# ---- in a worker ----


def _merge(job: Sequence[Any], entry: PlanEntry, place: Place) -> _Made:
    """Merge one tensor and put it in its place. Raises what run() raises; OutputError, OSError."""
    plan, store, lock = _taken_up(job[0])

    def refuse_other_folder() -> None:
        if _lock_beside(place) != lock:
            raise OutputError(f"{place.path.parent}: is not there for {_worker()}, or is another merge's. {SHARED}")

    refuse_other_folder()
    with MemoryMeter(plan.device) as meter:
        (merged,) = run(replace(plan, entries=(entry,)), store)
        refuse_other_folder()
        checksum = write_at(place, merged.tensor)
        return _Made(checksum, merged.records, _worker(), meter.look())


def _lock_beside(place: Place) -> bytes | None:
    with suppress(OSError):
        return place.path.with_name(LOCK_NAME).read_bytes()
    return None


@lru_cache(maxsize=1)
def _taken_up(reference: Any) -> tuple[Plan, FactorStore | None, bytes]:
    """What this worker needs for every tensor of a job. Raises JobError, CheckpointError."""
    import ray

    job: _Job = ray.get(reference)
    torch.set_num_threads(job.made_by["the number of threads"])
    here = made_by(job.plan.device)
    for key, there in job.made_by.items():
        if here[key] != there:
            raise JobError(
                f"{_worker()} would not give the same result: {key} is {here[key]} there and {there} here. "
                "Take machines that are alike, with the same versions."
            )
    found = job.plan.preflight
    tasks = tuple(replace(task, checkpoint=_seen_here(task.checkpoint)) for task in found.tasks)
    found = replace(found, base=_seen_here(found.base), tasks=tasks)
    return replace(job.plan, preflight=found), open_store(), job.lock


def _seen_here(checkpoint: Checkpoint) -> Checkpoint:
    """The same files as this machine sees them, which may number them in its own way."""
    stamps = {}
    for path, stamp in checkpoint.stamps.items():
        try:
            seen = FileStamp.of(path)
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read by {_worker()} ({error.strerror}). {SHARED}") from None
        if (seen.size_bytes, seen.mtime_ns) != (stamp.size_bytes, stamp.mtime_ns):
            raise CheckpointError(f"{path}: was changed while in use, or is another file for {_worker()}. {SHARED}")
        stamps[path] = seen
    return replace(checkpoint, stamps=stamps)


def _worker() -> str:
    return f"worker {os.getpid()} on {socket.gethostname()}"
