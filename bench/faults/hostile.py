"""Hostile files, folders, indexes, configs, adapters, pickles, images, recipes, links, pipes and locks.

Each is opened the way the app opens it. It is refused with one of our errors, or gives a right result, within two
seconds, and nothing is written outside the folder that the attack may write to.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import struct
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import save_file

from bench.faults.figures import Figure
from sftm_app.api import check
from sftm_app.architecture.builder import ArchitectureBuilder
from sftm_app.errors import SFTMError
from sftm_app.evaluation.image_files import load_image
from sftm_app.evaluation.text_files import load_texts
from sftm_app.jobs.events import read_events
from sftm_app.output.report import load_report
from sftm_app.planning.recipe import load_recipe
from sftm_app.weights.adapter_config import parse_adapter_config
from sftm_app.weights.checkpoint import open_checkpoint
from sftm_app.weights.partial import is_live, output_folder

LIMIT_S = 2.0
ODD: tuple[Any, ...] = (
    None, True, False, -1, 0, 1e308, float("nan"), float("inf"), 10**9, 10**400, "", "x", "../../x", "owner/repo",
    "\ud800", [], [[[]]], {}, {"a": {"a": {}}}, [1] * 1000,
)  # fmt: skip
CONFIG_KEYS = (
    "model_type", "architectures", "num_hidden_layers", "hidden_size", "num_attention_heads", "vocab_size",
    "id2label", "label2id", "num_labels", "auto_map", "quantization_config", "tie_word_embeddings",
    "attn_implementation", "torch_dtype", "dtype", "transformers_version", "text_config", "rope_scaling",
    "max_position_embeddings", "layer_types",
)  # fmt: skip
ADAPTER_KEYS = (
    "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "fan_in_fan_out", "use_dora", "bias",
    "modules_to_save", "target_modules", "layers_pattern", "init_lora_weights", "peft_type",
    "base_model_name_or_path", "layer_replication",
)  # fmt: skip
PATTERNS = (
    ".?" * 60 + "!", "(a+)+b", "(a|a)*b", "(.*.*)*x", "((a{99}){99}){99}", "(?=a)a", r"(a)\1", "(?i)a", "[", "(",
    "a**", "\\", "é" * 400, "a" * 5000, "(" * 900 + ")" * 900, "[^" + "a" * 2000 + "]", "a{1,99999}", r"\p{L}", r"\Q",
    "(?P<a>b)", "(?#c)", "x|" * 400, "", "\0",
)  # fmt: skip
RECIPES = (
    "", "[", "{", "- " * 2000, "a: &a [*a]", "base: !!python/object/apply:os.system [echo]", "base: 1",
    "base: b\ntasks: t", "tasks: []", "base: b\ntasks: [t]\nmethod: x",
    "base: b\ntasks: [t]\nparams: {scaling: .nan}", "base: b\ntasks: [t]\nroles: {'*': x}", "\0", "é: é",
    "base: b\ntasks: [{path: t, weight: 1e999}]", "base: b\ntasks: [{path: t, name: ../x}]", "? " * 1000,
    "a: " * 1000, "2001-13-45", "base: b\ntasks: [t]\noutput: {max_shard_size: -1GB}",
    "base: b\ntasks: [t]\nmemory: 1e400GB", "k: " + "9" * 5000, "!!binary x",
    "base: b\ntasks: [t]\noutput: {rank: 0}", "base: b\ntasks: [t]\ndevice: evil", "<!DOCTYPE html>", "\ufeffbase: b",
    "%YAML 9.9",
)  # fmt: skip
Attack = tuple[str, Callable[[], Any]]


class Evil:
    """Writes a file when it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (self.path, "w")


