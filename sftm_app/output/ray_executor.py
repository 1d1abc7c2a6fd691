"""Merge the tensors of a plan on the workers of a Ray cluster.

Ray schedules. A task is one tensor of the output, the costliest first. Its worker reads the inputs, writes the tensor
to its place in the output, and sends back a checksum and the tensor's lines of the report. Nothing else crosses the
network, so inputs and output lie on storage that all machines share, under the same paths. If a worker dies, Ray gives
its tensor to another one.

A merge that is stopped removes its output folder, and workers stop when they see that, unless they have lost the
connection before. ray.cancel is not used: if the task has just ended, Ray 2.60 aborts the process that calls it.

Results are those of one process: workers compute with its number of threads, and refuse if their versions, processor or
inputs differ.
"""

from __future__ import annotations

import logging
import os
import socket
import tempfile
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

from sftm_app.engine.task_vectors import prepare_plan
from sftm_app.errors import InputError, JobError, OutputError, ResourceError, SFTMError
from sftm_app.linalg.parallel import n_processors
from sftm_app.output.executors import WriteEntries, WrittenTensor
from sftm_app.output.ray_worker import SHARED, Job, make_task, read_lock
from sftm_app.output.resume import made_by
from sftm_app.planning.budget import memory_model
from sftm_app.planning.memory import entry_bytes
from sftm_app.planning.plan import Plan, PlanEntry
from sftm_app.session import Session
from sftm_app.units import format_distinct
from sftm_app.weights.writer import WeightsWriter

# How often to retry a tensor whose worker died.
N_RETRIES = 3
# Tasks that wait in Ray for each one that can run; more would only be more to cancel.
WAITING = 4
REACH_S = 10.0
# Ray's own default is for objects much larger than a plan.
STORE_BYTES = 100_000_000


@dataclass(frozen=True)
class RayExecutor:
    """Merge on the workers of a Ray cluster; an Executor for `save`.

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
            InputError: Ray is not installed, the cluster cannot be reached, or none of its machines has the device and
                the CPUs that the plan needs.
            ResourceError: one of the tensors needs more memory than any machine of the cluster has.
        """
        ray = _import_ray()
        with _connected(ray, self.address, self.workers, session.n_threads):
            needs = {"CPU": session.n_threads, "GPU": int(plan.device.type == "cuda")}
            machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
            model = memory_model(plan, session.n_threads)
            sizes = {entry.name: entry_bytes(entry, model) for entry in plan.entries}
            _refuse_too_small(sizes, needs, machines)
            n_slots = sum(int(machine.get("CPU", 0) // needs["CPU"]) for machine in machines)
            cluster = _Cluster(ray, plan, session, needs, sizes, WAITING * n_slots)
            yield lambda entries, writer: _write_entries(cluster, entries, writer)


@dataclass(frozen=True, eq=False)
class _Cluster:
    """A cluster and what to merge on it.

    Attributes:
        ray: the library, connected.
        plan, session: of the merge.
        needs: what a worker takes: number of CPUs and of GPUs.
        sizes: bytes of memory that each tensor takes.
        limit: how many tasks Ray holds at once.
    """

    ray: Any
    plan: Plan
    session: Session
    needs: Mapping[str, int]
    sizes: Mapping[str, int]
    limit: int


def _import_ray() -> Any:
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # it would report statistics to its makers
    try:
        import ray  # an extra, and slow to import
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
            # Paths of sockets must be short, so take /tmp and nothing deeper.
            root = "/tmp" if os.name == "posix" else None
            folder = tempfile.TemporaryDirectory("", f"sftm-ray-{os.getpid()}-", root, ignore_cleanup_errors=True)
            options = {"address": "local", "num_cpus": n_workers * n_threads, "include_dashboard": False}
            options |= {"object_store_memory": STORE_BYTES, "_temp_dir": stack.enter_context(folder)}
        stack.callback(ray.shutdown)
        try:
            _try_address(address)
            ray.init(**options, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, RuntimeError, ValueError, OSError, ray.exceptions.RayError) as error:
            where = f"at {address!r} cannot be joined" if address else "cannot be started on this machine"
            raise InputError(
                f"A Ray cluster {where} ({_first_line(error)}). Check the address, that this machine runs Ray (`ray "
                "status`) and, where the cluster asks for a token, RAY_AUTH_MODE=token; or choose the executor local."
            ) from None
        yield


def _try_address(address: str | None) -> None:
    """Raise OSError if nothing answers there; Ray itself would try for minutes."""
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), REACH_S).close()


def _refuse_too_small(
    sizes: Mapping[str, int], needs: Mapping[str, int], machines: Sequence[Mapping[str, float]]
) -> None:
    """Refuse a cluster that cannot run the tasks: Ray would wait forever for a machine that can."""
    suitable = [machine for machine in machines if all(machine.get(name, 0) >= n for name, n in needs.items())]
    if not suitable:
        most = max((int(machine.get("CPU", 0)) for machine in machines), default=0)
        gpu = " and a GPU" if needs["GPU"] else ""
        raise InputError(
            f"No machine of the Ray cluster has {needs['CPU']} CPUs{gpu} for one worker (most CPUs: {most}). A worker "
            f"needs as many CPUs as torch uses threads here. Set OMP_NUM_THREADS={most or 1}, or choose another device."
        )
    room = max(machine.get("memory", 0) for machine in suitable)
    largest = max(sizes, key=lambda name: sizes[name])
    if sizes[largest] > room:
        needed, offered = format_distinct(sizes[largest], int(room))
        raise ResourceError(
            f"{largest!r} needs about {needed} of memory, and no machine of the "
            f"Ray cluster offers more than {offered}. Choose a lower rank or fewer tasks."
        )


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__).rstrip(".")


def _write_entries(
    cluster: _Cluster, entries: Sequence[PlanEntry], writer: WeightsWriter
) -> Generator[WrittenTensor, None, None]:
    if not entries:
        return
    ray, plan, needs = cluster.ray, cluster.plan, cluster.needs
    lock = read_lock(writer.place(entries[0].name))
    assert lock is not None
    # A worker sees one tensor, so what needs whole task vectors is found out here.
    bare = replace(prepare_plan(plan, cluster.session), entries=(), cost=replace(plan.cost, entries=()))
    # Ray would send an object with every task. Inside a list it sends a reference, which a worker looks up once.
    job = [ray.put(Job(bare, made_by(plan.device, cluster.session.n_threads), lock))]
    task = ray.remote(num_cpus=needs["CPU"], num_gpus=needs["GPU"], max_retries=N_RETRIES)(make_task(ray.get))
    seconds = {entry.name: entry.seconds for entry in plan.cost.entries}
    left = sorted(entries, key=lambda entry: seconds[entry.name])
    running: dict[Any, PlanEntry] = {}
    while left or running:
        while left and len(running) < cluster.limit:
            entry = left.pop()
            sized = task.options(memory=cluster.sizes[entry.name])
            running[sized.remote(job, entry, writer.place(entry.name))] = entry
        (done,), _ = ray.wait(list(running), num_returns=1)
        written = _result(ray, done, running.pop(done))
        name = written.entry.name
        if not writer.accept(name, written.checksum):
            raise OutputError(
                f"{name!r}: the bytes in {writer.place(name).path} are not those that {written.worker} wrote. {SHARED}"
            )
        yield written


def _result(ray: Any, done: Any, entry: PlanEntry) -> WrittenTensor:
    """The result of a task. Our own errors, and those of the disk, are raised as they are."""
    try:
        written: WrittenTensor = ray.get(done)
        return written
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
