"""The cache on disk: found again by file stamps, at any lower rank, within a limit, whatever happens to its files."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from cache_hammer import HAMMER_LIMIT, M, N, hammer
from safetensors.torch import load_file
from safetensors.torch import save as save_to_bytes
from torch import Tensor

from sftm_app.api import merge
from sftm_app.engine import task_matrices
from sftm_app.errors import CheckpointError, NumericalError
from sftm_app.linalg.factors import Factors, n_kept
from sftm_app.linalg.svd import factorise
from sftm_app.methods import METHODS
from sftm_app.output.report import Report
from sftm_app.output.save import save
from sftm_app.pipeline import prepare
from sftm_app.planning.keys import factor_key, is_cached, layer_key, matrix_key
from sftm_app.planning.plan import Plan
from sftm_app.planning.recipe import Recipe, make_recipe
from sftm_app.session import SPEED_NAME, Session, describe_cache, made_by, open_session
from sftm_app.units import format_bytes
from sftm_app.weights import disk_cache
from sftm_app.weights.disk_cache import CACHED, DiskCache, Entry, FactorKey, digest, hash_key
from sftm_app.weights.header import FileStamp
from sftm_app.weights.row_files import read_rows, write_rows

LIMIT = 100_000_000
CPU = torch.device("cpu")
Made = tuple[Factors, float]


def matrix(seed: int = 0, m: int = M, n: int = N, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(m, n, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def key_of(seed: int = 0, rank: int | float | str | None = None, dtype: torch.dtype = torch.float32) -> FactorKey:
    """The key of matrix(seed), in place of one that names its files."""
    return FactorKey(digest("test", seed, dtype), (M, N), dtype, n_kept(rank, M, N))


def made(D: Tensor, rank: int | None = None) -> Made:
    return factorise(D, rank), float(D.square().sum())


def refuse(*_: object, **__: object) -> Any:
    raise AssertionError("computed although it is cached")


def counted(D: Tensor, calls: list[int], rank: int | None = None) -> Callable[[], Made]:
    return lambda: (calls.append(1), made(D, rank))[1]


def same(first: Factors, second: Factors) -> bool:
    return all(torch.equal(getattr(first, name), getattr(second, name)) for name in ("U", "S", "Vh"))


def entries(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.safetensors"))


@pytest.fixture
def cache(tmp_path: Path) -> DiskCache:
    return DiskCache(tmp_path / "cache", LIMIT)


def test_what_is_found_again_is_what_was_made_to_the_last_bit(cache: DiskCache) -> None:
    for dtype in (torch.float32, torch.float64):
        D, key = matrix(dtype=dtype), key_of(dtype=dtype)
        assert not cache.holds_factors(key)
        first, energy = cache.factors(key, lambda D=D: made(D))
        again, same_energy = DiskCache(cache.folder, LIMIT).factors(key, refuse)
        assert same(first, again) and again.U.is_contiguous() and again.U.dtype == dtype
        assert again.how == f"{first.how}{CACHED}" and energy == same_energy and cache.holds_factors(key)
    assert cache.use().n_entries == 2 and len(entries(cache.folder)) == 2
    assert cache.use().n_bytes == sum(path.stat().st_size for path in entries(cache.folder))


def test_an_entry_serves_every_lower_rank_and_reads_no_more_than_that(cache: DiskCache) -> None:
    full, energy = cache.factors(key_of(), lambda: made(matrix()))
    for rank, count in ((1, 1), (10, 10), (0.5, 35), (1000, N)):
        found, whole = cache.factors(key_of(rank=rank), refuse)
        assert same(found, full.cut(count)) and whole == energy, "the energy is that of the whole matrix"
    assert same(cache.factors(key_of(rank="90% energy"), refuse)[0], full)


def test_an_entry_of_a_lower_rank_is_replaced_by_one_of_a_higher(cache: DiskCache) -> None:
    D, calls = matrix(), []

    def rank_of(rank: int | None, make: Callable[[], Made]) -> int:
        return cache.factors(key_of(rank=rank), make)[0].rank

    assert rank_of(10, counted(D, calls, 10)) == 10 and rank_of(8, refuse) == 8
    assert rank_of(11, counted(D, calls)) == N  # what is made is handed on as it is
    assert rank_of(11, refuse) == 11
    assert rank_of(None, counted(D, calls)) == N
    assert rank_of(10, refuse) == 10
    assert len(calls) == 3 and cache.use().n_entries == 1


def test_a_matrix_of_low_rank_has_all_its_features_in_an_entry(cache: DiskCache) -> None:
    D = matrix(1)[:, :3] @ matrix(2)[:3]
    assert cache.factors(key_of(), lambda: made(D))[0].rank == 3 == cache.factors(key_of(), refuse)[0].rank
    zero = torch.zeros(M, N)
    for _ in range(2):
        assert cache.factors(key_of(3), lambda: made(zero))[0].how == "zero"


def test_damaged_factors_are_computed_again(cache: DiskCache) -> None:
    D = matrix()
    cache.factors(key_of(), lambda: made(D))
    (path,) = entries(cache.folder)
    sound = path.read_bytes()
    length = 8 + int.from_bytes(sound[:8], "little")
    gains = sound.index(factorise(D).S.numpy().tobytes())
    other = path.with_name("other")
    about = {"count": "70", "energy": "1.0"}
    write_rows(other, {"U": torch.ones(3, M), "S": torch.ones(3), "Vh": torch.ones(3, N + 1)}, about)
    energy = repr(made(D)[1]).encode()
    DiskCache(path.parents[1], LIMIT).factors(key_of(5), lambda: made(matrix(5)))
    another = next(entry for entry in entries(cache.folder) if entry != path)
    flipped = {
        f"one bit at {place}": sound[:at] + bytes([sound[at] ^ 1]) + sound[at + 1 :]
        for place, at in (("the start", length), ("the middle", (length + len(sound)) // 2), ("the end", -5))
    }
    damages = flipped | {
        "zeros, as after a power cut": sound[: length + 5000] + bytes(len(sound) - length - 5000),
        "the entry of another matrix": another.read_bytes(),
        "empty": b"",
        "cut off": sound[:-1],
        "longer": sound + b"x",
        "no header": b"\xff" * len(sound),
        "header only": sound[:length],
        "gains of nothing": sound[:gains] + bytes(4) + sound[gains + 4 :],
        "gains that are NaN": sound[:gains] + b"\xff" * 4 + sound[gains + 4 :],
        "another shape": other.read_bytes(),
        "no count": sound.replace(b'"count":"70"', b'"count":"xx"'),
        "no energy": sound.replace(energy, b"x" * len(energy)),
        "another energy": sound.replace(energy, energy[:-1] + (b"1" if energy[-1:] != b"1" else b"2")),
    }
    for name, damaged in damages.items():
        assert damaged != sound, name
        path.write_bytes(damaged)
        calls: list[int] = []
        assert same(cache.factors(key_of(), counted(D, calls))[0], factorise(D)) and calls, name
        assert same(cache.factors(key_of(), refuse)[0], factorise(D)), name
    path.unlink()
    path.mkdir()
    assert cache.factors(key_of(), lambda: made(D))[0].rank == N


def test_damage_beyond_the_rows_that_are_read_does_not_matter(cache: DiskCache) -> None:
    full, _ = cache.factors(key_of(), lambda: made(matrix()))
    (path,) = entries(cache.folder)
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1  # the last read direction
    path.write_bytes(raw)
    assert same(cache.factors(key_of(rank=10), refuse)[0], full.cut(10))
    calls: list[int] = []
    assert same(cache.factors(key_of(), counted(matrix(), calls))[0], full) and calls


def test_an_entry_may_vanish_at_any_moment(cache: DiskCache, monkeypatch: pytest.MonkeyPatch) -> None:
    D = matrix()
    cache.factors(key_of(), lambda: made(D))

    def gone(path: Path, *args: object) -> None:
        path.unlink()
        read_rows(path, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(disk_cache, "read_rows", gone)
    calls: list[int] = []
    assert same(cache.factors(key_of(), counted(D, calls))[0], factorise(D)) and calls


def test_what_cannot_be_written_is_not_cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def rank_in(folder: Path, limit: int = LIMIT) -> int:
        return DiskCache(folder, limit).factors(key_of(), lambda: made(matrix()))[0].rank

    (tmp_path / "file").write_text("in the way")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        assert rank_in(folder) == N
    assert (tmp_path / "file").read_text() == "in the way"
    assert rank_in(tmp_path / "small", 50_000) == N
    monkeypatch.setattr(disk_cache, "FREE_BYTES", 10**18)
    assert rank_in(tmp_path / "full") == N
    assert not entries(tmp_path)


def test_a_folder_that_may_only_be_read_is_read(as_ordinary_user: Path) -> None:
    folder = as_ordinary_user / "cache"
    DiskCache(folder, LIMIT).factors(key_of(), lambda: made(matrix()))
    for path in sorted(folder.rglob("*"), reverse=True):
        path.chmod(0o500 if path.is_dir() else 0o400)
    folder.chmod(0o500)
    shared = DiskCache(folder, LIMIT)
    assert same(shared.factors(key_of(), refuse)[0], factorise(matrix()))
    assert shared.factors(key_of(1), lambda: made(matrix(1)))[0].rank == N
    shared.put(digest("x"), Entry({}, {"a": 1}))
    assert shared.use().n_entries == 1 and shared.clear().n_entries == 0 and shared.use().n_entries == 1


def test_a_folder_that_may_not_be_looked_into_is_no_cache(as_ordinary_user: Path, session: Session) -> None:
    folder = as_ordinary_user / "cache"
    cache = DiskCache(folder, LIMIT)
    cache.factors(key_of(), lambda: made(matrix()))
    cache.put(LAYER, an_entry())
    (folder / SPEED_NAME).write_text("{}")
    for path in (*folder.iterdir(), folder):
        if path.is_dir():
            path.chmod(0)
    calls: list[int] = []
    assert cache.factors(key_of(), counted(matrix(), calls))[0].rank == N and calls
    assert not cache.holds_factors(key_of()) and not cache.holds(LAYER) and cache.find(LAYER) is None
    cache.put(LAYER, an_entry())
    assert "removed 0 entries" in describe_cache(dataclasses.replace(session, cache=cache), clear=True)


def test_a_matrix_that_cannot_be_factorised_is_refused_as_ever(cache: DiskCache) -> None:
    D = matrix()
    D[3, 4] = float("nan")
    with pytest.raises(NumericalError, match="1 values"):
        cache.factors(key_of(), lambda: made(D))
    assert not entries(cache.folder)


def test_the_least_recently_used_go_first_and_the_limit_holds(tmp_path: Path) -> None:
    def store(seed: int) -> Path:
        cache.factors(key_of(seed), lambda: made(matrix(seed)))
        return path_of(seed)

    def path_of(seed: int) -> Path:
        name = key_of(seed).digest
        return tmp_path / name[:2] / f"{name}.safetensors"

    size = 4 * (M * N + N * N + N) + 512
    cache = DiskCache(tmp_path, 4 * size)
    for seed in range(3):
        os.utime(store(seed), (1000 + seed, 1000 + seed))
    cache.factors(key_of(0), refuse)  # touched: now the newest
    for seed in (3, 4):
        store(seed)
        assert cache.use().n_bytes <= cache.limit_bytes
    assert [path_of(seed).exists() for seed in range(8)] == [True, False, False, True, True, False, False, False]
    for seed in range(8):
        store(seed)
        assert 0 < cache.use().n_bytes <= cache.limit_bytes


def test_clearing_removes_entries_and_remains_but_nothing_of_a_person_s(cache: DiskCache) -> None:
    for seed in range(3):
        cache.factors(key_of(seed), lambda seed=seed: made(matrix(seed)))
    first = entries(cache.folder)[0]
    remains = first.with_name(f"{first.name}.{'0' * 16}.tmp")
    mine = [cache.folder / "notes.safetensors", first.with_name("mine.safetensors"), cache.folder / "ab.txt"]
    for path in (remains, *mine):
        path.write_text("x")
    (cache.folder / "empty").mkdir()
    before = cache.use()
    assert cache.clear() == before and before.n_entries == 3
    assert cache.use().n_entries == 0 and not remains.exists()
    assert all(path.exists() for path in mine) and (cache.folder / "empty").is_dir()
    assert DiskCache(cache.folder / "none", LIMIT).clear().n_entries == 0


def test_remains_of_dead_processes_go_when_room_is_made(cache: DiskCache) -> None:
    name = key_of().digest
    path = cache.folder / name[:2] / f"{name}.safetensors"
    path.parent.mkdir(parents=True)
    old, young = (path.with_name(f"{path.name}.{digit * 16}.tmp") for digit in "01")
    for remains in (old, young):
        remains.write_text("x")
    long_ago = time.time() - 2 * disk_cache.STALE_S
    os.utime(old, (long_ago, long_ago))
    cache.factors(key_of(), lambda: made(matrix()))
    assert path.exists() and young.exists() and not old.exists()


def test_two_processes_share_a_folder(tmp_path: Path) -> None:
    other = multiprocessing.get_context("spawn").Process(target=hammer, args=(tmp_path, 0))
    other.start()
    while not entries(tmp_path) and other.is_alive():
        time.sleep(0.001)
    hammer(tmp_path, 3)
    other.join(120)
    assert other.exitcode == 0
    assert entries(tmp_path) and DiskCache(tmp_path, HAMMER_LIMIT).use().n_bytes <= HAMMER_LIMIT
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_sentence_says_what_is_cached_and_what_was_removed(cached_session: Session, session: Session) -> None:
    cache = cached_session.cache
    assert cache is not None
    assert describe_cache(cached_session).startswith(f"{cache.folder}: 0 entries")
    assert not cache.folder.exists(), "asking leaves no folder behind"
    cache.factors(key_of(), lambda: made(matrix()))
    what = f"1 entry (factors, layers, hashes), {format_bytes(cache.use().n_bytes)}"
    (cache.folder / SPEED_NAME).write_text("{}")
    (cache.folder / "architectures").mkdir()
    assert describe_cache(cached_session) == f"{cache.folder}: {what} of at most 1 GB."
    assert describe_cache(cached_session, clear=True) == f"{cache.folder}: removed {what}."
    assert not entries(cache.folder) and not list(cache.folder.glob("*.json"))
    assert not (cache.folder / "architectures").exists()
    assert "The cache is off" in describe_cache(session, clear=True)


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


LAYER = digest("a layer")


def an_entry(value: float = 1.0) -> Entry:
    delta, left = torch.full((8, 4), value), torch.ones(2, dtype=torch.float64)
    return Entry({"delta": delta, "left": left}, {"figures": [value]})


def test_an_entry_is_found_under_its_key_alone(cache: DiskCache) -> None:
    assert not cache.holds(LAYER) and cache.find(LAYER) is None and not cache.folder.exists()
    cache.put(LAYER, an_entry())
    cache.put(None, an_entry())
    again = DiskCache(cache.folder, LIMIT).find(LAYER)
    assert cache.holds(LAYER) and again is not None and again.values == {"figures": [1.0]}
    assert all(torch.equal(again.tensors[name], tensor) for name, tensor in an_entry().tensors.items())
    assert cache.find(digest("another")) is None and cache.find(None) is None and not cache.holds(None)
    cache.put(LAYER, an_entry(2.0))
    assert cache.find(LAYER).values == {"figures": [2.0]} and len(entries(cache.folder)) == 1  # type: ignore[union-attr]


@pytest.mark.parametrize("damage", ["empty", "nonsense", "zeros", "one bit", "other values", "no JSON", "another"])
def test_a_damaged_entry_is_as_good_as_none(cache: DiskCache, damage: str) -> None:
    """Zeros in place of numbers are what a power cut leaves: nothing here waits for the disk."""
    cache.put(LAYER, an_entry())
    (path,) = entries(cache.folder)
    raw = bytearray(path.read_bytes())
    if damage == "zeros":
        raw[-64:] = bytes(64)
    elif damage == "one bit":
        raw[-1] ^= 1
    elif damage == "other values":
        raw = bytearray(bytes(raw).replace(b"[1.0]", b"[7.0]"))
        assert b"[7.0]" in raw
    elif damage == "another":
        cache.put(digest("another"), an_entry(3.0))
        (another,) = set(entries(cache.folder)) - {path}
        raw = bytearray(another.read_bytes())
        another.unlink()
    elif damage == "no JSON":
        write_rows(path, {"delta": torch.ones(1)}, {"values": "not JSON"})
        raw = bytearray(path.read_bytes())
    else:
        raw = bytearray(b"" if damage == "empty" else b"nonsense")
    path.write_bytes(raw)
    assert cache.find(LAYER) is None and not path.exists()
    cache.put(LAYER, an_entry(2.0))
    assert cache.find(LAYER).values == {"figures": [2.0]}  # type: ignore[union-attr]


def test_a_value_is_made_once(cache: DiskCache) -> None:
    key = digest("value")
    assert cache.value(key, lambda: "made") == "made" == DiskCache(cache.folder, LIMIT).value(key, refuse)
    (path,) = entries(cache.folder)
    path.write_bytes(path.read_bytes().replace(b"made", b"MADE"))
    assert cache.value(key, lambda: "made again") == "made again"
    with pytest.raises(KeyError):
        cache.value(digest("other"), lambda: {}["x"])


def test_a_hash_belongs_to_a_path_and_a_state_of_the_file(cache: DiskCache, tmp_path: Path) -> None:
    file = tmp_path / "x"
    file.write_bytes(b"one")
    stamp = FileStamp.of(file)
    keys = {hash_key(file, stamp), hash_key(tmp_path / "y", stamp)}
    keys |= {
        hash_key(file, dataclasses.replace(stamp, **{field.name: getattr(stamp, field.name) + 1}))
        for field in dataclasses.fields(FileStamp)
    }
    assert len(keys) == 2 + len(dataclasses.fields(FileStamp)), "size, times and inode all count"
    (tmp_path / "link").symlink_to(file)
    assert hash_key(tmp_path / "link", stamp) == hash_key(file, stamp)
    assert cache.hash_of(file, stamp, lambda: "h") == "h" == cache.hash_of(file, stamp, refuse)


@pytest.fixture
def tiny_session(cached_session: Session, small_layers_cached: None) -> Session:
    """A session with a cache for layers of any size."""
    return cached_session


def save_all(recipe: Recipe, session: Session, output: Path) -> tuple[bytes, Report]:
    """The bytes of the merged model, and the report."""
    steps = save(prepare(recipe, session), session, output)
    with pytest.raises(StopIteration) as end:
        while True:
            next(steps)
    return (output / "model.safetensors").read_bytes(), end.value.value


def spy_on_reading(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The names of tensors whose task matrices are read."""
    read: set[str] = set()
    real = task_matrices.read_task_matrix

    def spy(reader: Any, source: Any, *rest: Any, **named: Any) -> Any:
        read.add(source)
        return real(reader, source, *rest, **named)

    monkeypatch.setattr(task_matrices, "read_task_matrix", spy)
    return read