def attack_files(quick: bool) -> Figure:
    """Open every hostile input, or one in eight."""
    wrong: list[str] = []
    slowest, n = 0.0, 0
    with tempfile.TemporaryDirectory(prefix="sftm-faults-") as name:
        root = Path(name)
        builder = ArchitectureBuilder(build_limit_s=10)
        builder.read({"model_type": "bert", "num_hidden_layers": 1}, [], frozenset())  # its imports take seconds
        makers = (_weights, _indexes, _configs, _adapters, _pickles, _images, _texts, _recipes, _links, _pipes, _paths)
        attacks: list[Attack] = []
        for maker in makers:
            folder = root / maker.__name__
            folder.mkdir()
            attacks += maker(folder, builder)
        for said, attack in attacks[::8] if quick else attacks:
            n += 1
            started = time.perf_counter()
            try:
                attack()
            except SFTMError as error:
                if len(str(error)) > 20_000:
                    wrong.append(f"{said}: a sentence of {len(str(error))} characters")
            except Exception as error:
                wrong.append(f"{said}: {type(error).__name__}: {str(error)[:200]}")
            seconds = time.perf_counter() - started
            slowest = max(slowest, seconds)
            if seconds > LIMIT_S:
                wrong.append(f"{said}: took {seconds:.1f} s")
        builder.close()
        if (root / "pwned").exists():
            wrong.append("a pickle was loaded")
    return Figure("hostile files, folders, configs, links and pipes", n, tuple(wrong), f"slowest {slowest:.2f} s")


