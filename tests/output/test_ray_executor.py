"""Other processes merge: in any order, on a cluster, dying on the way; the output is that of one process."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from output_cases import SHARDED, contents, finish, killed_after
from tiny_checkpoints import change_weights

from sftm_app import api, cli, cli_options
from sftm_app.engine.run import run
from sftm_app.errors import (
    CheckpointError,
    InputError,
    JobError,
    NumericalError,
    OutputError,
    RecipeError,
    ResourceError,
)
from sftm_app.linalg.low_rank import dense
from sftm_app.output import ray_executor as cluster
from sftm_app.output.executors import LocalExecutor, WrittenTensor
from sftm_app.output.progress import LAST_STEP
from sftm_app.output.ray_executor import RayExecutor
from sftm_app.output.ray_worker import Job, make_task
from sftm_app.output.resume import has_progress, made_by
from sftm_app.output.save import save
from sftm_app.pipeline import prepare
from sftm_app.planning.plan import Plan, PlanEntry
from sftm_app.planning.recipe import make_recipe, recipe_to_yaml
from sftm_app.session import Session
from sftm_app.weights.partial import LOCK_NAME, partial_of
from sftm_app.weights.writer import OutputTensor, Place, WeightsWriter, weights_writer, write_at


class Backwards:
    """Merges the entries from the last to the first, as other processes might, and notes what happens."""

    name = "backwards"

    def __init__(self) -> None:
        self.made: list[str] = []
        self.events: list[str] = []

    @contextmanager
    def ready(self, plan: Plan, session: Session) -> Iterator[Any]:
        def write_entries(entries: Sequence[PlanEntry], writer: WeightsWriter) -> Iterator[WrittenTensor]:
            folder = writer.place(entries[0].name).path.parent if entries else None
            try:
                for entry in reversed(entries):
                    (merged,) = run(dataclasses.replace(plan, entries=(entry,)), session)
                    checksum = write_at(writer.place(entry.name), merged.tensor)
                    assert writer.accept(entry.name, checksum)
                    self.made.append(entry.name)
                    yield WrittenTensor(entry, checksum, merged.records, f"worker {len(self.made) % 2}", 7)
            finally:
                if folder:
                    self.events.append(f"closed, {'with' if folder.exists() else 'without'} the folder")

        self.events.append("ready")
        try:
            yield write_entries
        finally:
            self.events.append("gone")


# ---- who merges is a choice ----


def test_an_executor_with_another_order_gives_the_same_output(
    plan: Plan, session: Session, whole: dict[str, Any], tmp_path: Path
) -> None:
    other = Backwards()
    report, seen = finish(plan, session, tmp_path / "out", None, other)
    assert contents(tmp_path / "out") == whole
    assert other.made == [entry.name for entry in reversed(plan.entries)] and len(other.made) > 20
    assert [step.name for step in seen] == [*other.made, LAST_STEP]
    fractions = [step.fraction for step in seen]
    assert fractions == sorted(fractions) and fractions[-1] == 1.0
    assert (report.machine.executor, report.machine.workers) == ("backwards", 2)
    assert report.machine.seconds_predicted is None, "the prediction is for one process"
    local, _ = finish(plan, session, tmp_path / "local")
    assert (local.machine.executor, local.machine.workers) == ("local", 1)
    assert local.machine.seconds_predicted is not None


@pytest.mark.parametrize("second", ["local", "backwards"])
@pytest.mark.parametrize("first", ["local", "backwards"])
def test_what_one_executor_left_another_resumes(
    plan: Plan, session: Session, whole: dict[str, Any], tmp_path: Path, first: str, second: str
) -> None:
    executors = {"local": LocalExecutor, "backwards": Backwards}

    killed_after(9, plan, session, tmp_path / "out", executor=executors[first]())
    other = executors[second]()
    report, seen = finish(plan, session, tmp_path / "out", True, other)
    assert contents(tmp_path / "out") == whole
    assert report.machine.resumed_after_tensors == 9 and seen[0].done == 9
    names = [entry.name for entry in plan.entries]
    kept = names[-9:] if first == "backwards" else names[:9]
    if second == "backwards":
        assert other.made == [name for name in reversed(names) if name not in kept]


def test_a_merge_that_is_closed_stops_its_executor_and_leaves_nothing(
    plan: Plan, session: Session, tmp_path: Path
) -> None:
    other = Backwards()
    steps = save(plan, session, tmp_path / "out", None, other)
    next(steps)
    assert other.events == ["ready"]
    steps.close()
    assert other.events == ["ready", "closed, with the folder", "gone"]
    assert list(tmp_path.iterdir()) == []


def test_an_adapter_is_made_here(tmp_path: Path, recipe_for: Callable, session: Session) -> None:
    plan = prepare(recipe_for("ab", output={"kind": "adapter", "rank": 2}), session)
    with pytest.raises(RecipeError, match="The executor 'ray' makes models only"):
        finish(plan, session, tmp_path / "out", None, RayExecutor())
    assert list(tmp_path.iterdir()) == []
    finish(plan, session, tmp_path / "out", None, LocalExecutor())


def test_several_processes_fill_one_file(tmp_path: Path) -> None:
    tensors = {"a": torch.randn(3, 5), "b": torch.arange(4), "empty": torch.zeros(0, 2)}
    announced = [OutputTensor(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()]
    with weights_writer(tmp_path, announced, 10**9) as writer:
        assert not writer.accept("a", write_at(writer.place("a"), tensors["a"]) ^ 1)
        for name in reversed(tensors):
            place = writer.place(name)
            with pytest.raises(ValueError, match="instead of"):
                write_at(place, torch.zeros(9))
            assert writer.accept(name, write_at(place, tensors[name]))
    from safetensors.torch import load_file

    read = load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(read[name], tensor) for name, tensor in tensors.items())
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError):
        write_at(place, tensors[name])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("rey",), "executor: 'rey' is not known. Did you mean 'ray'?"),
        (("local", "auto"), "An address and a number of workers are for the executor ray"),
        (("local", None, 2), "An address and a number of workers are for the executor ray"),
        (("ray", "auto", 2), "A running cluster has its own workers"),
        (("ray", None, -1), "-1 is not a number of processes"),
    ],
)
def test_options_that_do_not_go_together(options: tuple[Any, ...], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        api.get_executor(*options)


def test_options_reach_the_executor() -> None:
    assert api.get_executor("ray", "host:6379") == RayExecutor("host:6379")
    assert api.get_executor("ray", None, 3) == RayExecutor(None, 3)
    assert isinstance(api.get_executor("local"), LocalExecutor)
    assert cli_options.EXECUTORS == api.EXECUTORS


@pytest.fixture
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)


def test_without_the_extra_it_is_a_sentence_and_what_was_left_stays(
    plan: Plan, session: Session, tmp_path: Path, no_ray: None
) -> None:
    killed_after(2, plan, session, tmp_path / "out")
    said = r'needs Ray, which is not installed\. Run `pip install "sftm-studio\[cluster\]"'
    with pytest.raises(InputError, match=said):
        finish(plan, session, tmp_path / "out", True, RayExecutor())
    assert has_progress(tmp_path / "out")


def test_the_command_line_asks_for_ray(
    tmp_path: Path, recipe_for: Callable, no_ray: None, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(recipe_to_yaml(recipe_for("ab")))
    for options, said in (
        (["--executor", "ray", "--workers", "2"], "needs Ray, which is not installed"),
        (["--address", "auto"], "are for the executor ray"),
    ):
        with pytest.raises(SystemExit) as left:
            cli.main(["merge", str(file), "--output", str(tmp_path / "out"), "--quiet", *options])
        assert left.value.code == 2 and said in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.yaml"]


# ---- what a worker checks, without a cluster ----


@pytest.fixture
def begun(models: Path, tmp_path: Path, session: Session) -> Iterator[tuple[Job, PlanEntry, WeightsWriter]]:
    """A merge that has begun: its job, an entry, and the writer of its output."""
    plan = prepare(make_recipe(models / "base", [models / "a", models / "b"], device="cpu"), session)
    entry = next(entry for entry in plan.entries if entry.rule == "method")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / LOCK_NAME).write_bytes(b"this merge")
    never = pytest.raises(ValueError, match="never written")
    with never, weights_writer(tmp_path / "out", plan.outputs, 10**9) as writer:
        yield Job(plan, made_by(plan.device, session.n_threads), b"this merge"), entry, writer


def work(job: Job, entry: PlanEntry, place: Place) -> WrittenTensor:
    """One task of a worker that knows nothing yet."""
    return make_task({"job": job}.__getitem__)(["job"], entry, place)


def test_a_worker_writes_the_bytes_to_their_place(begun: Any, session: Session) -> None:
    job, entry, writer = begun
    written = work(job, entry, writer.place(entry.name))
    (merged,) = run(dataclasses.replace(job.plan, entries=(entry,)), session)
    assert writer.accept(entry.name, written.checksum) and written.entry == entry
    plain = [dataclasses.replace(record, seconds=0) for one in (written, merged) for record in one.records]
    assert plain[0] == plain[1] and len(plain) == 2
    assert f"worker {os.getpid()} on " in written.worker and written.peak_bytes >= 0


def test_a_worker_opens_a_job_once(begun: Any) -> None:
    job, entry, writer = begun
    fetched: list[str] = []

    def fetch(reference: str) -> Job:
        fetched.append(reference)
        return job

    task = make_task(fetch)
    for reference in ("first", "first", "first", "second", "second"):
        task([reference], entry, writer.place(entry.name))
    assert fetched == ["first", "second"]


def test_a_worker_may_see_other_inodes_but_not_other_files(begun: Any, models: Path) -> None:
    job, entry, writer = begun
    file = models / "b" / "model.safetensors"
    shutil.copy2(file, models / "copy")
    (models / "copy").replace(file)  # as another machine would number it
    work(job, entry, writer.place(entry.name))
    change_weights(file, lambda tensors: next(iter(tensors.values())).mul_(1.5))
    with pytest.raises(CheckpointError, match=r"b/model\.safetensors: was changed.*another file for worker \d+ on"):
        work(job, entry, writer.place(entry.name))
    file.unlink()
    with pytest.raises(CheckpointError, match=r"cannot be read by worker.*storage that all machines"):
        work(job, entry, writer.place(entry.name))


@pytest.mark.parametrize(
    ("field", "word"), [("app", "SFTM Studio"), ("torch", "torch"), ("processor", "the processor")]
)
def test_a_worker_of_another_kind_refuses(begun: Any, field: str, word: str) -> None:
    job, entry, writer = begun
    other = dataclasses.replace(job, made_by=dataclasses.replace(job.made_by, **{field: "other"}))
    with pytest.raises(JobError, match=f"would give another result: {word} is other where the merge .* and .* here"):
        work(other, entry, writer.place(entry.name))


def test_a_worker_takes_the_threads_of_one_process(begun: Any) -> None:
    job, entry, writer = begun
    try:
        two = dataclasses.replace(job, made_by=dataclasses.replace(job.made_by, n_threads=2))
        work(two, entry, writer.place(entry.name))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


def test_a_worker_writes_into_its_own_merge_only(begun: Any) -> None:
    job, entry, writer = begun
    place = writer.place(entry.name)
    before = place.path.read_bytes()
    for lock in (b"another merge", None):
        place.path.with_name(LOCK_NAME).unlink()
        if lock:
            place.path.with_name(LOCK_NAME).write_bytes(lock)
        with pytest.raises(OutputError, match=r"out: worker \d+ on .* does not find this folder of the merge"):
            work(job, entry, place)
    assert place.path.read_bytes() == before


def test_a_machine_too_small_is_a_sentence_and_no_endless_wait() -> None:
    needs, sizes = {"CPU": 4, "GPU": 0}, {"small": 9, "large": 11}
    with pytest.raises(InputError, match=r"has 4 CPUs for one worker \(most CPUs: 2\).*OMP_NUM_THREADS=2"):
        cluster._refuse_too_small(sizes, needs, [{"CPU": 1.0}, {"CPU": 2.0, "memory": 1e12}])
    with pytest.raises(InputError, match="4 CPUs and a GPU"):
        cluster._refuse_too_small(sizes, needs | {"GPU": 1}, [{"CPU": 8.0, "memory": 1e12}])
    with pytest.raises(ResourceError, match=r"'large' needs about 11 bytes .* offers more than 10 bytes"):
        cluster._refuse_too_small(sizes, needs, [{"CPU": 8.0, "memory": 10.0}, {"CPU": 1.0, "memory": 1e12}])
    cluster._refuse_too_small(sizes, needs, [{"CPU": 8.0, "memory": 1e12}])


class RayError(Exception):
    """As in ray.exceptions."""


class RayTaskError(RayError):
    """As in ray.exceptions: carries what a task raised."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(str(cause))
        self.cause = cause


