"""Run a plan into a folder that `from_pretrained` loads."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Generator
from pathlib import Path

from sftm_app.checkpoints.writer import (
    check_room,
    copy_file,
    list_files,
    output_folder,
    refuse_existing,
    sync_folder,
    weights_writer,
)
from sftm_app.errors import OutputError
from sftm_app.merging.factor_cache import open_store
from sftm_app.merging.meter import MemoryMeter
from sftm_app.merging.output_files import write_documents, write_heads, write_side_files
from sftm_app.merging.plan import Plan, check_output
from sftm_app.merging.progress import Clock, Progress
from sftm_app.merging.report import Report, make_report
from sftm_app.merging.resuming import Finished, Unfinished, progress_file, to_resume
from sftm_app.merging.run import run
from sftm_app.merging.save_adapter import save_adapter


def save(plan: Plan, output: Path, resume: bool | None = None) -> Generator[Progress, None, Report]:
    """Merge into `output`, yielding after each tensor and before the last step, and returning the Report.

    Writes the kind of output that the recipe names. Closing it early leaves nothing behind. A process that is killed
    leaves its finished tensors, for resume=True to go on with; see to_resume. Adapters are always made anew.

    Raises
        OutputError, ResourceError: see check_output, to_resume and output_folder; and what run() raises.
    """
    check_output(plan, output)
    left = to_resume(plan, output, resume)
    with MemoryMeter(plan.device) as meter:
        if plan.recipe.output.kind == "adapter":
            return (yield from save_adapter(plan, output, meter))
        return (yield from _save_model(plan, output, meter, left))


def _save_model(
    plan: Plan, output: Path, meter: MemoryMeter, left: Unfinished | None
) -> Generator[Progress, None, Report]:
    started = time.perf_counter()
    with output_folder(output, keep=left is not None) as partial:
        with weights_writer(partial, plan.outputs, plan.max_shard_bytes, keep=left is not None) as writer:
            write_heads(plan, partial)
            write_side_files(plan, partial)
            before = left.finished if left else {}
            done = {name: one for name, one in before.items() if writer.keep(name, one.checksum)}
            kept = [entry for entry in plan.entries if entry.name in done]
            peak_bytes = max((one.peak_bytes for one in done.values()), default=0)
            started -= max((one.elapsed_s for one in done.values()), default=0.0)
            clock = Clock(plan, started, len(kept[:-1]), sum(entry.cost for entry in kept[:-1]))
            with progress_file(partial, plan, writer, done.values()) as progress:
                yield from (clock.after(entry) for entry in kept[-1:])
                rest = tuple(entry for entry in plan.entries if entry.name not in done)
                for merged in run(dataclasses.replace(plan, entries=rest), open_store()):
                    entry, records = merged.entry, merged.records
                    checksum = writer.write(entry.name, merged.tensor)
                    del merged  # its tensor would be held while the next one is made
                    peak_bytes = max(peak_bytes, meter.look())
                    step = clock.after(entry)
                    done[entry.name] = Finished(entry.name, checksum, records, step.elapsed_s, peak_bytes)
                    progress.add(done[entry.name])
                    yield step
            # What follows takes seconds for large models: bytes go to the disk, every input is read again for its hash.
            yield clock.last()
        made = [record for entry in plan.entries for record in done[entry.name].records]
        report = make_report(plan, made, clock.elapsed_s, max(peak_bytes, meter.look()))
        if kept:
            report = dataclasses.replace(report, machine=report.machine | {"resumed_after_tensors": len(kept)})
        write_documents(plan, report, partial)
    return report


def publish(model: Path, output: Path) -> None:
    """Copy a merged model that was tried to the folder where it is to stay; it appears complete or not at all.

    Raises
        CheckpointError: `model` is not there or cannot be read.
        OutputError, ResourceError: `output` exists, cannot be written, or the disk is too full.
    """
    if model.resolve() in output.resolve().parents:
        raise OutputError(f"{output}: is inside the model that is to be copied there. Choose another output folder.")
    refuse_existing(output)
    files = list_files(model)
    check_room(output, sum(files.values()))
    with output_folder(output) as partial:
        folders = {partial / file.parent for file in files}
        for folder in sorted(folders):
            folder.mkdir(parents=True, exist_ok=True)
        for file in files:
            copy_file(model / file, partial / file)
        for folder in folders:
            sync_folder(folder)