def _weights(root: Path, builder: ArchitectureBuilder) -> Iterator[Attack]:
    generator = random.Random(0)
    save_file({"a.weight": torch.randn(4, 4), "b.weight": torch.randn(4, 4)}, root / "good.safetensors")
    good = (root / "good.safetensors").read_bytes()
    contents = [good[:size] for size in (0, 1, 7, 8, 9, len(good) // 2, len(good) - 1)] + [good + b"x", good * 2]
    contents += [
        b"version https://git-lfs.github.com/spec/v1\n", b"<html>", b"\xef\xbb\xbf<html>", b"PK\x03\x04" + bytes(90),
        b"GGUF" + bytes(90), struct.pack("<Q", 16 << 20) + b"{" * (16 << 20), struct.pack("<Q", 2**63) + bytes(20),
        b"\xff" * 100, bytes(1 << 20),
    ]  # fmt: skip
    for _ in range(120):
        changed = bytearray(good)
        for _ in range(generator.randint(1, 4)):
            changed[generator.randrange(min(len(good), 200))] = generator.randrange(256)
        contents.append(bytes(changed))
    for index, content in enumerate(contents):
        folder = root / str(index)
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(content)
        yield f"weights {index}", lambda folder=folder: open_checkpoint(folder)  # type: ignore[misc]


def _indexes(root: Path, builder: ArchitectureBuilder) -> Iterator[Attack]:
    names: list[Any] = [
        "../x.safetensors", "/etc/passwd", "C:\\x.safetensors", "\\\\host\\x.safetensors", "a/b.safetensors",
        "x.safetensors\0", "x.bin", "", ".safetensors", "-x.safetensors", "\u202ex.safetensors", "CON.safetensors",
        "x" * 300 + ".safetensors", *ODD,
    ]  # fmt: skip
    maps: list[Any] = [{"weight_map": {"a": name}} for name in names] + [{"weight_map": odd} for odd in ODD]
    maps += [{"metadata": odd, "weight_map": {"a": "model-00001-of-00001.safetensors"}} for odd in ODD] + list(ODD)
    for index, value in enumerate(maps):
        folder = root / str(index)
        folder.mkdir()
        (folder / "model.safetensors.index.json").write_text(json.dumps(value))
        save_file({"a": torch.zeros(2)}, folder / "model-00001-of-00001.safetensors")
        yield f"index {index} {str(value)[:60]}", lambda folder=folder: check(folder, [folder])  # type: ignore[misc]


def _configs(root: Path, builder: ArchitectureBuilder) -> Iterator[Attack]:
    base: dict[str, Any] = {
        "model_type": "bert", "architectures": ["BertModel"], "hidden_size": 8, "num_hidden_layers": 1,
        "num_attention_heads": 2, "intermediate_size": 8, "vocab_size": 9, "max_position_embeddings": 4,
    }  # fmt: skip
    folder = root / "model"
    folder.mkdir()
    save_file({"embeddings.word_embeddings.weight": torch.zeros(9, 8)}, folder / "model.safetensors")

    def read(values: dict[str, Any]) -> None:
        (folder / "config.json").write_text(json.dumps(values))
        found = open_checkpoint(folder)
        builder.read(found.config, found.tensors, frozenset())

    for key in CONFIG_KEYS:
        for odd in ODD:
            yield f"config {key}={str(odd)[:40]}", lambda key=key, odd=odd: read(base | {key: odd})  # type: ignore[misc]


def _adapters(root: Path, builder: ArchitectureBuilder) -> Iterator[Attack]:
    base: dict[str, Any] = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q"]}
    folder, model = root / "adapter", root / "base"
    folder.mkdir()
    model.mkdir()
    save_file({"q.weight": torch.randn(6, 6)}, model / "model.safetensors")
    pair = {
        "base_model.model.q.lora_A.weight": torch.randn(2, 6),
        "base_model.model.q.lora_B.weight": torch.randn(6, 2),
    }
    save_file(pair, folder / "adapter_model.safetensors")

    def read(values: dict[str, Any]) -> None:
        (folder / "adapter_config.json").write_text(json.dumps(values))
        check(model, [folder])

    for key in ADAPTER_KEYS:
        for odd in ODD:
            yield f"adapter {key}={str(odd)[:40]}", lambda key=key, odd=odd: read(base | {key: odd})  # type: ignore[misc]
    for pattern in PATTERNS:
        for key in ("rank_pattern", "alpha_pattern"):
            yield (
                f"pattern {pattern[:30]!r}",
                lambda key=key, text=pattern: parse_adapter_config(  # type: ignore[misc]
                    base | {key: {text: 2}}
                ).scaling_at("model.layers." + "a" * 400),
            )


def _pickles(root: Path, builder: ArchitectureBuilder) -> Iterator[Attack]:
    evil = pickle.dumps(Evil(str(root.parent / "pwned")))
    zipped = io.BytesIO()
    torch.save({"a": torch.zeros(2)}, zipped)
    contents = {"evil": evil, "torch": zipped.getvalue(), "empty": b"", "cut": zipped.getvalue()[:50]}
    for name in (
        "pytorch_model.bin",
        "model.pt",
        "adapter_model.bin",
        "model.ckpt",
        "model.pth",
        "training_args.bin",
        "model.safetensors",
    ):
        for kind, content in contents.items():
            folder = root / f"{name}-{kind}"
            folder.mkdir()
            (folder / name).write_bytes(content)
            (folder / "config.json").write_text('{"model_type": "bert"}')
            yield f"pickle {name} {kind}", lambda folder=folder: open_checkpoint(folder)  # type: ignore[misc]
            yield f"pickle {name} {kind}, file", lambda file=folder / name: open_checkpoint(file)  # type: ignore[misc]


def _images(root: Path, builder: ArchitectureBuilder) -> Iterator[Attack]:
    generator = random.Random(1)
    contents: list[bytes] = [
        b"",
        b"%!PS-Adobe EPSF\n",
        b"GIF89a" + bytes(40),
        b"<svg/>",
        b"\x89PNG\r\n\x1a\n",
        b"BM" + bytes(60),
    ]
    for kind in ("PNG", "JPEG", "WEBP", "BMP"):
        made = io.BytesIO()
        Image.new("RGB", (9, 9), (200, 10, 10)).save(made, kind)
        good = made.getvalue()
        contents += [good[: len(good) // 2], good + good]
        for _ in range(15):
            changed = bytearray(good)
            for _ in range(3):
                changed[generator.randrange(len(good))] = generator.randrange(256)
            contents.append(bytes(changed))
    large = io.BytesIO()
    Image.new("L", (8000, 8000)).save(large, "PNG")
    contents.append(large.getvalue())
    for index, content in enumerate(contents):
        file = root / f"{index}.png"
        file.write_bytes(content)
        yield f"image {index}", lambda file=file: load_image(file, 3)  # type: ignore[misc]


def _texts(root: Path, builder: ArchitectureBuilder) -> Iterator[Attack]:
    contents = [
        b"",
        b"[",
        b"[" * 100_000,
        b"\xff\xfe",
        b'{"inputs": 1}',
        b'{"inputs": [], "targets": []}',
        b"text,label\n",
        b"\0" * 100,
    ]
    contents += [json.dumps({"inputs": odd, "targets": odd}).encode() for odd in ODD]
    for index, content in enumerate(contents):
        for ending in (".json", ".jsonl", ".csv", ".tsv", ".exe"):
            file = root / f"{index}{ending}"
            file.write_bytes(content)
            yield f"texts {file.name}", lambda file=file: load_texts(file)  # type: ignore[misc]
        report = root / f"{index}.report"
        report.write_bytes(content)
        yield f"report {index}", lambda report=report: load_report(report)  # type: ignore[misc]
        yield f"events {index}", lambda report=report: read_events(report)  # type: ignore[misc]
        yield f"lock {index}", lambda report=report: is_live(report)  # type: ignore[misc]


def _recipes(root: Path, builder: ArchitectureBuilder) -> Iterator[Attack]:
    for index, text in enumerate(RECIPES):
        file = root / f"{index}.yaml"
        file.write_text(text, encoding="utf-8")
        yield f"recipe {text[:40]!r}", lambda file=file: load_recipe(file)  # type: ignore[misc]


def _links(root: Path, builder: ArchitectureBuilder) -> Iterator[Attack]:
    outside = root / "outside"
    outside.mkdir()
    save_file({"a": torch.zeros(2)}, outside / "model.safetensors")
    (outside / "config.json").write_text('{"model_type": "bert"}')
    targets = [
        outside / "model.safetensors",
        outside / "config.json",
        Path("/etc/passwd"),
        Path("/dev/zero"),
        Path("loop"),
        root,
    ]
    for index, target in enumerate(targets):
        for name in ("model.safetensors", "config.json", "adapter_config.json", "model.safetensors.index.json", "loop"):
            folder = root / f"{index}-{name}"
            folder.mkdir()
            (folder / name).symlink_to(target)
            yield f"link {name} to {target.name}", lambda folder=folder: _must_refuse(open_checkpoint, folder)  # type: ignore[misc]


def _must_refuse(attack: Callable[[Any], Any], argument: Any) -> None:
    found = attack(argument)
    raise AssertionError(f"accepted {found}")


def _pipes(root: Path, builder: ArchitectureBuilder) -> Iterator[Attack]:
    readers: dict[str, Callable[[Path], Any]] = {
        "model.safetensors": lambda file: open_checkpoint(file.parent),
        "weights.safetensors": open_checkpoint,
        "config.json": lambda file: open_checkpoint(file.parent),
        "adapter_config.json": lambda file: open_checkpoint(file.parent),
        "recipe.yaml": load_recipe,
        "x.png": lambda file: load_image(file, 1),
        "x.jsonl": load_texts,
        "report.json": load_report,
    }
    for kind in ("pipe", "folder", "device"):
        for name, read in readers.items():
            folder = root / f"{kind}-{name}"
            folder.mkdir()
            file = folder / name
            if kind == "pipe":
                os.mkfifo(file)
            elif kind == "folder":
                file.mkdir()
            else:
                file.symlink_to("/dev/zero")
            yield f"{kind} {name}", lambda read=read, file=file: _must_refuse(read, file)  # type: ignore[misc]
        lock = root / f"{kind}.partial" / "lock.json"
        lock.parent.mkdir()
        (lock.parent / "thesis.txt").write_text("mine")
        os.mkfifo(lock) if kind == "pipe" else lock.mkdir() if kind == "folder" else lock.symlink_to("/dev/zero")
        yield f"{kind} as lock", lambda kind=kind: output_folder(root / kind).__enter__()  # type: ignore[misc]


def _paths(root: Path, builder: ArchitectureBuilder) -> Iterator[Attack]:
    for text in (
        "",
        " ",
        "a" * 5000,
        "x/" * 3000,
        "\ud800",
        "a\0b",
        "~nobody/x",
        "/dev/null",
        "/proc/self/mem",
        "//",
        "..",
        "\u202e",
    ):
        yield f"path {text[:20]!r}", lambda text=text: _must_refuse(open_checkpoint, text)  # type: ignore[misc]
