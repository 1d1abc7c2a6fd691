"""What a worker of a Ray cluster does; see `output.ray_executor`."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import torch

from sftm_app.engine.run import run
from sftm_app.errors import CheckpointError, JobError, OutputError
from sftm_app.output.executors import WrittenTensor
from sftm_app.output.meter import MemoryMeter
from sftm_app.output.resume import MadeBy, made_by
from sftm_app.planning.plan import Plan, PlanEntry
from sftm_app.session import Session, open_session
from sftm_app.weights.checkpoint import Checkpoint
from sftm_app.weights.header import FileStamp
from sftm_app.weights.partial import LOCK_NAME
from sftm_app.weights.writer import Place, write_at

SHARED = "Inputs and output must lie on storage that all machines of the cluster share, under the same paths."


@dataclass(frozen=True)
class Job:
    """What every worker must know about a merge.

    Attributes:
        plan: without its entries, which come one by one.
        made_by: what the result depends on in the process that started the merge.
        lock: identifies the output folder.
    """

    plan: Plan
    made_by: MadeBy
    lock: bytes


@dataclass(frozen=True, eq=False)
class OpenJob:
    """A job that a worker has checked and opened: with the files as its machine sees them, and a session."""

    plan: Plan
    session: Session
    lock: bytes


def make_task(fetch: Callable[[Any], Job]) -> Callable[[Sequence[Any], PlanEntry, Place], WrittenTensor]:
    """The function that workers run on each tensor.

    Ray loads it once per worker process, so what it holds lasts from one tensor to the next: a worker opens a job once.

    Args:
        fetch: gets a job by its reference, such as ray.get.
    """
    opened: dict[Any, OpenJob] = {}

    def merge(job: Sequence[Any], entry: PlanEntry, place: Place) -> WrittenTensor:
        (reference,) = job
        if reference not in opened:
            opened.clear()
            opened[reference] = open_job(fetch(reference))
        return merge_entry(opened[reference], entry, place)

    return merge


def open_job(job: Job) -> OpenJob:
    """Check and open a job in this process, a worker.

    Raises:
        JobError: this process would give another result: its version, processor or device differs.
        CheckpointError: an input cannot be read here, or differs.
    """
    torch.set_num_threads(job.made_by.n_threads)
    session = open_session()  # a worker is an entry point of its own
    here = made_by(job.plan.device, session.n_threads).facts()
    for name, there in job.made_by.facts().items():
        if here[name] != there:
            raise JobError(
                f"{worker_name()} would give another result: {name} is {there} where the merge was started and "
                f"{here[name]} here. Use machines of one kind, with the same versions."
            )
    found = job.plan.preflight
    tasks = tuple(replace(task, checkpoint=_restamp(task.checkpoint)) for task in found.tasks)
    found = replace(found, base=_restamp(found.base), tasks=tasks)
    return OpenJob(replace(job.plan, preflight=found), session, job.lock)


def merge_entry(job: OpenJob, entry: PlanEntry, place: Place) -> WrittenTensor:
    """Merge one tensor and write it to its place.

    Raises:
        OutputError: the output folder is not there, or belongs to another merge.
        OSError: the tensor cannot be written; and what `run` raises.
    """

    def refuse_other_folder() -> None:
        if read_lock(place) != job.lock:
            raise OutputError(f"{place.path.parent}: {worker_name()} does not find this folder of the merge. {SHARED}")

    refuse_other_folder()
    with MemoryMeter(job.plan.device) as meter:
        (merged,) = run(replace(job.plan, entries=(entry,)), job.session)
        refuse_other_folder()
        checksum = write_at(place, merged.tensor)
        return WrittenTensor(entry, checksum, merged.records, worker_name(), meter.look())


def read_lock(place: Place) -> bytes | None:
    """What identifies the merge that writes to this place, or None if there is none."""
    with suppress(OSError):
        return place.path.with_name(LOCK_NAME).read_bytes()
    return None


def worker_name() -> str:
    """This process in words."""
    return f"worker {os.getpid()} on {socket.gethostname()}"


def _restamp(checkpoint: Checkpoint) -> Checkpoint:
    """The same files as this machine sees them: inodes and change times may differ."""
    stamps = {}
    for path, stamp in checkpoint.stamps.items():
        try:
            here = FileStamp.of(path)
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read by {worker_name()} ({error.strerror}). {SHARED}") from None
        if (here.size_bytes, here.mtime_ns) != (stamp.size_bytes, stamp.mtime_ns):
            raise CheckpointError(f"{path}: was changed while in use, or is another file for {worker_name()}. {SHARED}")
        stamps[path] = here
    return replace(checkpoint, stamps=stamps)