class OutOfMemoryError(RayError):
    """As in ray.exceptions."""


@pytest.mark.parametrize(
    ("raised", "kind", "said"),
    [
        (RayTaskError(NumericalError("it holds NaN")), NumericalError, "^it holds NaN$"),
        (RayTaskError(OSError(28, "No space left")), OSError, "No space left"),
        (RayTaskError(RuntimeError("The function failed to import on the worker.")), JobError, "same version on"),
        (RayTaskError(KeyError("a bug")), RayTaskError, "a bug"),
        (OutOfMemoryError("killed"), ResourceError, "Out of memory at '.*', on a machine of the Ray cluster"),
        (RayError("\n the node died.\nMore."), JobError, r"died 4 times \(the node died\)\. Check whether"),
    ],
)
def test_what_a_task_raised_comes_back_as_what_it_is(
    plan: Plan, raised: Exception, kind: type[Exception], said: str
) -> None:
    def get(_: object) -> None:
        raise raised

    errors = SimpleNamespace(RayError=RayError, RayTaskError=RayTaskError, OutOfMemoryError=OutOfMemoryError)
    with pytest.raises(kind, match=said):
        cluster._result(SimpleNamespace(get=get, exceptions=errors), object(), plan.entries[0])


# ---- on a real cluster of two workers ----

