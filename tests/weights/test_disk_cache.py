"""Factors kept on disk: found again by content alone, at any lower rank, within a limit, whatever happens to them."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import multiprocessing
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from safetensors.torch import save as save_to_bytes
from torch import Tensor

from sftm_app.api import merge
from sftm_app.architecture.roles import Part, Role
from sftm_app.engine import cache as factor_cache
from sftm_app.engine import task_matrices as changes_module
from sftm_app.engine.cache import FactorKey, FactorStore, factor_key, layer_key, look_into, open_store
from sftm_app.engine.run import about_merge, merge_layer, weighted_by
from sftm_app.errors import CheckpointError, NumericalError
from sftm_app.linalg import superposition
from sftm_app.linalg.factors import Factors
from sftm_app.linalg.low_rank import LowRank
from sftm_app.linalg.svd import factorise
from sftm_app.linalg.system import read
from sftm_app.methods import get_method
from sftm_app.methods.base import CachedLayer, Merged
from sftm_app.methods.sftm import METHOD as SFTM
from sftm_app.output.report import Report
from sftm_app.output.save import save
from sftm_app.planning import cost
from sftm_app.planning.plan import PlanEntry
from sftm_app.planning.planner import check_recipe, plan_for
from sftm_app.units import format_bytes
from sftm_app.weights.row_files import read_rows, write_rows
from sftm_app.weights.writer import OutputTensor

M, N = 80, 70
LIMIT = 100_000_000


def matrix(seed: int = 0, m: int = M, n: int = N, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(m, n, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def key_of(change: Tensor, rank: int | float | str | None = None) -> FactorKey:
    key = factor_key(change, rank)
    assert key is not None
    return key


def refuse() -> Factors:
    raise AssertionError("computed although it is kept")


def counted(change: Tensor, calls: list[int], rank: int | None = None) -> Callable[[], Factors]:
    return lambda: (calls.append(1), factorise(change, rank))[1]


def same(first: Factors, second: Factors) -> bool:
    return all(torch.equal(getattr(first, name), getattr(second, name)) for name in ("U", "S", "Vh"))


def entries(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.safetensors"))


@pytest.fixture
def store(tmp_path: Path) -> FactorStore:
    return FactorStore(tmp_path / "factors", LIMIT)


def test_what_is_found_again_is_what_was_made_to_the_last_bit(store: FactorStore) -> None:
    for dtype in (torch.float32, torch.float64):
        D = matrix(dtype=dtype)
        made = store.get(key_of(D), lambda D=D: factorise(D))
        again = FactorStore(store.folder, LIMIT).get(key_of(D.clone()), refuse)
        assert same(made, again) and again.U.is_contiguous() and again.U.dtype == dtype
        assert again.how == f"{made.how}, kept"
    assert store.use().n_entries == 2 and len(entries(store.folder)) == 2
    assert store.use().n_bytes == sum(path.stat().st_size for path in entries(store.folder))


def test_the_address_is_the_content_and_nothing_else() -> None:
    D = matrix()
    about = f"{factor_cache.VERSION} {M}x{N} torch.float32 rows ".encode()
    assert key_of(D).digest == hashlib.sha256(about + D.numpy().tobytes()).hexdigest()
    assert key_of(D) == key_of(D.clone()) == key_of(torch.cat([D, D])[:M])
    changed = D.clone()
    changed[M - 1, N - 1] += 1e-6
    others = [key_of(x) for x in (changed, D.T.contiguous(), D.T, D.double(), D.reshape(N, M))]
    assert len({key.digest for key in (key_of(D), *others)}) == 6
    assert key_of(D, 0.5).digest == key_of(D).digest and key_of(D, 0.5).count == 35


def test_an_entry_serves_every_lower_rank_and_reads_no_more_than_that(store: FactorStore) -> None:
    D = matrix()
    full = store.get(key_of(D), lambda: factorise(D))
    for rank, count in ((1, 1), (10, 10), (0.5, 35), (1000, N)):
        assert same(store.get(key_of(D, rank), refuse), full.cut(count))
    assert same(store.get(key_of(D, "90% energy"), refuse), full)


def test_an_entry_of_a_lower_rank_is_replaced_by_one_of_a_higher(store: FactorStore) -> None:
    D, calls = matrix(), []
    low = store.get(key_of(D, 10), counted(D, calls, 10))
    assert low.rank == 10 and store.get(key_of(D, 8), refuse).rank == 8
    assert store.get(key_of(D, 11), counted(D, calls)).rank == N  # what is made is handed on as it is
    assert store.get(key_of(D, 11), refuse).rank == 11
    assert store.get(key_of(D), counted(D, calls)).rank == N
    assert store.get(key_of(D, 10), refuse).rank == 10
    assert len(calls) == 3 and store.use().n_entries == 1


def test_a_matrix_of_low_rank_has_all_its_features_in_an_entry(store: FactorStore) -> None:
    D = matrix(1)[:, :3] @ matrix(2)[:3]
    made = store.get(key_of(D), lambda: factorise(D))
    assert made.rank == 3 and store.get(key_of(D), refuse).rank == 3
    zero = torch.zeros(M, N)
    for _ in range(2):
        assert store.get(key_of(zero), lambda: factorise(zero)).how == "zero"


def test_small_and_low_rank_changes_are_left_alone(store: FactorStore) -> None:
    assert factor_key(matrix(0, 1000, factor_cache.MIN_SIDE - 1)) is None
    assert factor_key(LowRank(matrix(0, 100, 4), matrix(0, 4, 100))) is None
    D = matrix()
    assert same(store.get(None, lambda: factorise(D)), factorise(D)) and not store.folder.exists()


def test_damaged_entries_are_computed_again(store: FactorStore) -> None:
    D = matrix()
    store.get(key_of(D), lambda: factorise(D))
    (path,) = entries(store.folder)
    sound = path.read_bytes()
    length = 8 + int.from_bytes(sound[:8], "little")
    gains = sound.index(factorise(D).S.numpy().tobytes())
    other = path.with_name("other")
    write_rows(other, {"U": torch.ones(3, M), "S": torch.ones(3), "Vh": torch.ones(3, N + 1)}, {"count": "70"})
    damages = {
        "empty": b"",
        "cut off": sound[:-1],
        "longer": sound + b"x",
        "no header": b"\xff" * len(sound),
        "header only": sound[:length],
        "gains of nothing": sound[:gains] + bytes(4) + sound[gains + 4 :],
        "gains that are NaN": sound[:gains] + b"\xff" * 4 + sound[gains + 4 :],
        "another shape": other.read_bytes(),
        "no count": sound.replace(b'"count":"70"', b'"count":"xx"'),
    }
    for name, damaged in damages.items():
        assert damaged != sound, name
        path.write_bytes(damaged)
        calls: list[int] = []
        assert same(store.get(key_of(D), counted(D, calls)), factorise(D)) and calls, name
        assert same(store.get(key_of(D), refuse), factorise(D)), name
    path.unlink()
    path.mkdir()
    assert store.get(key_of(D), lambda: factorise(D)).rank == N


def test_an_entry_may_vanish_at_any_moment(store: FactorStore, monkeypatch: pytest.MonkeyPatch) -> None:
    D = matrix()
    store.get(key_of(D), lambda: factorise(D))

    def gone(path: Path, *args: object) -> None:
        path.unlink()
        read_rows(path, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(factor_cache, "read_rows", gone)
    calls: list[int] = []
    assert same(store.get(key_of(D), counted(D, calls)), factorise(D)) and calls


def test_what_cannot_be_written_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    D = matrix()
    (tmp_path / "file").write_text("in the way")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        assert FactorStore(folder, LIMIT).get(key_of(D), lambda: factorise(D)).rank == N
    assert (tmp_path / "file").read_text() == "in the way"
    assert FactorStore(tmp_path / "small", 50_000).get(key_of(D), lambda: factorise(D)).rank == N
    monkeypatch.setattr(factor_cache, "FREE_BYTES", 10**18)
    assert FactorStore(tmp_path / "full", LIMIT).get(key_of(D), lambda: factorise(D)).rank == N
    assert not entries(tmp_path)


def test_a_matrix_that_cannot_be_factorised_is_refused_as_ever(store: FactorStore) -> None:
    D = matrix()
    D[3, 4] = float("nan")
    with pytest.raises(NumericalError, match="1 values"):
        store.get(key_of(D), lambda: factorise(D))
    assert not entries(store.folder)


def test_the_least_recently_used_go_first_and_the_limit_holds(tmp_path: Path) -> None:
    D = [matrix(seed) for seed in range(8)]
    size = 4 * (M * N + N * N + N) + 512
    store = FactorStore(tmp_path, 4 * size)
    for index, change in enumerate(D[:3]):
        store.get(key_of(change), lambda change=change: factorise(change))
        os.utime(store._path(key_of(change).digest), (1000 + index, 1000 + index))
    store.get(key_of(D[0]), refuse)  # touched: now the newest
    for change in D[3:5]:
        store.get(key_of(change), lambda change=change: factorise(change))
        assert store.use().n_bytes <= store.limit_bytes
    kept = [store._path(key_of(change).digest).exists() for change in D]
    assert kept == [True, False, False, True, True, False, False, False]
    for change in D:
        store.get(key_of(change), lambda change=change: factorise(change))
        assert 0 < store.use().n_bytes <= store.limit_bytes


def test_clearing_removes_entries_and_remains_but_nothing_of_a_person_s(store: FactorStore) -> None:
    for seed in range(3):
        store.get(key_of(matrix(seed)), lambda seed=seed: factorise(matrix(seed)))
    first = entries(store.folder)[0]
    remains = first.with_name(f"{first.name}.{'0' * 16}.tmp")
    mine = [store.folder / "notes.safetensors", first.with_name("mine.safetensors"), store.folder / "ab.txt"]
    for path in (remains, *mine):
        path.write_text("x")
    (store.folder / "empty").mkdir()
    before = store.use()
    assert store.clear() == before and before.n_entries == 3
    assert store.use().n_entries == 0 and not remains.exists()
    assert all(path.exists() for path in mine) and (store.folder / "empty").is_dir()
    assert FactorStore(store.folder / "none", LIMIT).clear().n_entries == 0


def test_remains_of_dead_processes_go_when_room_is_made(store: FactorStore) -> None:
    D = matrix()
    path = store._path(key_of(D).digest)
    path.parent.mkdir(parents=True)
    old, young = (path.with_name(f"{path.name}.{digit * 16}.tmp") for digit in "01")
    for remains in (old, young):
        remains.write_text("x")
    long_ago = time.time() - 2 * factor_cache.STALE_S
    os.utime(old, (long_ago, long_ago))
    store.get(key_of(D), lambda: factorise(D))
    assert path.exists() and young.exists() and not old.exists()


def _hammer(folder: Path, first: int) -> None:
    """One of two processes that write, read and push out the same few entries."""
    torch.set_num_threads(1)
    store = FactorStore(folder, 4 * 45_000)
    made = {seed: factorise(matrix(seed)) for seed in range(6)}
    for step in range(120):
        seed = (first + step * 5) % 6
        found = store.get(key_of(matrix(seed), 10 + step % 60), lambda seed=seed: made[seed])
        assert torch.equal(found.cut(10).S, made[seed].S[:10]) and torch.equal(found.cut(10).Vh, made[seed].Vh[:10])


def test_two_processes_share_a_folder(tmp_path: Path) -> None:
    other = multiprocessing.get_context("spawn").Process(target=_hammer, args=(tmp_path, 0))
    other.start()
    while not entries(tmp_path) and other.is_alive():
        time.sleep(0.001)
    _hammer(tmp_path, 3)
    other.join(120)
    assert other.exitcode == 0
    assert entries(tmp_path) and FactorStore(tmp_path, 4 * 45_000).use().n_bytes <= 4 * 45_000
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_sentence_says_what_is_kept_and_what_was_removed(store: FactorStore, tmp_path: Path) -> None:
    store.get(key_of(matrix()), lambda: factorise(matrix()))
    where = {"SFTM_CACHE_DIR": str(store.folder), "SFTM_CACHE_GB": "0.1"}
    held = f"{store.folder}: 1 entry (factors, layers, what is known of files), {format_bytes(store.use().n_bytes)}"
    (store.folder / factor_cache.SPEEDS_NAME).write_text("{}")
    assert look_into(False, where) == f"{held} of at most 100 MB."
    assert look_into(True, where) == f"{held}, were removed." and not entries(store.folder)
    assert not (store.folder / factor_cache.SPEEDS_NAME).exists()
    assert "switched off" in look_into(True, where | {"SFTM_CACHE_GB": "0"})


def test_rows_of_a_file_are_checked(tmp_path: Path) -> None:
    path = tmp_path / "rows"
    write_rows(path, {"a": torch.arange(6.0).reshape(3, 2), "b": torch.arange(3.0)}, {"k": "v"})
    found, about = read_rows(path, {"a": (2,), "b": ()}, torch.float32, 2)
    assert found["a"].tolist() == [[0, 1], [2, 3]] and found["b"].tolist() == [0, 1] and about["k"] == "v"
    for shapes, dtype in (({"a": (2,)}, torch.float32), ({"a": (3,), "b": ()}, torch.float32)):
        with pytest.raises(CheckpointError, match="expected"):
            read_rows(path, shapes, dtype, 2)
    with pytest.raises(CheckpointError, match="expected"):
        read_rows(path, {"a": (2,), "b": ()}, torch.float64, 2)
    with pytest.raises(CheckpointError, match="no such file"):
        read_rows(tmp_path / "none", {"a": (2,)}, torch.float32, 2)
    assert [p.name for p in tmp_path.iterdir()] == ["rows"]


def test_a_second_merge_factorises_nothing_and_gives_the_same_bytes(
    recipe_for: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SFTM_CACHE_DIR", str(tmp_path / "factors"))
    monkeypatch.setattr(factor_cache, "MIN_SIDE", 2)
    read = spy_on_reading(monkeypatch)

    def merged(name: str, **changes: Any) -> tuple[bytes, Report]:
        recipe = recipe_for(**changes)
        steps = save(plan_for(recipe, check_recipe(recipe).require()), tmp_path / name)
        with pytest.raises(StopIteration) as end:
            while True:
                next(steps)
        return (tmp_path / name / "model.safetensors").read_bytes(), end.value.value

    monkeypatch.setenv("SFTM_CACHE_GB", "0")
    plain, _ = merged("plain")
    assert not (tmp_path / "factors").exists()
    monkeypatch.setenv("SFTM_CACHE_GB", "1")
    first, report = merged("first")
    superposed = [record.figures["factorised_by"] for record in report.tensors if record.rule == "superpose"]
    assert superposed and not any("kept" in how for row in superposed for how in row)
    # What scaling leaves as it is need not be worked out again either; of other weights and ranks only the factors are
    # what they were.
    others = {"first": {}, "scaled": {"params": {"scaling": 0.5}}, "lower": {"params": {"rank": 3}}}
    others["mapped"] = {"params": {"variant": "mapping"}}
    wanted, kept = {}, {}
    monkeypatch.setenv("SFTM_CACHE_GB", "0")
    for name, changes in others.items():
        wanted[name], kept[name] = merged(f"{name} afresh", **changes)
    monkeypatch.setenv("SFTM_CACHE_GB", "1")
    monkeypatch.setattr("sftm_app.engine.features.factorise", lambda *_: refuse())
    for name, changes in others.items():
        with monkeypatch.context() as patch:
            if name in ("first", "scaled"):
                patch.setattr("sftm_app.methods.sftm.superpose", lambda *_, **__: refuse())
            read.clear()
            again, report = merged(f"{name} again", **changes)
        assert again == wanted[name], name
        # Nor are the tasks' matrices read to know what is asked for.
        superposed = tuple(record.name for record in report.tensors if record.rule == "superpose")
        # (The plain average beside a lower rank is that of all features where these are few, as here.)
        assert any(source.endswith(superposed) for source in read) is (name == "lower"), name
        for record, fresh in zip(report.tensors, kept[name].tensors, strict=True):
            figures, expected = dict(record.figures), dict(fresh.figures)
            if record.rule != "superpose":
                continue
            assert figures.pop("kept", False) is (name in ("first", "scaled"))
            hows, expected_hows = figures.pop("factorised_by"), expected.pop("factorised_by")
            assert [how.removesuffix(", kept") for how in hows] == expected_hows and figures == expected
            assert name in ("first", "scaled") or all(how.endswith(", kept") for how in hows)
    assert first == plain == wanted["first"] != wanted["scaled"]


def test_a_merge_with_other_weights_solves_nothing_again(
    recipe_for: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SFTM_CACHE_DIR", str(tmp_path / "factors"))
    monkeypatch.setattr(factor_cache, "MIN_SIDE", 2)
    many_features(monkeypatch)

    def merged(name: str, *weights: float) -> tuple[bytes, Any]:
        recipe = recipe_for()
        tasks = tuple(dataclasses.replace(t, weight=w) for t, w in zip(recipe.tasks, weights, strict=True))
        recipe = dataclasses.replace(recipe, tasks=tasks)
        plan = plan_for(recipe, check_recipe(recipe).require())
        kept = cost._what_is_kept(plan, open_store()) if name != "afresh" else None  # type: ignore[arg-type]
        list(save(plan, tmp_path / name))
        return (tmp_path / name / "model.safetensors").read_bytes(), kept

    _, first = merged("first", 1.0, 0.5, 2.0)
    _, equal = merged("equal", 1.0, 1.0, 1.0)
    monkeypatch.setattr("sftm_app.engine.features.factorise", lambda *_: refuse())
    with monkeypatch.context() as patch:
        patch.setattr(superposition, "System", lambda *_, **__: refuse())
        other, kept = merged("other", 1.0, 1.0, 0.25)
    assert [found.solved for found in (first, equal, kept)] == [False, False, True] and kept.share == 1.0
    monkeypatch.undo()
    many_features(monkeypatch)
    monkeypatch.setenv("SFTM_CACHE_GB", "0")
    assert merged("afresh", 1.0, 1.0, 0.25)[0] == other


def many_features(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small layers are solved as large ones with many features are."""
    monkeypatch.setattr(superposition, "AUTO_DIRECT_MAX", 0)
    monkeypatch.setattr(superposition, "BY_TASKS_SHARE", math.inf)


