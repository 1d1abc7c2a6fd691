"""Run a plan into a folder that `from_pretrained` loads."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Generator
from contextlib import closing
from pathlib import Path

from sftm_app.errors import RecipeError
from sftm_app.output.adapter.save import save_adapter
from sftm_app.output.checks import check_output
from sftm_app.output.executors import Executor, LocalExecutor, WriteEntries
from sftm_app.output.meter import MemoryMeter
from sftm_app.output.progress import Clock, Progress
from sftm_app.output.report import Report, hashing, make_report
from sftm_app.output.resume import Finished, Unfinished, progress_file, to_resume
from sftm_app.output.side_files import write_documents, write_heads, write_side_files
from sftm_app.planning.plan import Plan
from sftm_app.weights.writer import (
    output_folder,
    weights_writer,
)


def save(
    plan: Plan, output: Path, resume: bool | None = None, executor: Executor | None = None
) -> Generator[Progress, None, Report]:
    """Merge into `output`, yielding after each tensor and before the last step, and returning the Report.

    Writes the kind of output that the recipe names. Closing it early leaves nothing behind. A process that is killed
    leaves its finished tensors, for resume=True to go on with; see to_resume. Adapters are always made anew.
    executor: who merges the tensors of a model, by default this process. The result is the same, whoever does.

    Raises
        OutputError, ResourceError: see check_output, to_resume and output_folder; and what run() raises.
        RecipeError: an adapter is to be made by other processes.
    """
    executor = executor or LocalExecutor()
    adapter = plan.recipe.output.kind == "adapter"
    if adapter and executor.name != LocalExecutor.name:
        raise RecipeError(
            f"An adapter is small and made in one process: {executor.name!r} is for models. Choose the executor "
            f"{LocalExecutor.name}, or output kind model."
        )
    check_output(plan, output)
    left = to_resume(plan, output, resume)
    # What an executor loads is no memory of the merge.
    with executor.ready(plan) as place, MemoryMeter(plan.device) as meter:
        if adapter:
            return (yield from save_adapter(plan, output, meter))
        return (yield from _save_model(plan, output, meter, left, executor.name, place))


def _save_model(
    plan: Plan, output: Path, meter: MemoryMeter, left: Unfinished | None, executor: str, place: WriteEntries
) -> Generator[Progress, None, Report]:
    started = time.perf_counter()
    with output_folder(output, keep=left is not None) as partial, hashing(plan) as hashed:
        with weights_writer(partial, plan.outputs, plan.max_shard_bytes, keep=left is not None) as writer:
            write_heads(plan, partial)
            write_side_files(plan, partial)
            before = left.finished if left else {}
            done = {name: one for name, one in before.items() if writer.keep(name, one.checksum)}
            kept = [entry for entry in plan.entries if entry.name in done]
            peak_bytes = max((one.peak_bytes for one in done.values()), default=0)
            started -= max((one.elapsed_s for one in done.values()), default=0.0)
            clock = Clock(plan, started)
            workers: set[str] = set()
            with progress_file(partial, plan, writer, done.values()) as progress:
                yield from [clock.after(entry) for entry in kept][-1:]
                rest = [entry for entry in plan.entries if entry.name not in done]
                with closing(place(rest, writer)) as placing:
                    for placed in placing:
                        entry = placed.entry
                        workers.add(placed.worker)
                        peak_bytes = max(peak_bytes, placed.peak_bytes, meter.look())
                        step = clock.after(entry)
                        done[entry.name] = Finished(
                            entry.name, placed.checksum, placed.records, step.elapsed_s, peak_bytes
                        )
                        progress.add(done[entry.name])
                        yield step
            # What follows may take seconds: bytes go to the disk, and the inputs' hashes may not be there yet.
            yield clock.last()
        made = [record for entry in plan.entries for record in done[entry.name].records]
        # What was expected is one process on this machine.
        expected = plan if executor == LocalExecutor.name else dataclasses.replace(plan, cost=None)
        report = make_report(expected, made, clock.elapsed_s, max(peak_bytes, meter.look()), hashed)
        machine = report.machine | {"executor": executor, "workers": len(workers)}
        if kept:
            machine["resumed_after_tensors"] = len(kept)
        report = dataclasses.replace(report, machine=machine)
        write_documents(plan, report, partial)
    return report