on_ray = pytest.mark.cluster


@pytest.fixture(scope="module")
def two_workers() -> Iterator[None]:
    with cluster._connected(cluster._import_ray(), None, 2, 1):
        yield


def watched(plan: Plan, folder: Path, seconds: float = 0.0, held: str = "") -> Plan:
    """The plan with a method that notes, in files, each layer that it begins and by which process.

    held: the first process to begin a layer waits there, after it has written its number into the file of that name.
    """
    method, place = plan.method, str(folder)

    def merge(layer: Any, params: Any) -> Any:
        import hashlib
        import os
        import time
        import uuid

        content = hashlib.sha256(dense(layer.task_matrices[0]).contiguous().numpy().tobytes()).hexdigest()
        with open(f"{place}/{content}-{uuid.uuid4().hex}", "x") as file:
            file.write(str(os.getpid()))
        if held:
            try:
                with open(f"{place}/{held}", "x") as file:
                    file.write(f"{os.getpid()} {content}")
                time.sleep(120)
            except FileExistsError:
                pass
        time.sleep(seconds)
        return method.merge(layer, params)

    folder.mkdir()
    return dataclasses.replace(plan, method=dataclasses.replace(method, merge=merge))


def begun_layers(folder: Path) -> list[str]:
    return sorted(path.name.split("-")[0] for path in folder.iterdir() if "-" in path.name)


