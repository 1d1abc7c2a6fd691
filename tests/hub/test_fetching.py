"""Models from a small hub on this machine: looking at headers, comparing, downloading, cancelling."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_hub import FakeHub, read_folder
from safetensors.torch import load_file, save, save_file
from tiny_checkpoints import save_base, save_task

from sftm_app.api import merge_recipe
from sftm_app.errors import Cancelled, CompatibilityError, HubError, JobError
from sftm_app.hub.fetching import Fetching, choose, fetch
from sftm_app.hub.hub_look import Look, look
from sftm_app.hub.hub_process import HubProcess
from sftm_app.session import Session
from sftm_app.weights.checkpoint import open_checkpoint
from sftm_app.weights.hub_names import HubRef, hub_cache, hub_name, is_snapshot


def nothing(text: str) -> None:
    return None


def look_at(base: str, *tasks: str, local: Any = nothing) -> Look:
    return look(choose(base, tasks, None, local), HubProcess())


def unfinished() -> list[Path]:
    return list(hub_cache().rglob("*.incomplete"))


def test_a_set_is_looked_at_by_headers_then_fetched_and_merged(hub: FakeHub, tmp_path: Path, session: Session) -> None:
    seen = look_at("org/base", "org/a", "org/b@main").require()
    sizes = {name: len(data) for name, data in hub.repos["org/a"].commits[hub.repos["org/a"].branches["main"]].items()}
    wanted = seen.models[1].download
    head = 8 + int.from_bytes(hub.repos["org/a"].commits[wanted.commit]["model.safetensors"][:8], "little")
    assert (
        sum(one.n_bytes for one in hub.served if one.path.endswith("model.safetensors") and "/a/" in one.path) == head
    )
    assert wanted.missing_bytes == sizes["config.json"] + sizes["model.safetensors"] + sizes["README.md"]
    assert not hub_cache().exists()

    progress: list[tuple[int, int]] = []
    fetched = fetch(seen, HubProcess(), lambda done, total: progress.append((done, total)))
    folder = fetched.folders[HubRef("org/a")]
    assert is_snapshot(folder.resolve()) and hub_name(folder) == f"org/a@{wanted.commit}"
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert (folder / "model.safetensors").is_symlink() or os.name == "nt"
    assert open_checkpoint(folder).tensors == seen.models[1].checkpoint.tensors
    assert all(done <= total == seen.missing_bytes for done, total in progress)

    recipe = fetched.recipe()
    assert [task.name for task in recipe.tasks] == ["a", "b"]
    report = merge_recipe(recipe, tmp_path / "merged", session)
    assert report.inputs[1].hub == hub_name(folder)
    card = (tmp_path / "merged" / "README.md").read_text()
    assert "- org/base\n- org/a\n- org/b\n" in card and hub_name(folder) in card and str(tmp_path) not in card

    again = look_at("org/base", "org/a", "org/b@main")
    assert again.missing_bytes == 0


def test_only_the_models_are_requested(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    fetch(look_at("", "org/a"), HubProcess())
    assert all("org/a" in one.path for one in hub.served)
    assert not any("authorization" in one.headers for one in hub.served)
    assert not any("torch" in one.headers["user-agent"] for one in hub.served)
    monkeypatch.setenv("HF_TOKEN", "hf_of_the_person")
    hub.served.clear()
    look_at("", "org/b")
    assert {one.headers.get("authorization") for one in hub.served} == {"Bearer hf_of_the_person"}


def test_mismatches_show_before_any_weight_is_served(hub: FakeHub, models: Path) -> None:
    shutil.rmtree(models / "b")
    wide = save_base(models / "wide", hidden_size=32)
    hub.add("org/wide", read_folder(save_task(models / "b", wide, 1, 3)))
    seen = look_at("org/base", "org/a", "org/wide")
    assert any(text.startswith("wide: tensor 'embeddings.cls_token' has shape [1, 1, 32]") for text in seen.problems)
    heads = sum(
        8 + int.from_bytes(files["model.safetensors"][:8], "little")
        for name in ("org/base", "org/a", "org/wide")
        for files in [list(hub.repos[name].commits.values())[-1]]
    )
    assert hub.bytes_of(".safetensors") == heads
    with pytest.raises(CompatibilityError, match="wide: tensor"):
        fetch(seen, HubProcess())
    assert hub.bytes_of(".safetensors") == heads


def test_all_refusals_are_listed_with_the_next_step(hub: FakeHub, tiny_models: Path) -> None:
    files = read_folder(tiny_models / "a")
    pickled = {"config.json": files["config.json"], "pytorch_model.bin": b"\x80\x02"}
    for name in ("gated", "busy", "closed", "broken"):
        hub.add(f"org/{name}", files)
    hub.repos["org/gated"].gated = True
    hub.repos["org/busy"].refuse, hub.repos["org/closed"].refuse, hub.repos["org/broken"].refuse = 429, 403, 503
    hub.add("org/pickle", pickled)
    hub.add("org/stranger", pickled)
    hub.convert("org/stranger", {"model.safetensors": files["model.safetensors"]}, author="somebody")
    hub.add("org/empty", {"README.md": b"nothing"})
    names = ("gated", "busy", "closed", "broken", "pickle", "stranger", "empty", "missing", "a@nowhere")
    with pytest.raises(CompatibilityError) as error:
        look_at("org/base", *(f"org/{name}" for name in names))
    said = {text.partition(":")[0]: text for text in error.value.problems}
    assert list(said) == sorted(f"org/{name}" for name in names)
    for name, words in {
        "gated": "Accept its conditions at http",
        "busy": "Try again in 17 seconds",
        "closed": "hf auth login",
        "broken": "(503)",
        "pickle": "org/pickle@refs/pr/N",
        "stranger": "a pickle (pytorch_model.bin)",
        "empty": "holds no weights in safetensors format",
        "missing": "or it is private",
        "a@nowhere": "no such revision",
    }.items():
        assert words in said[f"org/{name}"], said[f"org/{name}"]
    assert "HF_TOKEN" in said["org/gated"] and "safetensors/convert" in said["org/pickle"]


def test_the_hubs_own_conversion_of_a_pickle_is_used_with_a_note(hub: FakeHub, tiny_models: Path) -> None:
    files = read_folder(tiny_models / "a")
    weights = files.pop("model.safetensors")
    hub.add("org/old", files | {"pytorch_model.bin": b"\x80\x02"})
    stale = hub.convert("org/old", {"model.safetensors": b"of an earlier commit"})
    hub.repos["org/old"].parents[stale] = "0" * 40
    commit = hub.convert("org/old", {"model.safetensors": weights})
    seen = look_at("org/base", "org/old").require()
    assert "so the hub's own conversion to safetensors is used (refs/pr/2" in seen.notes[0]
    folder = fetch(seen, HubProcess()).folders[HubRef("org/old")]
    assert folder.name == commit and not (folder / "pytorch_model.bin").exists()


def test_shards_by_the_index_and_nothing_that_runs(hub: FakeHub, tiny_models: Path, tmp_path: Path) -> None:
    tensors = load_file(tiny_models / "a" / "model.safetensors")
    folder = tmp_path / "sharded"
    folder.mkdir()
    shutil.copy(tiny_models / "a" / "config.json", folder)
    names = sorted(tensors)
    table = {name: f"model-0000{1 + (i % 2)}-of-00002.safetensors" for i, name in enumerate(names)}
    for shard in set(table.values()):
        save_file({name: tensors[name] for name in names if table[name] == shard}, folder / shard, {"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": table}))
    extra = {
        "modeling_x.py": b"boom",
        "pytorch_model.bin": b"\x80\x02",
        "onnx/model.onnx": b"0",
        "tokenizer.json": b"{}",
    }
    hub.add("org/sharded", read_folder(folder) | extra | {"unrelated.safetensors": b"0" * 999})
    got = fetch(look_at("org/base", "org/sharded").require(), HubProcess()).folders[HubRef("org/sharded")]
    assert {path.name for path in got.iterdir()} == {*(path.name for path in folder.iterdir()), "tokenizer.json"}
    assert len(open_checkpoint(got).tensors) == len(tensors)


def test_a_server_that_ignores_ranges_is_read_no_further_than_needed(hub: FakeHub) -> None:
    hub.ignore_ranges = True
    assert look_at("org/base", "org/a").problems == ()


def test_a_damaged_header_is_refused_by_name(hub: FakeHub, tiny_models: Path) -> None:
    files = read_folder(tiny_models / "a")
    hub.add("org/cut", files | {"model.safetensors": files["model.safetensors"][:-4]})
    with pytest.raises(CompatibilityError, match=r"org/cut/model.safetensors: is cut off"):
        look_at("org/base", "org/cut")


def test_a_broken_connection_is_resumed(hub: FakeHub) -> None:
    # Larger than the chunks of 10 MiB that huggingface_hub writes.
    weights = save({"weight": torch.zeros(24 * 2**20, dtype=torch.uint8)})
    hub.add("org/large", {"config.json": b'{"model_type": "vit"}', "model.safetensors": weights})
    seen = look_at("", "org/large")
    hub.served.clear()
    hub.cut.add("model.safetensors")
    progress: list[int] = []
    folder = fetch(seen, HubProcess(), lambda done, total: progress.append(done)).folders[HubRef("org/large")]
    first, second = [one for one in hub.served if one.path.endswith(".safetensors") and one.method == "GET"]
    assert first.n_bytes == len(weights) // 2
    assert second.headers["range"] == f"bytes={10 * 2**20}-" and second.n_bytes == len(weights) - 10 * 2**20
    assert (folder / "model.safetensors").read_bytes() == weights
    assert progress == sorted(progress) and progress[-1] == seen.missing_bytes


def wait_for(fetching: Fetching, state: str, seconds: float = 15) -> None:
    deadline = time.monotonic() + seconds
    while fetching.status.state != state:
        assert time.monotonic() < deadline, fetching.status
        time.sleep(0.02)


def test_cancel_stops_within_two_seconds_and_keeps_whole_files(hub: FakeHub) -> None:
    fetching = Fetching()
    with pytest.raises(JobError, match="Look at the models first"):
        fetching.fetch()
    fetching.look(choose("org/base", ["org/a"], None, nothing))
    with pytest.raises(JobError, match="already"):
        fetching.look(choose("", ["org/b"], None, nothing))
    wait_for(fetching, "looked")
    hub.stall.add("model.safetensors")
    fetching.fetch()
    deadline = time.monotonic() + 15
    while not unfinished() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert unfinished()
    began = time.monotonic()
    fetching.cancel()
    wait_for(fetching, "cancelled", 2)
    assert time.monotonic() - began < 2
    assert not unfinished()
    hub.stall.clear()
    fetching.fetch()  # the last look is still valid
    wait_for(fetching, "fetched")
    fetched = fetching.take()
    assert fetched is not None and fetching.take() is None
    assert open_checkpoint(fetched.folders[HubRef("org/a")]).n_bytes > 0


def test_a_process_that_does_not_exit_is_killed_and_cleaned_up(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = look_at("", "org/a")
    hub.stall.add("model.safetensors")
    process = HubProcess()
    monkeypatch.setattr("sftm_app.hub.hub_process.POLITE_S", 0.0)

    def cancel_in_the_middle() -> None:
        while not unfinished():
            time.sleep(0.02)
        process.cancel()

    threading.Thread(target=cancel_in_the_middle, daemon=True).start()
    with pytest.raises(Cancelled):
        fetch(seen, process)
    assert not unfinished()


def test_cancelled_before_the_start(hub: FakeHub) -> None:
    process = HubProcess()
    process.cancel()
    with pytest.raises(Cancelled):
        look(choose("", ["org/a"], None, nothing), process)
    assert hub.served == []


def test_without_a_connection_the_error_says_what_still_works(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = fetch(look_at("org/base", "org/a"), HubProcess())
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(CompatibilityError, match=r"org/b: .* cannot be reached.*Everything else works offline"):
        look_at("org/base", "org/b")
    seen = look_at("org/base", "org/a").require()
    assert "the copy in its cache is used" in seen.notes[0]
    assert fetch(seen, HubProcess()).folders == kept.folders


def test_folders_and_hub_models_may_be_mixed(hub: FakeHub, tiny_models: Path) -> None:
    def local(text: str) -> Path | None:
        return tiny_models / text if (tiny_models / text).is_dir() else None

    seen = look_at("base", "org/a", "b", local=local).require()
    assert [one.download is None for one in seen.models] == [True, False, True]
    fetched = fetch(seen, HubProcess())
    assert fetched.recipe().base == str(tiny_models / "base")
    with pytest.raises(HubError, match="no recipe without a base"):
        fetch(look_at("", "org/a"), HubProcess()).recipe()


def test_a_full_disk_is_reported_before_the_download(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sftm_app.hub.hub_look._free_bytes", lambda cache: 10)
    seen = look_at("org/base", "org/a")
    assert len(seen.problems) == 1 and "HF_HOME" in seen.problems[0]