def test_a_second_merge_factorises_nothing_and_gives_the_same_bytes(
    recipe_for: Callable[..., Any], tiny_session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = spy_on_reading(monkeypatch)
    uncached = dataclasses.replace(tiny_session, cache=None)
    plain, _ = save_all(recipe_for(), uncached, tmp_path / "plain")
    assert tiny_session.cache is not None and not entries(tiny_session.cache.folder)
    first, report = save_all(recipe_for(), tiny_session, tmp_path / "first")
    merged = [record.figures for record in report.tensors if record.rule == "method"]
    assert merged and not any(CACHED in how for figures in merged for how in figures.factorised_by)
    # What does not depend on the scaling is cached; of other variants and ranks, the factors are.
    others: dict[str, dict[str, Any]] = {"first": {}, "scaled": {"params": {"scaling": 0.5}}}
    # (Calibration of another delta would read the task matrices.)
    lower = {"rank": 3, "calibration": 0.0}
    others |= {"lower": {"params": lower}, "mapping": {"params": {"variant": "mapping"}}}
    wanted = {
        name: save_all(recipe_for(**changes), uncached, tmp_path / f"{name} afresh") for name, changes in others.items()
    }
    monkeypatch.setattr("sftm_app.engine.features.factorise", refuse)
    for name, changes in others.items():
        whole = name in ("first", "scaled")
        with monkeypatch.context() as patch:
            if whole:
                patch.setattr("sftm_app.methods.sftm.superpose", refuse)
            read.clear()
            again, report = save_all(recipe_for(**changes), tiny_session, tmp_path / f"{name} again")
        assert again == wanted[name][0], name
        names = tuple(record.name for record in report.tensors if record.rule == "method")
        assert not any(source.endswith(names) for source in read), "no task matrix is read to know what is cached"
        for record, fresh in zip(report.tensors, wanted[name][1].tensors, strict=True):
            if record.rule == "method":
                assert record.figures.cached is whole
                hows = [how.removesuffix(CACHED) for how in record.figures.factorised_by]
                assert tuple(hows) == fresh.figures.factorised_by
                assert whole or all(how.endswith(CACHED) for how in record.figures.factorised_by)
                same_but = {"cached": False, "factorised_by": fresh.figures.factorised_by}
                assert dataclasses.replace(record.figures, **same_but) == fresh.figures
    assert first == plain == wanted["first"][0] != wanted["scaled"][0]


@pytest.mark.parametrize("method", [name for name, method in METHODS.items() if not method.elementwise])
def test_every_method_that_needs_whole_tensors_is_cached(
    recipe_for: Callable[..., Any], tiny_session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    scaled = {"scaling": 0.5} if "scaling" in METHODS[method].params.__dataclass_fields__ else {}
    wanted, fresh = save_all(
        recipe_for("ab", method=method, params=scaled),
        dataclasses.replace(tiny_session, cache=None),
        tmp_path / "wanted",
    )
    save_all(recipe_for("ab", method=method), tiny_session, tmp_path / "first")
    monkeypatch.setitem(METHODS, method, dataclasses.replace(METHODS[method], merge=refuse_matrices(method)))
    monkeypatch.setattr("sftm_app.engine.features.factorise", refuse)
    again, report = save_all(recipe_for("ab", method=method, params=scaled), tiny_session, tmp_path / "again")
    assert again == wanted
    for record, other in zip(report.tensors, fresh.tensors, strict=True):
        assert record.figures.readout_errors == other.figures.readout_errors
        assert record.figures.cached is (record.role == "matrix")


def refuse_matrices(name: str) -> Callable[..., Any]:
    """The merge of a method, which is not to be asked for a matrix again."""
    merge = METHODS[name].merge
    return lambda layer, params: refuse() if layer.task_matrices[0].ndim == 2 else merge(layer, params)


def test_a_task_that_changes_under_its_old_date_is_merged_as_it_is(
    models: Path, tiny_session: Session, tmp_path: Path
) -> None:
    recipe = make_recipe(models / "base", [models / "a", models / "b"], device="cpu")

    def merged(name: str, tiny_session: Session) -> tuple[bytes, dict[str, str]]:
        found, report = save_all(recipe, tiny_session, tmp_path / name)
        return found, report.inputs[1].sha256

    first = merged("first", tiny_session)
    assert merged("again", tiny_session) == first
    file = models / "a" / "model.safetensors"
    status = os.stat(file)
    tensors = load_file(file)
    name = next(name for name in tensors if name.endswith("query.weight"))
    tensors[name] += 0.125
    time.sleep(0.02)
    file.write_bytes(save_to_bytes(tensors, {"format": "pt"}))
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert os.stat(file).st_size == status.st_size and os.stat(file).st_ino == status.st_ino
    changed = merged("changed", tiny_session)
    assert changed == merged("afresh", dataclasses.replace(tiny_session, cache=None))
    assert changed[0] != first[0] and changed[1] != first[1]


def test_a_merge_from_python_uses_the_session_it_is_given(
    tiny_models: Path, tiny_session: Session, tmp_path: Path
) -> None:
    tasks = [tiny_models / "a", tiny_models / "b"]
    reports = [merge(tiny_models / "base", tasks, tmp_path / str(i), session=tiny_session) for i in range(2)]
    assert [any(record.figures.cached for record in report.tensors) for report in reports] == [False, True]


@pytest.fixture
def plan_for(recipe_for: Callable[..., Any], tiny_session: Session) -> Callable[..., Plan]:
    return lambda tasks="ab", **changes: prepare(recipe_for(tasks, **changes), tiny_session)


def layer_address(plan: Plan, session: Session, device: torch.device = CPU) -> str:
    """The address of one layer's cache entry."""
    entry = next(entry for entry in plan.entries if entry.parts)
    key = layer_key(plan, entry, entry.parts[0], device)
    assert key is not None and session.cache is not None
    return key.address(session.cache)


def test_the_key_of_a_layer_is_all_that_it_follows_from_but_the_scaling(
    plan_for: Callable[..., Plan], tiny_models: Path, tiny_session: Session
) -> None:
    plan = plan_for()
    address = layer_address(plan, tiny_session)
    assert address == layer_address(plan_for(params={"scaling": 0.5}), tiny_session)
    assert address == layer_address(plan_for(output={"dtype": "float16"}, memory="4GB"), tiny_session)
    heavier = [dataclasses.replace(task, weight=weight) for task, weight in zip(plan.recipe.tasks, (2, 1), strict=True)]
    weighted = prepare(dataclasses.replace(plan.recipe, tasks=tuple(heavier)), tiny_session)
    others = [plan_for("ba"), plan_for("a"), plan_for("abc"), plan_for("ac"), weighted, plan_for(measure="none")]
    others += [plan_for(params={"rank": 3}), plan_for(params={"variant": "mapping"})]
    others += [plan_for(method="ties"), plan_for(method="slerp"), plan_for(method="ties", params={"density": 0.5})]
    assert len({address, *(layer_address(other, tiny_session) for other in others)}) == 1 + len(others)
    assert layer_address(plan, tiny_session, torch.device("cuda")) != address
    threads = dataclasses.replace(tiny_session, cache=DiskCache(tiny_session.cache.folder, LIMIT, made_by(7)))
    assert layer_address(plan, threads) != address


def test_what_is_not_worth_it_is_not_cached(
    plan_for: Callable[..., Plan], monkeypatch: pytest.MonkeyPatch, tiny_session: Session
) -> None:
    for plan in (plan_for(), plan_for(method="average"), plan_for(method="ties")):
        for entry in plan.entries:
            parts = entry.parts or (None,)
            worth = [layer_key(plan, entry, part, CPU) is not None for part in parts]
            assert worth == [
                entry.rule == "method" and not plan.method.elementwise and part is not None for part in parts
            ]
            assert not is_cached(plan, entry, tiny_session.cache, CPU)
    plan = plan_for()
    entry = next(entry for entry in plan.entries if entry.parts)
    key, shape = matrix_key(plan.preflight, entry.name, entry.parts[0], 0), entry.parts[0].shape_in(entry.output.shape)
    assert factor_key(key, shape) is not None and factor_key(None, shape) is None
    monkeypatch.setattr(disk_cache, "MIN_SIDE", 64)
    assert factor_key(key, shape) is None and factor_key(key, (1000, 63)) is None
    assert layer_key(plan, entry, entry.parts[0], CPU) is None


def test_the_key_of_a_task_matrix_names_its_files_tensors_and_part(plan_for: Callable[..., Plan]) -> None:
    found = plan_for("abc").preflight
    names = [name for name in found.base.tensors if name.endswith("dense.weight")]
    entry = next(entry for entry in plan_for().entries if entry.parts)
    part = entry.parts[0]
    keys = [matrix_key(found, name, part, index) for name in names for index in range(3)]
    turned = dataclasses.replace(part, transposed=not part.transposed)
    keys.append(matrix_key(found, names[0], turned, 0))
    assert len(set(keys)) == len(keys) and None not in keys
    assert matrix_key(found, names[0], part, 0) == matrix_key(plan_for("ab").preflight, names[0], part, 0)
    assert matrix_key(found, "layernorm.bias", None, 0) is None


def test_opening_a_session_touches_no_disk(tmp_path: Path) -> None:
    opened = open_session(environment={"SFTM_CACHE_DIR": str(tmp_path / "x"), "SFTM_CACHE_GB": "0.5"})
    assert opened.cache is not None and opened.cache.limit_bytes == 500_000_000 and not list(tmp_path.iterdir())
    assert open_session(environment={"SFTM_CACHE_GB": "0"}).cache is None