def wait_for(path: Path) -> str:
    deadline = time.monotonic() + 60
    while not path.exists() or not path.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return path.read_text()


@on_ray
@pytest.mark.parametrize("method", ["sftm", "average"])
def test_a_cluster_gives_the_same_output_bit_for_bit(
    two_workers: None, tmp_path: Path, recipe_for: Callable, method: str, session: Session
) -> None:
    plan = prepare(recipe_for("abc", method=method, output=SHARDED), session)
    finish(plan, session, tmp_path / "local")
    slow = watched(plan, tmp_path / "seen", 0.05)
    report, seen = finish(slow, session, tmp_path / "ray", None, RayExecutor())
    assert contents(tmp_path / "ray") == contents(tmp_path / "local")
    assert len(list((tmp_path / "ray").glob("model-*.safetensors"))) > 2
    assert (report.machine.executor, report.machine.workers) == ("ray", 2)
    pids = {path.read_text() for path in (tmp_path / "seen").iterdir()}
    assert len(pids) == 2 and str(os.getpid()) not in pids
    layers = begun_layers(tmp_path / "seen")
    assert len(layers) == len(set(layers)) == sum(len(entry.parts) for entry in plan.entries if entry.rule != "copy")
    assert sorted(step.name for step in seen[:-1]) == sorted(entry.name for entry in plan.entries)
    costs = {entry.name: entry.seconds for entry in plan.cost.entries}
    assert costs[seen[0].name] > sorted(costs.values())[len(costs) // 2], "the costliest come first"


class Noted:
    """Leaves a file whenever it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)

    def __reduce__(self) -> tuple[Any, ...]:
        def note(folder: str) -> str:
            import os
            import tempfile

            os.close(tempfile.mkstemp(prefix=f"{os.getpid()}-", dir=folder)[0])
            return folder

        return note, (self.folder,)


@on_ray
def test_each_worker_opens_the_job_once_and_not_for_every_tensor(
    two_workers: None, plan: Plan, session: Session, tmp_path: Path
) -> None:
    (tmp_path / "opened").mkdir()
    slow = watched(plan, tmp_path / "seen", 0.05)
    noted = dataclasses.replace(slow, method=dataclasses.replace(slow.method, reference=Noted(tmp_path / "opened")))
    steps = save(noted, session, tmp_path / "out", None, RayExecutor())
    while next(steps).name != LAST_STEP:
        pass
    steps.close()
    opened = [path.name.split("-")[0] for path in (tmp_path / "opened").iterdir()]
    assert len(opened) == len(set(opened)) == 2 and len(plan.entries) > 20


@on_ray
def test_a_killed_worker_costs_only_its_layer(
    two_workers: None, plan: Plan, session: Session, whole: dict[str, Any], tmp_path: Path
) -> None:
    seen = tmp_path / "seen"
    steps = save(watched(plan, seen, held="held"), session, tmp_path / "out", None, RayExecutor())
    names = [next(steps).name]
    pid, content = wait_for(seen / "held").split()
    os.kill(int(pid), signal.SIGKILL)
    names += [step.name for step in steps]
    assert contents(tmp_path / "out") == whole
    assert sorted(names[:-1]) == sorted(entry.name for entry in plan.entries)
    layers = begun_layers(seen)
    twice = {layer for layer in layers if layers.count(layer) > 1}
    assert twice == {content} and layers.count(content) == 2 and len(layers) > 5


@on_ray
def test_a_layer_that_kills_each_worker_is_a_sentence(
    two_workers: None, plan: Plan, session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def merge(layer: Any, params: Any) -> Any:
        import os

        os._exit(1)

    monkeypatch.setattr(cluster, "N_RETRIES", 1)  # starting a worker takes seconds
    deadly = dataclasses.replace(plan, method=dataclasses.replace(plan.method, merge=merge))
    with pytest.raises(JobError, match=r"weight': its worker died 2 times \(.*Check whether its machine ran"):
        finish(deadly, session, tmp_path / "out", None, RayExecutor())
    assert list(tmp_path.iterdir()) == []


@on_ray
def test_an_error_of_ours_comes_back_as_itself(
    two_workers: None, models: Path, tmp_path: Path, session: Session
) -> None:
    change_weights(models / "a" / "model.safetensors", lambda tensors: next(iter(tensors.values())).fill_(torch.nan))
    plan = prepare(make_recipe(models / "base", [models / "a", models / "b"], device="cpu"), session)
    with pytest.raises(NumericalError) as local:
        finish(plan, session, tmp_path / "x" / "out")
    with pytest.raises(NumericalError) as there:
        finish(plan, session, tmp_path / "x" / "out", None, RayExecutor())
    assert str(there.value) == str(local.value) and "NaN" in str(there.value)
    assert list((tmp_path / "x").iterdir()) == []


@on_ray
def test_a_worker_that_writes_elsewhere_is_found_out(
    two_workers: None, plan: Plan, session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(WeightsWriter, "accept", lambda *_: False)
    with pytest.raises(
        OutputError, match=r"the bytes in .*model-.* are not those that worker .* wrote\. Inputs and output must"
    ):
        finish(plan, session, tmp_path / "out", None, RayExecutor())
    assert list(tmp_path.iterdir()) == []


@on_ray
def test_a_cancelled_merge_leaves_nothing_and_the_cluster_works_on(
    two_workers: None, plan: Plan, session: Session, whole: dict[str, Any], tmp_path: Path
) -> None:
    for k in range(10):
        # A worker may note a layer that it was given before the cancel, after the cancel: never in the next round.
        steps = save(
            watched(plan, tmp_path / f"seen {k}", 0.02 * (k % 3)), session, tmp_path / "out", None, RayExecutor()
        )
        for _ in range(1 + k % 4):
            next(steps)
        steps.close()
        assert not (tmp_path / "out").exists() and not partial_of(tmp_path / "out").exists()
    finish(plan, session, tmp_path / "out", None, RayExecutor())
    assert contents(tmp_path / "out") == whole


# One process of its own, whose layers take their time.
SLOW = """
import dataclasses, sys, time
import sftm_app.planning.planner as plan
known = plan.get_method
def slowed(name):
    method = known(name)
    def merge(layer, params):
        time.sleep(0.2)
        return method.merge(layer, params)
    return dataclasses.replace(method, merge=merge)
plan.get_method = slowed
from sftm_app.cli import main
main(sys.argv[1:])
"""


@on_ray
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGKILL])
def test_the_command_line_with_its_own_cluster(
    tmp_path: Path, recipe_for: Callable, stop: signal.Signals, session: Session
) -> None:
    recipe = recipe_for("ab", output=SHARDED)
    finish(prepare(recipe, session), session, tmp_path / "whole")
    (tmp_path / "recipe.yaml").write_text(recipe_to_yaml(recipe))
    arguments = ["merge", str(tmp_path / "recipe.yaml"), "--output", str(tmp_path / "out"), "--quiet"]
    arguments += ["--executor", "ray"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW, *arguments, "--workers", "2"], stderr=subprocess.PIPE, text=True, env=environment
    )
    deadline = time.monotonic() + 120
    progress = partial_of(tmp_path / "out") / "progress.jsonl"
    while not progress.exists() or progress.read_bytes().count(b"\n") < 5:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)
    process.send_signal(stop)
    # Not communicate(): what Ray started may hold the pipe a little longer.
    code = process.wait(timeout=60)
    assert not (tmp_path / "out").exists()
    if stop == signal.SIGINT:
        assert process.stderr is not None and "sftm: cancelled, nothing was written.\n" in process.stderr.readlines()
        assert code == 130 and not progress.parent.exists()
        return
    assert code == -signal.SIGKILL and has_progress(tmp_path / "out")
    for left in Path("/tmp").glob(f"sftm-ray-{process.pid}-*"):
        shutil.rmtree(left, ignore_errors=True)
    done = subprocess.run(
        [sys.executable, "-m", "sftm_app", *arguments, "--workers", "2", "--resume"],
        capture_output=True, text=True, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Merged by" in done.stdout and "tensors were finished already" in done.stdout
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert json.loads((tmp_path / "out" / "sftm_report.json").read_text())["machine"]["resumed_after_tensors"] >= 4


@on_ray
def test_a_cluster_that_is_not_there_is_a_sentence(tmp_path: Path, recipe_for: Callable) -> None:
    (tmp_path / "recipe.yaml").write_text(recipe_to_yaml(recipe_for("ab")))
    command = [sys.executable, "-m", "sftm_app", "merge", str(tmp_path / "recipe.yaml"), "--quiet", "--executor", "ray"]
    command += ["--output", str(tmp_path / "out"), "--address", "127.0.0.1:1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "sftm: A Ray cluster at '127.0.0.1:1' cannot be joined" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.yaml"]