def test_what_is_kept_of_factors_is_not_used_for_others_of_the_same_matrices(
    store: FactorStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Features of a low rank come in float32, and after a merge at full rank in float64; of gains as near as these the
    directions are quite others."""
    many_features(monkeypatch)
    bases = [torch.linalg.qr(matrix(seed, 128, 128)).Q for seed in range(6)]
    changes = [(bases[t] * torch.linspace(1.0, 1.0 - 1e-5, 128)) @ bases[t + 3].T for t in range(3)]
    entry = PlanEntry(OutputTensor("x", torch.float32, (128, 128)), Role.MATRIX, "superpose", "", ("s",) * 3, (Part(),))

    def merged(rank: int | None, weights: list[float]) -> Merged:
        return merge_layer(SFTM, SFTM.params(rank=rank), entry, changes, weights, factors=store)

    first = merged(60, [1.0, 0.5, 0.7])
    merged(None, [1.0, 0.5, 0.7])
    last = merged(60, [0.3, 1.0, 0.7])
    assert first.figures["factorised_by"] == ["gram float32"] * 3
    assert last.figures["factorised_by"] == ["gram, kept"] * 3 and last.figures["solver"] == "iterative"
    factors = [store.get(key_of(change, 60), refuse) for change in changes]
    wanted = torch.cat([w * f.S for w, f in zip([0.3, 1.0, 0.7], factors, strict=True)])
    missed = torch.cat([read(last.delta, f) for f in factors]) - wanted
    assert float(missed.norm() / wanted.norm()) < 2e-5


def spy_on_reading(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The names of tensors whose changes are read, for matrices."""
    read: set[str] = set()
    real = changes_module.read_task_matrix

    def spy(reader: Any, source: Any, *rest: Any, **named: Any) -> Any:
        read.add(source)
        return real(reader, source, *rest, **named)

    monkeypatch.setattr(changes_module, "read_task_matrix", spy)
    return read


def test_a_task_that_changes_under_its_old_date_is_merged_as_it_is(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(factor_cache, "MIN_SIDE", 2)
    monkeypatch.setenv("SFTM_CACHE_DIR", str(tmp_path / "factors"))

    def merged(name: str, gigabytes: str) -> tuple[bytes, dict[str, str]]:
        monkeypatch.setenv("SFTM_CACHE_GB", gigabytes)
        report = merge(models / "base", [models / "a", models / "b"], output=tmp_path / name, device="cpu")
        return (tmp_path / name / "model.safetensors").read_bytes(), report.inputs[1].sha256

    first = merged("first", "1")
    assert merged("again", "1") == first
    file = models / "a" / "model.safetensors"
    status = os.stat(file)
    tensors = load_file(file)
    name = next(name for name in tensors if name.endswith("query.weight"))
    tensors[name] += 0.125
    time.sleep(0.02)
    file.write_bytes(save_to_bytes(tensors, {"format": "pt"}))
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert os.stat(file).st_size == status.st_size and os.stat(file).st_ino == status.st_ino
    changed = merged("changed", "1")
    assert changed == merged("afresh", "0") and changed[0] != first[0] and changed[1] != first[1]


def test_a_note_is_kept_by_what_it_is_about(store: FactorStore) -> None:
    assert not store.recalls("x") and store.recall("x", lambda: {"a": [1]}) == {"a": [1]} and store.recalls("x")
    assert FactorStore(store.folder, LIMIT).recall("x", refuse) == {"a": [1]}
    assert store.recall("y", lambda: None) is None and store.recall("y", refuse) is None
    (path,) = [path for path in entries(store.folder) if b'"a"' in path.read_bytes().replace(b"\\", b"")]
    path.write_bytes(path.read_bytes().replace(b"1", b"2"))
    assert store.recall("x", lambda: "made anew") == "made anew"


def kept_layer(value: float = 1.0) -> CachedLayer:
    return CachedLayer(
        {"delta": torch.full((8, 4), value), "left": torch.ones(2, dtype=torch.float64)}, {"figures": [value]}
    )


def test_a_layer_is_kept_under_all_its_matrices_and_what_was_done(store: FactorStore) -> None:
    key = layer_key(["a", "b"], ("sftm", {"rank": None}, [1.0, 1.0]))
    others = [layer_key(["b", "a"], ("sftm", {"rank": None}, [1.0, 1.0]))]
    others += [layer_key(["a", "b"], ("sftm", {"rank": 3}, [1.0, 1.0])), layer_key(["a"], ("sftm",))]
    assert len({key, *others}) == 4
    assert layer_key(["a", None], ()) is None and layer_key([], ()) is None
    assert store.keep(None, kept_layer).found is False and not entries(store.folder)
    assert not store.holds_layer(key) and not store.keep(key, kept_layer).found and store.holds_layer(key)
    again = FactorStore(store.folder, LIMIT).keep(key, lambda: kept_layer(2.0))
    assert again.found and again.values == {"figures": [1.0]}
    assert all(torch.equal(again.tensors[name], tensor) for name, tensor in kept_layer().tensors.items())
    assert [store.keep(other, lambda: kept_layer(3.0)).found for other in others] == [False] * 3


def test_a_layer_of_zeros_where_there_were_numbers_is_worked_out_again(store: FactorStore) -> None:
    """As a power cut leaves it: nothing here waits for the disk."""
    key = layer_key(["a"], "about")
    store.keep(key, kept_layer)
    (path,) = entries(store.folder)
    raw = bytearray(path.read_bytes())
    raw[-64:] = bytes(64)
    path.write_bytes(raw)
    again = store.keep(key, kept_layer)
    assert not again.found and torch.equal(again.tensors["delta"], torch.ones(8, 4))


def test_another_number_of_threads_is_another_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    one = layer_key(["a"], "about")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    assert layer_key(["a"], "about") != one


@pytest.mark.parametrize("damage", [b"", b"nonsense", None])
def test_a_damaged_layer_is_worked_out_again(store: FactorStore, damage: bytes | None) -> None:
    key = layer_key(["a"], "about")
    store.keep(key, kept_layer)
    (path,) = entries(store.folder)
    if damage is None:
        write_rows(path, {"delta": torch.ones(1)}, {"values": "not JSON"})
    else:
        path.write_bytes(damage)
    assert store.keep(key, lambda: kept_layer(2.0)).values == {"figures": [2.0]}
    assert store.keep(key, kept_layer).found


def test_other_weights_are_another_layer(recipe_for: Callable[..., Any]) -> None:
    method, params = recipe_for().method, recipe_for().params
    about = about_merge(get_method(method), params, weighted_by([1.0, 2.0], 0.0), torch.device("cpu"))
    half = dataclasses.replace(params, scaling=0.5)
    assert about == about_merge(get_method(method), half, weighted_by([1.0, 2.0], 0.0), torch.device("cpu"))
    assert about != about_merge(get_method(method), params, weighted_by([2.0, 1.0], 0.0), torch.device("cpu"))
    assert about != about_merge(get_method(method), params, weighted_by([1.0, 2.0], 1.0), torch.device("cpu"))
    cut = dataclasses.replace(params, rank=3)
    assert about != about_merge(get_method(method), cut, weighted_by([1.0, 2.0], 0.0), torch.device("cpu"))
    assert about != about_merge(get_method(method), params, weighted_by([1.0, 2.0], 0.0), torch.device("cuda"))
