"""A killed run is resumed from its finished tensors, and ends as if it had never been stopped."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from output_cases import SHARDED, contents, die, finish, in_a_killed_process, killed_after
from safetensors.torch import load_file
from tiny_checkpoints import change_weights

from sftm_app.errors import OutputError, ResourceError
from sftm_app.output import executors
from sftm_app.output import resume as resuming
from sftm_app.output.progress import LAST_STEP
from sftm_app.output.resume import has_progress, read_unfinished
from sftm_app.output.save import save
from sftm_app.pipeline import prepare
from sftm_app.planning.plan import Plan
from sftm_app.planning.recipe import make_recipe
from sftm_app.session import Session
from sftm_app.weights import partial as partial_module
from sftm_app.weights import writer
from sftm_app.weights.partial import folder_lock, partial_of, remove_partial

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="kills copies of this process")


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 1.0])
def test_a_killed_run_ends_as_an_uninterrupted_one_and_only_does_the_rest(
    plan: Plan, session: Session, whole: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: float
) -> None:
    n = max(1, round(share * len(plan.entries)))
    killed_after(n, plan, session, tmp_path / "out")
    assert not (tmp_path / "out").exists() and has_progress(tmp_path / "out")
    made: list[str] = []
    run = executors.run

    def watched(*given: Any) -> Any:
        for merged in run(*given):
            made.append(merged.entry.name)
            yield merged

    monkeypatch.setattr(executors, "run", watched)
    report, seen = finish(plan, session, tmp_path / "out", True)
    assert made == [entry.name for entry in plan.entries[n:]]
    assert contents(tmp_path / "out") == whole
    assert len([name for name in whole if name.startswith("model-")]) > 2
    assert not partial_of(tmp_path / "out").exists() and not list((tmp_path / "out").glob("*.json*l"))
    assert report.machine.resumed_after_tensors == n
    assert [step.done for step in seen] == [*range(n, len(plan.entries) + 1), len(plan.entries)]
    assert seen[0].name == plan.entries[n - 1].name and seen[-1].name == LAST_STEP
    fractions = [step.fraction for step in seen]
    assert fractions == sorted(fractions) and fractions[-1] == 1.0


def test_a_run_killed_again_and_again(plan: Plan, session: Session, whole: dict[str, Any], tmp_path: Path) -> None:
    for n in (3, 4, 5):
        killed_after(n, plan, session, tmp_path / "out", resume=True)
    left = read_unfinished(tmp_path / "out")
    assert left is not None and len(left.finished) == 3 + (4 - 1) + (5 - 1)
    report, _ = finish(plan, session, tmp_path / "out", True)
    assert contents(tmp_path / "out") == whole
    assert report.seconds > max(one.elapsed_s for one in left.finished.values())


def test_killed_at_any_touch_of_the_disk_the_output_is_absent_or_whole(
    plan: Plan, session: Session, whole: dict[str, Any], tmp_path: Path
) -> None:
    """A touch opens, syncs, renames, makes or removes. At the end, where the output gets its name, each is tried."""
    fsync = os.fsync
    touches = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate")

    def dying_at(k: int, output: Path, count: list[int]) -> Callable[[], None]:
        def watch(event: str, arguments: tuple[Any, ...]) -> None:
            if event == "fsync" or (event in touches and str(output) in str(arguments[0])):
                count[0] += 1
                if count[0] == k:
                    die()

        def synced(descriptor: int) -> None:
            watch("fsync", ())
            fsync(descriptor)

        def work() -> None:
            sys.addaudithook(watch)
            os.fsync = synced
            finish(plan, session, output)
            (tmp_path / "count").write_text(str(count[0]))
            die()

        return work

    in_a_killed_process(dying_at(0, tmp_path / "counted", [0]))
    n = int((tmp_path / "count").read_text())
    assert n > 30
    states = set()
    for k in {*range(1, n, 5), *range(n - 7, n + 1)}:
        output = tmp_path / f"out{k}"
        in_a_killed_process(dying_at(k, output, [0]))
        states.add((output.exists(), has_progress(output)))
        if not output.exists():
            finish(plan, session, output, True)
        for name in ("lock.json", "progress.jsonl"):
            (output / name).unlink(missing_ok=True)  # what a kill just behind the renaming leaves
        assert contents(output) == whole, k
    assert states == {(False, False), (False, True), (True, False)}


def test_killed_in_the_middle_of_a_tensor(plan: Plan, session: Session, whole: dict[str, Any], tmp_path: Path) -> None:
    def work() -> None:
        write, count = writer.TensorFile.write, [0]

        def half_written(self: writer.TensorFile, name: str, tensor: torch.Tensor) -> int:
            count[0] += "heads" not in str(self._file.name)
            if count[0] == 9:
                torn = tensor.clone().reshape(-1)
                torn[len(torn) // 2 :] = 7.0
                write(self, name, torn.reshape(tensor.shape))
                die()
            return write(self, name, tensor)

        writer.TensorFile.write = half_written  # type: ignore[method-assign]
        finish(plan, session, tmp_path / "out")

    in_a_killed_process(work)
    left = read_unfinished(tmp_path / "out")
    assert left is not None and len(left.finished) == 8
    finish(plan, session, tmp_path / "out", True)
    assert contents(tmp_path / "out") == whole


def damage_a_tensor(folder: Path) -> None:
    file = sorted(folder.glob("model-*.safetensors"))[0]
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1
    file.write_bytes(raw)


def cut_a_file(folder: Path) -> None:
    file = sorted(folder.glob("model-*.safetensors"))[0]
    os.truncate(file, file.stat().st_size // 2)


def lengthen_a_file(folder: Path) -> None:
    file = sorted(folder.glob("model-*.safetensors"))[0]
    file.write_bytes(file.read_bytes() + b"more")


def remove_a_file(folder: Path) -> None:
    sorted(folder.glob("model-*.safetensors"))[0].unlink()


def damage_a_header(folder: Path) -> None:
    file = sorted(folder.glob("model-*.safetensors"))[1]
    file.write_bytes(b"\0" * 64 + file.read_bytes()[64:])


def tear_the_last_line(folder: Path) -> None:
    file = folder / "progress.jsonl"
    os.truncate(file, file.stat().st_size - 20)


def tear_a_line_inside(folder: Path) -> None:
    file = folder / "progress.jsonl"
    lines = file.read_bytes().split(b"\n")
    lines[3], lines[5] = b"\0" * len(lines[3]), lines[5][: len(lines[5]) // 2]
    file.write_bytes(b"\n".join(lines))


def damage_small_files(folder: Path) -> None:
    (folder / "config.json").write_text("{")
    (folder / "heads" / "a.safetensors").write_bytes(b"")
    (folder / "sftm_report.json").write_text("half")


@pytest.mark.parametrize(
    ("damage", "lost"),
    [
        (damage_a_tensor, 1), (cut_a_file, None), (lengthen_a_file, 0), (remove_a_file, None), (damage_a_header, 0),
        (tear_the_last_line, 1), (tear_a_line_inside, 2), (damage_small_files, 0),
    ],
)  # fmt: skip
def test_only_what_is_whole_is_kept(
    plan: Plan,
    session: Session,
    whole: dict[str, Any],
    tmp_path: Path,
    damage: Callable[[Path], None],
    lost: int | None,
) -> None:
    killed_after(len(plan.entries), plan, session, tmp_path / "out")
    damage(partial_of(tmp_path / "out"))
    report, _ = finish(plan, session, tmp_path / "out", True)
    assert contents(tmp_path / "out") == whole
    kept = report.machine.resumed_after_tensors
    assert kept < len(plan.entries) if lost is None else kept == len(plan.entries) - lost
    load_file(tmp_path / "out" / f"model-00001-of-00{len(list((tmp_path / 'out').glob('model-*'))):03d}.safetensors")


@pytest.mark.parametrize("head", [b"", b"{}\n", b"[]\n", b"\0\0\0\0\n", b'{"made_from": 1, "total": 3}\nnull\n"x"\n'])
def test_a_progress_file_that_says_nothing_starts_again(
    plan: Plan, session: Session, tmp_path: Path, head: bytes
) -> None:
    killed_after(5, plan, session, tmp_path / "out")
    (partial_of(tmp_path / "out") / "progress.jsonl").write_bytes(head)
    report, _ = finish(plan, session, tmp_path / "out")
    assert report.machine.resumed_after_tensors == 0


# ---- what is refused ----


def test_what_a_stopped_run_left_is_neither_removed_nor_used_without_being_asked(
    plan: Plan, session: Session, tmp_path: Path
) -> None:
    killed_after(5, plan, session, tmp_path / "out")
    said = rf"out\.partial: holds 5 of {len(plan.entries)} tensors of a merge that was stopped\. Add --resume"
    with pytest.raises(OutputError, match=said):
        finish(plan, session, tmp_path / "out")
    assert has_progress(tmp_path / "out")
    report, _ = finish(plan, session, tmp_path / "out", False)
    assert report.machine.resumed_after_tensors == 0


def test_where_nothing_was_left_resume_is_a_whole_run(
    plan: Plan, session: Session, whole: dict[str, Any], tmp_path: Path
) -> None:
    finish(plan, session, tmp_path / "out", True)
    assert contents(tmp_path / "out") == whole
    with pytest.raises(OutputError, match="exists already"):
        finish(plan, session, tmp_path / "out", True)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"params": {"scaling": 0.5}}, r"the recipe: params: scaling was 1\.0 and is 0\.5"),
        ({"method": "average"}, "the recipe: method was sftm and is average"),
        ({"tasks": "abc"}, r"the recipe: tasks: 3: path was None and is .*c\b"),
        ({"tasks": "ac"}, r"the recipe: tasks: 2: path was .*b and is .*c\b"),
        ({"output": {"dtype": "bfloat16"}}, "the recipe: output: dtype was None and is bfloat16"),
        ({"output": {"max_shard_size": "7KB"}}, "the recipe: output: max_shard_size was 6KB and is 7KB"),
        ({"output": {"kind": "adapter", "rank": 2}}, "the recipe: output: .*kind was model and is adapter"),
        ({"roles": {"*.bias": "norm"}}, "the recipe: roles: .*bias was None and is norm"),
    ],
)
def test_another_recipe_refuses(
    plan: Plan, session: Session, tmp_path: Path, recipe_for: Callable, changes: dict[str, Any], said: str
) -> None:
    killed_after(5, plan, session, tmp_path / "out")
    changes = {"output": SHARDED} | changes
    other = prepare(recipe_for(changes.pop("tasks", "ab"), **changes), session)
    with pytest.raises(OutputError, match=rf"(?s)cannot be resumed.*{said}.*start again"):
        finish(other, session, tmp_path / "out", True)
    left = read_unfinished(tmp_path / "out")
    assert left is not None and len(left.finished) == 5
    finish(plan, session, tmp_path / "out", True)


def test_another_place_for_the_output_or_word_for_the_device_is_the_same_recipe(
    plan: Plan, session: Session, tmp_path: Path, recipe_for: Callable
) -> None:
    killed_after(5, plan, session, tmp_path / "out")
    other = prepare(recipe_for("ab", output=SHARDED | {"path": str(tmp_path / "elsewhere")}), session)
    assert finish(other, session, tmp_path / "out", True)[0].machine.resumed_after_tensors == 5


@pytest.mark.parametrize("which", ["base", "b"])
def test_a_changed_input_refuses(models: Path, tmp_path: Path, which: str, session: Session) -> None:
    recipe = make_recipe(models / "base", [models / "a", models / "b"], device="cpu")
    killed_after(5, prepare(recipe, session), session, tmp_path / "out")
    change_weights(models / which / "model.safetensors", lambda tensors: next(iter(tensors.values())).mul_(1.5))
    with pytest.raises(OutputError, match=rf"cannot be resumed.*{which}/model\.safetensors was changed"):
        finish(prepare(recipe, session), session, tmp_path / "out", True)
    assert has_progress(tmp_path / "out")


@pytest.mark.parametrize(
    ("place", "name", "said"),
    [
        (resuming, "__version__", r"SFTM Studio was \d.* and is other"),
        (torch, "__version__", r"torch was \d.* and is other"),
        (torch.backends.cpu, "get_cpu_capability", "the processor was .* and is other"),
    ],
)
def test_another_version_or_machine_refuses(
    plan: Plan, session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: Any, name: str, said: str
) -> None:
    killed_after(5, plan, session, tmp_path / "out")
    monkeypatch.setattr(place, name, "other" if name == "__version__" else lambda: "other")
    with pytest.raises(OutputError, match=f"cannot be resumed.*{said}"):
        finish(plan, session, tmp_path / "out", True)


def test_another_number_of_threads_refuses(plan: Plan, session: Session, tmp_path: Path) -> None:
    killed_after(5, plan, session, tmp_path / "out")
    with pytest.raises(OutputError, match=r"cannot be resumed.*the number of threads was 1 and is 2"):
        finish(plan, replace(session, n_threads=2), tmp_path / "out", True)


def test_a_long_list_of_changes_is_cut(plan: Plan, session: Session, tmp_path: Path, recipe_for: Callable) -> None:
    killed_after(5, plan, session, tmp_path / "out")
    other = prepare(recipe_for("c", method="average", output={"dtype": "float16"}), session)
    with pytest.raises(OutputError, match=r"and \d+ more\. Undo that"):
        finish(other, session, tmp_path / "out", True)


def test_two_runs_on_one_output(plan: Plan, session: Session, tmp_path: Path) -> None:
    killed_after(5, plan, session, tmp_path / "out")
    first = save(plan, session, tmp_path / "out", True)
    next(first)
    for resume in (True, False, None):
        with pytest.raises(OutputError, match="another run is writing it"):
            finish(plan, session, tmp_path / "out", resume)
    for _ in first:
        pass
    assert (tmp_path / "out" / "sftm_report.json").exists()


def test_of_two_that_resume_at_once_one_is_refused(plan: Plan, session: Session, tmp_path: Path) -> None:
    killed_after(5, plan, session, tmp_path / "out")
    children = []
    for _ in range(4):
        child = os.fork()
        if child == 0:
            code = 9
            try:
                steps = save(plan, session, tmp_path / "out", True)
                next(steps)
                time.sleep(0.5)
                for _ in steps:
                    pass
                code = 0
            except OutputError as error:
                code = 2 if "another run is writing it" in str(error) else 8
            finally:
                os._exit(code)
        children.append(child)
    codes = sorted(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children)
    assert codes == [0, 2, 2, 2]


def test_stopping_a_resumed_run_leaves_nothing(plan: Plan, session: Session, tmp_path: Path) -> None:
    killed_after(5, plan, session, tmp_path / "out")
    steps = save(plan, session, tmp_path / "out", True)
    next(steps)
    steps.close()
    assert list(tmp_path.iterdir()) == []


def test_an_adapter_starts_again(tmp_path: Path, recipe_for: Callable, session: Session) -> None:
    plan = prepare(recipe_for("ab", output={"kind": "adapter", "rank": 2}), session)
    killed_after(5, plan, session, tmp_path / "out")
    assert not has_progress(tmp_path / "out")
    _, seen = finish(plan, session, tmp_path / "out")
    assert seen[0].done == 1


# ---- what lies below ----


def test_what_a_killed_run_left_counts_as_free_space(
    plan: Plan, session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed_after(5, plan, session, tmp_path / "out")
    monkeypatch.setattr(partial_module.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 0})())
    with pytest.raises(ResourceError, match="the disk has 0"):
        finish(plan, session, tmp_path / "other", True)
    if sys.platform == "linux":
        finish(plan, session, tmp_path / "out", True)


def test_the_disk_has_the_bytes_before_it_has_the_line(
    plan: Plan, session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    fsync = os.fsync

    def watched(descriptor: int) -> None:
        synced.append(os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    if sys.platform != "linux":
        pytest.skip("names of open files are read from /proc")
    monkeypatch.setattr(os, "fsync", watched)
    monkeypatch.setattr(resuming, "SYNC_S", 0.0)
    steps = save(plan, session, tmp_path / "out")
    next(steps)
    synced.clear()
    for k in range(4):
        next(steps)
        assert len(synced) == 2 * (k + 1) and synced[-2].startswith("model-") and synced[-1].startswith("progress")
    steps.close()
    monkeypatch.setattr(resuming, "SYNC_S", 3600.0)
    steps = save(plan, session, tmp_path / "out")
    next(steps)
    synced.clear()
    next(steps)
    assert synced == [], "a short run waits for the disk only at its end"
    steps.close()


def test_removal_takes_the_lock_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "out.partial"
    (folder / "heads").mkdir(parents=True)
    for name in ("a", "lock.json", "progress.jsonl", "z", "heads/x"):
        (folder / name).write_text('{"pid": 1, "started": 1}' if name == "lock.json" else "")
    gone: list[str] = []
    unlink, rmtree = Path.unlink, partial_module.shutil.rmtree
    monkeypatch.setattr(Path, "unlink", lambda self: (gone.append(self.name), unlink(self))[1])
    monkeypatch.setattr(partial_module.shutil, "rmtree", lambda path: (gone.append(path.name), rmtree(path))[1])
    remove_partial(folder)
    assert gone[0] == "progress.jsonl" and gone[-1] == "out.partial" and len(gone) == 5
    assert not folder.exists()
    remove_partial(folder)


def test_a_folder_is_locked_by_one_at_a_time(tmp_path: Path) -> None:
    order: list[str] = []

    def second() -> None:
        with folder_lock(tmp_path):
            order.append("second")

    with folder_lock(tmp_path / "none"):  # what does not exist yet belongs to no run
        pass
    thread = threading.Thread(target=second)
    with folder_lock(tmp_path):
        thread.start()
        time.sleep(0.2)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]
