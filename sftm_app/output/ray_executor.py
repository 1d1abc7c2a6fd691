"""Merge the tensors of a plan by the workers of a Ray cluster.

Ray schedules. A task is one tensor of the output, the costliest first. Its worker reads the inputs, writes the tensor's
bytes to their place in the output, and sends back their checksum and the tensor's lines of the report. Nothing else
crosses the network, so inputs and output lie on storage that all machines share, under the same paths. If a worker dies,
Ray gives its tensor to another one.

A merge that is stopped removes its output folder. Workers then stop at the next tensor, if the connection to them did
not end before. ray.cancel is not used: if the task has just ended, Ray 2.60 aborts the process that calls it.

Results are those of one process: workers compute with its number of threads, and refuse if their versions, processor or
inputs differ.
"""

from __future__ import annotations

import logging
import os
import socket
import tempfile
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

import torch

from sftm_app.engine.records import TensorRecord
from sftm_app.engine.run import run
from sftm_app.errors import CheckpointError, InputError, JobError, OutputError, ResourceError, SFTMError
from sftm_app.linalg.parallel import n_processors
from sftm_app.output.executors import WriteEntries, WrittenTensor
from sftm_app.output.meter import MemoryMeter
from sftm_app.output.resume import MadeBy, made_by
from sftm_app.planning.budget import memory_model
from sftm_app.planning.memory import entry_bytes
from sftm_app.planning.plan import Plan, PlanEntry
from sftm_app.session import Session, open_session
from sftm_app.units import format_distinct
from sftm_app.weights.checkpoint import Checkpoint
from sftm_app.weights.header import FileStamp
from sftm_app.weights.partial import LOCK_NAME
from sftm_app.weights.writer import Place, WeightsWriter, write_at

SHARED = "Inputs and output must lie on storage that all machines of the cluster share, under the same paths."
# How often to retry a tensor whose worker died.
N_RETRIES = 3
# Tasks that wait in Ray for each one that can run; more would only be more to cancel.
WAITING = 4
REACH_S = 10.0
# Ray's own default is for much larger objects than a plan.
STORE_BYTES = 100_000_000


@dataclass(frozen=True)
class RayExecutor:
    """Merge by the workers of a Ray cluster; an Executor for `save`.

    A cluster that the caller is connected to (ray.init) is used as it is.

    Attributes:
        address: "auto" or HOST:PORT of a running cluster that this machine is part of; None starts a cluster on this
            machine, which ends with the merge.
        workers: processes of a cluster that is started, by default as many as have a CPU for each of their threads.
    """

    address: str | None = None
    workers: int | None = None
    name: str = "ray"

    @contextmanager
    def ready(self, plan: Plan, session: Session) -> Iterator[WriteEntries]:
        """Connect to the cluster.

        Raises:
            InputError: Ray is not installed, the cluster cannot be reached, or no machine of it has this plan's device
                and threads.
            ResourceError: no machine of the cluster has the memory for one of the tensors.
        """
        ray = _library()
        with _connected(ray, self.address, self.workers, session.n_threads):
            needs = {"CPU": session.n_threads, "GPU": int(plan.device.type == "cuda")}
            machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
            sizes = _entry_sizes(plan, session)
            _refuse_too_small(plan, sizes, needs, machines)
            n_slots = sum(int(machine.get("CPU", 0) // needs["CPU"]) for machine in machines)
            cluster = _Cluster(ray, plan, session, needs, sizes, WAITING * n_slots)
            yield lambda entries, writer: _write_entries(cluster, entries, writer)


@dataclass(frozen=True, eq=False)
class _Cluster:
    """What giving out tasks needs. sizes: bytes of memory per tensor. limit: how many tasks Ray holds at once."""

    ray: Any
    plan: Plan
    session: Session
    needs: Mapping[str, int]
    sizes: Mapping[str, int]
    limit: int


def _entry_sizes(plan: Plan, session: Session) -> dict[str, int]:
    model = memory_model(plan, session.n_threads)
    return {entry.name: entry_bytes(entry, model) for entry in plan.entries}


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
def _connected(ray: Any, address: str | None, workers: int | None, n_threads: int) -> Iterator[None]:
    if ray.is_initialized():
        yield
        return
    options: dict[str, Any] = {"address": address}
    with ExitStack() as stack:
        if address is None:
            n_workers = workers or max(1, n_processors() // n_threads)
            # Paths of sockets must be short, so nothing deeper than /tmp.
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
    """Raise OSError if nobody answers there; Ray itself would try for minutes."""
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), REACH_S).close()


def _refuse_too_small(
    plan: Plan, sizes: Mapping[str, int], needs: Mapping[str, int], machines: Sequence[Mapping[str, float]]
) -> None:
    """Refuse a cluster without a machine for the tasks: Ray would wait for one for ever."""
    able = [machine for machine in machines if all(machine.get(name, 0) >= n for name, n in needs.items())]
    if not able:
        most = max((int(machine.get("CPU", 0)) for machine in machines), default=0)
        gpu = " and a GPU" if needs["GPU"] else ""
        raise InputError(
            f"No machine of the Ray cluster has {needs['CPU']} CPUs{gpu} for one worker (most CPUs: {most}). A worker "
            f"takes as many as torch has threads here: set OMP_NUM_THREADS={most or 1}, or choose another device."
        )
    room = max(machine.get("memory", 0) for machine in able)
    largest = max(sizes, key=lambda name: sizes[name])
    if sizes[largest] > room:
        needed, offered = format_distinct(sizes[largest], int(room))
        raise ResourceError(
            f"{largest!r} needs about {needed} of memory, and no machine of the "
            f"Ray cluster offers more than {offered}. Choose a lower rank or fewer tasks."
        )


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__).rstrip(".")


