"""Run a plan into a folder that `from_pretrained` loads."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from sftm_app.checkpoints.copying import copy_file, list_files
from sftm_app.checkpoints.writer import (
    WeightsWriter,
    check_room,
    output_folder,
    refuse_existing,
    sync_folder,
    weights_writer,
)
from sftm_app.errors import OutputError, RecipeError
from sftm_app.merging.factor_cache import open_store
from sftm_app.merging.meter import MemoryMeter
from sftm_app.merging.output_files import write_documents, write_heads, write_side_files
from sftm_app.merging.plan import Plan, PlanEntry, check_output
from sftm_app.merging.progress import Clock, Progress
from sftm_app.merging.report import Report, TensorRecord, hashing, make_report
from sftm_app.merging.resuming import Finished, Unfinished, progress_file, to_resume
from sftm_app.merging.run import run
from sftm_app.merging.save_adapter import save_adapter


@dataclass(frozen=True)
class Placed:
    """One tensor of the output whose bytes are in their place.

    worker: the process that made it, by any name. peak_bytes: the memory that another process took for it at most.
    """

    entry: PlanEntry
    checksum: int
    records: tuple[TensorRecord, ...]
    worker: str
    peak_bytes: int = 0


# Merges entries of a plan, each once and in any order, and has `writer` know their bytes in their place.
Placing = Callable[[Sequence[PlanEntry], WeightsWriter], Generator[Placed, None, None]]


class Executor(Protocol):
    """Who merges the tensors of a plan. What it needs is ready before anything is written, and gone after the merge."""

    @property
    def name(self) -> str: ...

    def ready(self, plan: Plan) -> AbstractContextManager[Placing]: ...


class Here:
    """This process, one tensor after the other in the plan's order."""

    name = "local"

    @contextmanager
    def ready(self, plan: Plan) -> Iterator[Placing]:
        """Nothing is needed."""
        yield lambda entries, writer: _place_here(plan, entries, writer)


def _place_here(plan: Plan, entries: Sequence[PlanEntry], writer: WeightsWriter) -> Generator[Placed, None, None]:
    for merged in run(dataclasses.replace(plan, entries=tuple(entries)), open_store()):
        entry, records = merged.entry, merged.records
        checksum = writer.write(entry.name, merged.tensor)
        del merged  # its tensor would be held while the next one is made
        yield Placed(entry, checksum, records, Here.name)


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
    executor = executor or Here()
    adapter = plan.recipe.output.kind == "adapter"
    if adapter and executor.name != Here.name:
        raise RecipeError(
            f"An adapter is small and made in one process: {executor.name!r} is for models. Choose the executor "
            f"{Here.name}, or output kind model."
        )
    check_output(plan, output)
    left = to_resume(plan, output, resume)
    # What an executor loads is no memory of the merge.
    with executor.ready(plan) as place, MemoryMeter(plan.device) as meter:
        if adapter:
            return (yield from save_adapter(plan, output, meter))
        return (yield from _save_model(plan, output, meter, left, executor.name, place))


def _save_model(
    plan: Plan, output: Path, meter: MemoryMeter, left: Unfinished | None, executor: str, place: Placing
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
        expected = plan if executor == Here.name else dataclasses.replace(plan, cost=None)
        report = make_report(expected, made, clock.elapsed_s, max(peak_bytes, meter.look()), hashed)
        machine = report.machine | {"executor": executor, "workers": len(workers)}
        if kept:
            machine["resumed_after_tensors"] = len(kept)
        report = dataclasses.replace(report, machine=machine)
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
