"""Names of hub models, folders of the hub's cache, and which of a repository's files are needed."""

from __future__ import annotations

from pathlib import Path

import pytest

from sftm_app.errors import HubError, InputError
from sftm_app.hub.hub_files import needed_files, pickles
from sftm_app.hub.presets import PRESETS, get_preset
from sftm_app.weights.hub_names import HubRef, hub_cache, hub_name, is_snapshot, parse_ref, read_source

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("text", "ref"),
    [
        ("openai/clip-vit-base-patch32", HubRef("openai/clip-vit-base-patch32")),
        (" hub:org/name ", HubRef("org/name")),
        ("https://huggingface.co/org/name", HubRef("org/name")),
        ("org/name@main", HubRef("org/name", "main")),
        (f"org/na.me_2@{COMMIT}", HubRef("org/na.me_2", COMMIT)),
        ("org/name@refs/pr/15", HubRef("org/name", "refs/pr/15")),
        ("_org/_name", HubRef("_org/_name")),
    ],
)
def test_valid_references(text: str, ref: HubRef) -> None:
    assert parse_ref(text) == ref
    assert parse_ref(str(ref)) == ref


@pytest.mark.parametrize(
    "text",
    [
        *("", "name", "org/", "/name", "a/b/c", "org/na me", "org/name--x", "org/..", "-org/name", "org/name.git"),
        *(
            "org/name@",
            "org/name@../x",
            "org/name@a//b",
            "org/name@-x",
            "org/name@a b",
            "https://example.org/org/name",
        ),
        *("org/" + "x" * 96, "org/name@x\ny", "org/näme", "org\\name", "org/name@" + "x" * 300),
    ],
)
def test_references_that_are_refused(text: str) -> None:
    with pytest.raises(HubError, match=r"org/name|not a revision"):
        parse_ref(text)


def test_the_folder_of_a_snapshot_gives_model_and_commit(tmp_path: Path) -> None:
    snapshot = tmp_path / "models--org--na.me" / "snapshots" / COMMIT
    assert hub_name(snapshot) == f"org/na.me@{COMMIT}"
    assert hub_name(tmp_path / "models--gpt2" / "snapshots" / COMMIT) == f"gpt2@{COMMIT}"
    for other in (
        snapshot.parent,
        snapshot / "x",
        snapshot.with_name("main"),
        tmp_path / "a--b" / "snapshots" / COMMIT,
    ):
        assert hub_name(other) is None
    assert not is_snapshot(snapshot)
    assert is_snapshot(hub_cache() / "models--org--name" / "snapshots" / COMMIT)


def test_an_existing_folder_takes_precedence_with_a_note(tmp_path: Path) -> None:
    (tmp_path / "org" / "name").mkdir(parents=True)

    def local(text: str) -> Path | None:
        if text.startswith("/"):
            raise InputError("outside")
        return tmp_path / text if (tmp_path / text).is_dir() else None

    source, note = read_source("org/name", local)
    assert source == tmp_path / "org" / "name" and "Write hub:org/name for the model on the hub" in note
    assert read_source("hub:org/name", local) == (HubRef("org/name"), "")
    assert read_source("org/other", local) == (HubRef("org/other"), "")
    assert read_source("org", local) == (tmp_path / "org", "")
    with pytest.raises(InputError, match="outside"):
        read_source("/etc/x", local)
    with pytest.raises(HubError, match="is neither a folder on this machine nor the name of a model"):
        read_source("nothing", local)


def test_only_what_a_checkpoint_needs_is_downloaded() -> None:
    others = ["config.json", "generation_config.json", "tokenizer.json", "spiece.model", "merges.txt", "README.md"]
    others += ["1_Pooling/config.json", "modules.json", "chat_template.jinja", "preprocessor_config.json", "LICENSE"]
    never = [
        "modeling.py",
        "pytorch_model.bin",
        "onnx/model.onnx",
        "tf_model.h5",
        "onnx/config.json",
        "a.png",
        "x/y.json",
    ]
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    index = "model.safetensors.index.json"
    assert needed_files([*others, *never, "model.safetensors"]) == sorted([*others, "model.safetensors"])
    assert needed_files([*others, *never, *shards, index], shards) == sorted([*others, *shards, index])
    assert needed_files(["config.json", *shards, index, "model.safetensors"], shards) == [
        "config.json",
        "model.safetensors",
    ]
    adapter = ["adapter_config.json", "adapter_model.safetensors"]
    assert needed_files([*adapter, "adapter_model.bin", "model.safetensors"]) == adapter
    assert needed_files(["config.json", *shards, index], ["../x.safetensors", "a/b.safetensors"]) == [
        "config.json",
        index,
    ]
    assert pickles([*others, *never]) == ["pytorch_model.bin", "tf_model.h5"]


def test_the_presets_have_valid_names() -> None:
    assert {name: len(preset.tasks) for name, preset in PRESETS.items()} == {
        "clip-vit-b32-8": 8,
        "flan-t5-base-glue": 8,
        "flan-t5-base-glue-lora": 8,
        "gpt2-glue": 7,
    }
    for preset in PRESETS.values():
        for ref in (preset.base, *(ref for _, ref in preset.tasks)):
            assert parse_ref(str(ref)) == ref
    assert dict(PRESETS["clip-vit-b32-8"].tasks)["stanford-cars"].name == "clip-vit-base-patch32_stanford-cars"
    with pytest.raises(HubError, match="Choose one of clip-vit-b32-8, "):
        get_preset("clip")
