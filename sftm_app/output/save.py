"""Merge into a folder that `from_pretrained` loads."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Generator
from contextlib import closing
from pathlib import Path

from sftm_app.errors import OutputError, RecipeError
from sftm_app.output.adapter.save import save_adapter
from sftm_app.output.executors import Executor, LocalExecutor, WriteEntries
from sftm_app.output.meter import MemoryMeter
from sftm_app.output.progress import Clock, Progress
from sftm_app.output.removal import check_replaceable, remove_replaced
from sftm_app.output.report import Report, hashing, make_report
from sftm_app.output.resume import Finished, Unfinished, progress_file, to_resume
from sftm_app.output.side_files import write_documents, write_heads, write_side_files
from sftm_app.planning.budget import check_budget
from sftm_app.planning.plan import Plan
from sftm_app.session import Session
from sftm_app.weights.partial import check_disk_space, output_folder, refuse_existing
from sftm_app.weights.writer import weights_writer


def save(
    plan: Plan,
    session: Session,
    output: Path,
    resume: bool | None = None,
    executor: Executor | None = None,
    replace: bool = False,
) -> Generator[Progress, None, Report]:
    """Merge into `output`, yielding after each tensor and before the last step, and returning the report.

    Closing the generator early leaves nothing behind. A process that is killed leaves its finished tensors, which
    resume=True continues; see `to_resume`. Adapters always start from the beginning.

    Args:
        plan: what to merge; its recipe names the kind of output.
        session: what this process may use.
        output: a folder that does not exist yet.
        resume: whether to continue what a killed merge left.
        executor: who merges the tensors of a model, by default this process. The result is the same.
        replace: `output` may be a merged model of this app. It stays as it is until the new one is complete.

    Raises:
        OutputError, ResourceError: see `check_output`, `check_budget`, `to_resume`, `output_folder` and `run`.
        NumericalError: see `run`.
        RecipeError: another executor was asked for an adapter.
    """
    executor = executor or LocalExecutor()
    if plan.writes_adapter and executor.name != LocalExecutor.name:
        raise RecipeError(
            f"The executor {executor.name!r} makes models only; an adapter is small and made in one process. Choose "
            f"the executor {LocalExecutor.name}, or the output kind model."
        )
    check_budget(plan, session.n_threads)
    check_output(plan, output, replace)
    left = to_resume(plan, session, output, resume)
    # What an executor loads does not count as memory of the merge.
    with executor.ready(plan, session) as write_entries, MemoryMeter(plan.device) as meter:
        if plan.writes_adapter:
            report = yield from save_adapter(plan, session, output, meter, replace)
        else:
            report = yield from _save_model(plan, session, output, meter, left, executor.name, write_entries, replace)
    # The new output is complete: what cannot be removed now is removed by the next one that replaces it.
    with contextlib.suppress(OutputError):
        remove_replaced(output)
    return report


def check_output(plan: Plan, output: Path, replace: bool = False) -> None:
    """Refuse an output folder that cannot be used.

    Raises:
        OutputError: it exists and may not be replaced, is an input or lies inside one or holds one, or its parent
            cannot be read.
        ResourceError: the disk has too little room.
    """
    resolved = output.resolve()
    for checkpoint in plan.preflight.checkpoints:
        if resolved == checkpoint.path or checkpoint.path in resolved.parents:
            raise OutputError(f"{output}: is inside the input {checkpoint.path}. Choose another output folder.")
        if replace and resolved in checkpoint.path.parents:
            raise OutputError(f"{output}: holds the input {checkpoint.path}. Choose another output folder.")
    if replace:
        check_replaceable(output)
    else:
        refuse_existing(output)
    check_disk_space(output, plan.output_bytes)


def _save_model(
    plan: Plan,
    session: Session,
    output: Path,
    meter: MemoryMeter,
    left: Unfinished | None,
    executor: str,
    write_entries: WriteEntries,
    replace: bool,
) -> Generator[Progress, None, Report]:
    started = time.perf_counter()
    workers: set[str] = set()
    with output_folder(output, left is not None, replace) as partial, hashing(plan, session) as hashed:
        with weights_writer(
            partial, plan.outputs, plan.max_shard_bytes, left is not None, plan.preflight.base.stem
        ) as writer:
            write_heads(plan, partial)
            write_side_files(plan, partial)
            finished = {
                name: one for name, one in (left.finished if left else {}).items() if writer.accept(name, one.checksum)
            }
            n_resumed = len(finished)
            peak_bytes = max((one.peak_bytes for one in finished.values()), default=0)
            clock = Clock(plan, started - max((one.elapsed_s for one in finished.values()), default=0.0))
            yield from [clock.after(entry) for entry in plan.entries if entry.name in finished][-1:]
            rest = [entry for entry in plan.entries if entry.name not in finished]
            with (
                progress_file(partial, plan, session, writer, finished.values()) as progress,
                closing(write_entries(rest, writer)) as writing,
            ):
                for written in writing:
                    name = written.entry.name
                    workers.add(written.worker)
                    peak_bytes = max(peak_bytes, written.peak_bytes, meter.look())
                    step = clock.after(written.entry)
                    finished[name] = Finished(name, written.checksum, written.records, step.elapsed_s, peak_bytes)
                    progress.add(finished[name])
                    yield step
            # What follows may take seconds: bytes go to the disk, and hashes of the inputs may be missing.
            yield clock.last()
        records = [record for entry in plan.entries for record in finished[entry.name].records]
        report = make_report(plan, session, records, clock.elapsed_s, max(peak_bytes, meter.look()), hashed)
        machine = dataclasses.replace(
            report.machine, executor=executor, workers=len(workers), resumed_after_tensors=n_resumed
        )
        if executor != LocalExecutor.name:  # the prediction is for one process on this machine
            machine = dataclasses.replace(machine, seconds_predicted=None, tensor_seconds_predicted={})
        report = dataclasses.replace(report, machine=machine)
        write_documents(plan, report, partial)
    return report
