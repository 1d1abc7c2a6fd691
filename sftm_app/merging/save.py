"""Run a plan into a folder that `from_pretrained` loads."""

from __future__ import annotations

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
from sftm_app.merging.meter import MemoryMeter
from sftm_app.merging.output_files import write_documents, write_heads, write_side_files
from sftm_app.merging.plan import Plan, check_output
from sftm_app.merging.progress import Clock, Progress
from sftm_app.merging.report import Report, TensorRecord, make_report
from sftm_app.merging.run import run
from sftm_app.merging.save_adapter import save_adapter


def save(plan: Plan, output: Path) -> Generator[Progress, None, Report]:
    """Merge into `output`, yielding after each tensor and before the last step, and returning the Report.

    Writes the kind of output that the recipe names. Closing it early leaves nothing behind.

    Raises
        OutputError, ResourceError: see check_output and output_folder; and what run() raises.
    """
    check_output(plan, output)
    write = save_adapter if plan.recipe.output.kind == "adapter" else _save_model
    with MemoryMeter(plan.device) as meter:
        return (yield from write(plan, output, meter))


def _save_model(plan: Plan, output: Path, meter: MemoryMeter) -> Generator[Progress, None, Report]:
    clock = Clock(plan)
    records: list[TensorRecord] = []
    with output_folder(output) as partial:
        write_heads(plan, partial)
        write_side_files(plan, partial)
        with weights_writer(partial, plan.outputs, plan.max_shard_bytes) as writer:
            for merged in run(plan):
                writer.write(merged.entry.name, merged.tensor)
                records.extend(merged.records)
                entry = merged.entry
                del merged  # its tensor would be held while the next one is made
                meter.look()
                yield clock.after(entry)
            # What follows takes seconds for large models: bytes go to the disk, every input is read again for its hash.
            yield clock.last()
        report = make_report(plan, records, clock.elapsed_s, meter.look())
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