# ---- in the process that merges ----


@dataclass(frozen=True)
class _Job:
    """What every worker must know. plan: without entries. lock: identifies the output folder of this merge."""

    plan: Plan
    made_by: MadeBy
    lock: bytes


@dataclass(frozen=True)
class _Made:
    """What a worker sends back about one tensor that it has written."""

    checksum: int
    records: tuple[TensorRecord, ...]
    worker: str
    peak_bytes: int


def _write_entries(
    cluster: _Cluster, entries: Sequence[PlanEntry], writer: WeightsWriter
) -> Generator[WrittenTensor, None, None]:
    if not entries:
        return
    ray, plan, needs = cluster.ray, cluster.plan, cluster.needs
    lock = _lock_of(writer.place(entries[0].name))
    assert lock is not None
    # Inside a list, Ray leaves the reference to the worker, which fetches it once and not for every tensor.
    bare = replace(plan, entries=(), cost=replace(plan.cost, entries=()))
    job = [ray.put(_Job(bare, made_by(plan.device, cluster.session.n_threads), lock))]
    task = ray.remote(num_cpus=needs["CPU"], num_gpus=needs["GPU"], max_retries=N_RETRIES)(_make_task())
    seconds = {entry.name: entry.seconds for entry in plan.cost.entries}
    left = sorted(entries, key=lambda entry: seconds[entry.name])
    running: dict[Any, PlanEntry] = {}
    while left or running:
        while left and len(running) < cluster.limit:
            entry = left.pop()
            own = task.options(memory=cluster.sizes[entry.name])
            running[own.remote(job, entry, writer.place(entry.name))] = entry
        (done,), _ = ray.wait(list(running), num_returns=1)
        entry = running.pop(done)
        made = _result(ray, done, entry)
        if not writer.accept(entry.name, made.checksum):
            raise OutputError(
                f"{entry.name!r}: the bytes in {writer.place(entry.name).path} are not those that {made.worker} wrote. "
                f"{SHARED}"
            )
        yield WrittenTensor(entry, made.checksum, made.records, made.worker, made.peak_bytes)


def _result(ray: Any, done: Any, entry: PlanEntry) -> _Made:
    """The result of a task. Our own errors and those of the disk come back as themselves."""
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
            f"{entry.name!r}: its worker died {N_RETRIES + 1} times ({_first_line(error)}). Check whether its "
            "machine ran out of memory, or choose the executor local."
        ) from None


# ---- in a worker ----


@dataclass(frozen=True, eq=False)
class _Worker:
    """What a worker needs for every tensor of a job."""

    plan: Plan
    session: Session
    lock: bytes


def _make_task() -> Callable[[Sequence[Any], PlanEntry, Place], _Made]:
    """The task that workers run. Ray loads it once per worker process, with a memory of the job that it opened."""
    opened: dict[Any, _Worker] = {}

    def merge(job: Sequence[Any], entry: PlanEntry, place: Place) -> _Made:
        if job[0] not in opened:
            opened.clear()
            opened[job[0]] = _open_job(job[0])
        return _merge(opened[job[0]], entry, place)

    return merge


def _merge(worker: _Worker, entry: PlanEntry, place: Place) -> _Made:
    """Merge one tensor and write it. Raises what `run` raises; OutputError, OSError."""
    plan = worker.plan

    def refuse_other_folder() -> None:
        if _lock_of(place) != worker.lock:
            raise OutputError(f"{place.path.parent}: is not there for {_name()}, or is another merge's. {SHARED}")

    refuse_other_folder()
    with MemoryMeter(plan.device) as meter:
        (merged,) = run(replace(plan, entries=(entry,)), worker.session)
        refuse_other_folder()
        checksum = write_at(place, merged.tensor)
        return _Made(checksum, merged.records, _name(), meter.look())


def _lock_of(place: Place) -> bytes | None:
    with suppress(OSError):
        return place.path.with_name(LOCK_NAME).read_bytes()
    return None


def _open_job(reference: Any) -> _Worker:
    """Open a job in this worker, which is an entry point of its own. Raises JobError, CheckpointError."""
    import ray

    job: _Job = ray.get(reference)
    torch.set_num_threads(job.made_by.n_threads)
    session = open_session()
    here = made_by(job.plan.device, session.n_threads).facts()
    for key, there in job.made_by.facts().items():
        if here[key] != there:
            raise JobError(
                f"{_name()} would not give the same result: {key} is {here[key]} there and {there} here. "
                "Use machines that are alike, with the same versions."
            )
    found = job.plan.preflight
    tasks = tuple(replace(task, checkpoint=_restamped(task.checkpoint)) for task in found.tasks)
    found = replace(found, base=_restamped(found.base), tasks=tasks)
    return _Worker(replace(job.plan, preflight=found), session, job.lock)


def _restamped(checkpoint: Checkpoint) -> Checkpoint:
    """The same files as this machine sees them: inodes and change times may differ."""
    stamps = {}
    for path, stamp in checkpoint.stamps.items():
        try:
            here = FileStamp.of(path)
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read by {_name()} ({error.strerror}). {SHARED}") from None
        if (here.size_bytes, here.mtime_ns) != (stamp.size_bytes, stamp.mtime_ns):
            raise CheckpointError(f"{path}: was changed while in use, or is another file for {_name()}. {SHARED}")
        stamps[path] = here
    return replace(checkpoint, stamps=stamps)


def _name() -> str:
    return f"worker {os.getpid()} on {socket.gethostname()}"
