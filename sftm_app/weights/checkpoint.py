"""A checkpoint: a folder in Hugging Face format, or weights without a config. Opening it reads only the headers."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from sftm_app.errors import CheckpointError
from sftm_app.weights.adapter_config import AdapterConfig, parse_adapter_config
from sftm_app.weights.adapter_formats import foreign_config, is_peft, recognise
from sftm_app.weights.bare import find_weights, pickle_error, pickles_in
from sftm_app.weights.file_names import (
    ADAPTER_CONFIG_NAME,
    ADAPTER_WEIGHTS_NAME,
    CONFIG_NAME,
    INDEX_NAME,
    INDEX_SUFFIX,
    MLX_WEIGHTS_NAME,
    STEMS,
    WEIGHTS_NAME,
)
from sftm_app.weights.header import FileStamp, Header, TensorInfo, read_header
from sftm_app.weights.hub_names import hub_hint, snapshot_of
from sftm_app.weights.json_files import read_json
from sftm_app.weights.modules import Modules, read_modules
from sftm_app.weights.quantised import Dequantised, Scaling, find_quantised, read_dtype
from sftm_app.weights.regular import is_path
from sftm_app.weights.row_maps import RowMap, StoredTable
from sftm_app.weights.safe_config import refuse_large_config
from sftm_app.weights.shards import refuse_foreign_link, size_note
from sftm_app.weights.weight_files import is_there, read_bare, read_headers


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose headers were read and verified.

    Attributes:
        path: its folder, or the file or index of weights without a config.
        config: config.json; empty for an adapter and for weights without a config.
        tensors: name in the files -> dtype, shape and place.
        files: name in the files -> the file that holds it.
        stamps: every file that decides what is merged -> its stamp when it was opened.
        adapter: the settings of a LoRA adapter.
        rows: name in the files -> how its rows are put in the order of the merged vocabulary, where they are.
        scalings: name in the files of each quantised weight -> how it becomes numbers. `tensors` describes these.
        main: the folder below `path` that holds config and weights, as 0_Transformer does in older sentence encoders.
        modules: the folders below `path` of other modules with weights. Their tensors are called FOLDER/NAME.
        unmoved: the checkpoint before its rows were moved, where `rows` moves any.
        original: the checkpoint as it is on the disk, where `rows` or `config` say otherwise.
    """

    path: Path
    config: dict[str, Any]
    tensors: dict[str, TensorInfo]
    files: dict[str, Path]
    stamps: dict[Path, FileStamp]
    adapter: AdapterConfig | None = None
    rows: Mapping[str, RowMap] = field(default_factory=dict)
    scalings: Mapping[str, Scaling] = field(default_factory=dict)
    main: str = ""
    modules: tuple[str, ...] = ()
    unmoved: Checkpoint | None = None
    original: Checkpoint | None = None

    @property
    def folder(self) -> Path:
        """Where its config and its tokenizer lie."""
        return self.path / self.main if self.main else self.path

    @property
    def with_own_rows(self) -> Checkpoint:
        """The checkpoint with the rows of its tables in its own tokenizer's order."""
        return self.unmoved or self

    @property
    def stem(self) -> str:
        """What the model's weight files are called, in a folder with a config; see STEMS."""
        own = next((file.name for name, file in self.files.items() if file.parent == self.folder), "")
        return next((stem for stem in STEMS[1:] if self.config and own.startswith(stem)), STEMS[0])

    @property
    def as_stored(self) -> Checkpoint:
        """The checkpoint as it is on the disk."""
        return self.original or self

    def stored(self, name: str) -> StoredTable:
        """A tensor as its file holds it, whatever `rows` says."""
        mapped, file = self.rows.get(name), self.files[name]
        return mapped.table if mapped else StoredTable(file, self.stamps[file], self.tensors[name])

    def with_rows(self, rows: Mapping[str, RowMap], config: dict[str, Any]) -> Checkpoint:
        """The same checkpoint with the rows of these tables in the order of the merged vocabulary.

        config: its config, with the size of that vocabulary.

        Raises:
            CheckpointError: a table is quantised.
        """
        if quantised := sorted(self.scalings.keys() & rows):
            raise CheckpointError(
                f"{self.path}: its table {quantised[0]!r} is quantised, so its rows cannot be put in another order. "
                "Use the checkpoint from before the quantisation."
            )
        tensors = self.tensors | {name: mapped.info for name, mapped in rows.items()}
        return replace(self, tensors=tensors, rows=dict(rows), config=config, unmoved=self, original=self.as_stored)

    @property
    def bare(self) -> bool:
        """Whether there is no config, so that the roles of tensors are guessed."""
        return not self.config and self.adapter is None

    @property
    def model_type(self) -> str:
        """The config's `model_type`; "lora" for an adapter, "unknown" without a config."""
        return "lora" if self.adapter else str(self.config.get("model_type", "unknown"))

    @property
    def architecture(self) -> str:
        """The model's class by its config, or that it is an adapter."""
        if self.adapter:
            return f"LoRA adapter, r {self.adapter.r}"
        named = self.config.get("architectures")
        return str(named[0]) if isinstance(named, list) and named else "unknown"

    @property
    def n_parameters(self) -> int:
        """The number of values in all tensors."""
        return sum(torch.Size(info.shape).numel() for info in self.tensors.values())

    @property
    def n_bytes(self) -> int:
        """The size of all tensors."""
        return sum(info.n_bytes for info in self.tensors.values())

    @property
    def dtypes(self) -> tuple[str, ...]:
        """The dtypes that occur, such as "float32"."""
        return tuple(sorted({str(info.dtype).removeprefix("torch.") for info in self.tensors.values()}))

    @property
    def id2label(self) -> dict[int, str]:
        """Class names by index; empty when the config names none."""
        labels = self.config.get("id2label")
        if not isinstance(labels, dict):
            return {}
        return {int(key): str(label) for key, label in labels.items() if str(key).isdigit()}


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Open a checkpoint folder or a safetensors file. Without config.json the checkpoint is bare.

    Raises:
        CheckpointError: no such folder, no permission, no safetensors, several sets of them without config.json, or a
            damaged file.
    """
    if not is_path(str(path)):
        raise CheckpointError(f"{str(path)[:200]!r}: is not a path. Give the path of a checkpoint folder.")
    # os.path, because Path.expanduser() raises for an unknown ~user.
    folder = Path(os.path.expanduser(path))
    try:
        return _open_folder(folder)
    except OSError as error:
        # Say no more: a checkpoint that this user may not read can still be valid.
        why = "no permission to read it" if isinstance(error, PermissionError) else f"cannot be read ({error.strerror})"
        where = error.filename or folder
        raise CheckpointError(f"{where}: {why}. Change its permissions, or copy the checkpoint elsewhere.") from None


def _open_folder(folder: Path) -> Checkpoint:
    if not is_there(folder):
        raise CheckpointError(f"{folder}: there is no such folder. Check the path.{hub_hint(folder)}")
    folder = snapshot_of(folder)
    if folder.is_file():
        return _open_file(folder)
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: is not a checkpoint folder. Pick the folder that holds {CONFIG_NAME}.")
    if is_there(folder / ADAPTER_CONFIG_NAME):
        return _open_adapter(folder)
    modules = read_modules(folder)
    return _open_modules(folder, modules) if modules.main or modules.others else _open_plain(folder)


def _open_plain(folder: Path) -> Checkpoint:
    """A folder with one model's config and weights, or with weights alone."""
    if not is_there(folder / CONFIG_NAME):
        found = find_weights(folder)
        inner = _inner_folders(folder, ADAPTER_CONFIG_NAME) if found is None else []
        if len(inner) == 1:
            return _open_adapter(inner[0])
        if found is None:
            raise CheckpointError(f"{folder}: has no {CONFIG_NAME}. {_next_step_without_config(folder)}")
        return _open_bare(folder, found)
    refuse_foreign_link(folder / CONFIG_NAME)
    config = read_json(folder / CONFIG_NAME)
    if not config:
        raise CheckpointError(f"{folder / CONFIG_NAME}: is empty. Download it again, or remove it to merge by guesses.")
    refuse_large_config(folder / CONFIG_NAME, config)
    return _assemble(folder, config, read_headers(folder))


def _open_modules(folder: Path, modules: Modules) -> Checkpoint:
    """A folder of several modules as one model."""
    main = _open_plain(folder / modules.main)
    tensors, files, stamps, held = dict(main.tensors), dict(main.files), dict(main.stamps), []
    for module in modules.others:
        place = folder / module
        file = place / WEIGHTS_NAME
        refuse_foreign_link(file, folder)
        if not is_there(file):
            if pickles := pickles_in(place) if place.is_dir() else []:
                raise pickle_error(place, pickles[0])
            continue
        header = read_header(file)
        held.append(module)
        stamps[file] = header.stamp
        for info in header.tensors:
            tensors[f"{module}/{info.name}"], files[f"{module}/{info.name}"] = info, file
    return replace(
        main, path=folder.resolve(), tensors=tensors, files=files, stamps=stamps, main=modules.main, modules=tuple(held)
    )


def _open_adapter(folder: Path) -> Checkpoint:
    config_file = folder / ADAPTER_CONFIG_NAME
    refuse_foreign_link(config_file)
    stamp, values = FileStamp.of(config_file), read_json(config_file)
    if "peft_type" not in values and ("fine_tune_type" in values or "lora_parameters" in values):
        return _open_foreign(folder, folder / MLX_WEIGHTS_NAME, values)
    if values.get("peft_type") != "LORA":
        raise CheckpointError(
            f"{folder}: is an adapter of the kind {values.get('peft_type')!r}; only LoRA adapters can be "
            "merged directly. Merge it into its base with PEFT (`merge_and_unload`, if it can) and pick the result."
        )
    if is_there(folder / WEIGHTS_NAME) or is_there(folder / INDEX_NAME):
        raise CheckpointError(
            f"{folder}: holds both a LoRA adapter and a full model. Move the one you want to its own folder."
        )
    file = folder / ADAPTER_WEIGHTS_NAME
    if not is_there(file):
        if not is_there(folder / "adapter_model.bin"):
            raise CheckpointError(f"{file}: is missing. Download the adapter again.")
        raise pickle_error(folder, "adapter_model.bin")
    refuse_foreign_link(file)
    opened = _assemble(folder, {}, {file: read_header(file)})
    # Rank and alpha change the result as much as the weights do.
    stamps = opened.stamps | {config_file: stamp}
    return replace(opened, stamps=stamps, adapter=parse_adapter_config(values))


def _open_foreign(path: Path, file: Path, settings: Mapping[str, Any] | None = None) -> Checkpoint:
    """An adapter in another tool's format, with the names that PEFT would give its tensors."""
    refuse_foreign_link(file)
    header = read_header(file)
    found = recognise(info.name for info in header.tensors)
    if found is None:
        raise CheckpointError(
            f"{file}: its names are not those of a LoRA adapter that mlx-lm wrote. Convert it with the tool that wrote "
            "it, and save it with PEFT."
        )
    stamps = {file: header.stamp}
    if settings is not None:
        stamps[path / ADAPTER_CONFIG_NAME] = FileStamp.of(path / ADAPTER_CONFIG_NAME)
    tensors = {found.names.get(info.name, info.name): info for info in header.tensors}
    config = foreign_config(found, header.metadata, settings)
    return Checkpoint(path.resolve(), {}, tensors, dict.fromkeys(tensors, file), stamps, adapter=config)


def _open_bare(path: Path, found: Path) -> Checkpoint:
    """Weights without a config: a model, or a LoRA file of another tool."""
    headers = read_bare(found)
    names = [info.name for header in headers.values() for info in header.tensors]
    if len(headers) == 1 and recognise(names) is not None:
        return _open_foreign(path, next(iter(headers)))
    if is_peft(names):
        raise CheckpointError(
            f"{found}: is a LoRA adapter that PEFT saved, without its {ADAPTER_CONFIG_NAME}, which holds alpha and the "
            "rank. Put the one that was saved with it next to it."
        )
    return _assemble(path, {}, headers)


def _open_file(file: Path) -> Checkpoint:
    """A weight file stands for its folder if a config is next to it, and otherwise for itself."""
    folder = file.parent
    described = [name for name in (CONFIG_NAME, ADAPTER_CONFIG_NAME) if is_there(folder / name)]
    found = find_weights(file)
    if not described:
        assert found is not None
        return _open_bare(found, found)
    opened = _open_folder(folder)
    if file.resolve() not in {path.resolve() for path in opened.files.values()} and file.name != INDEX_NAME:
        raise CheckpointError(
            f"{file}: does not belong to the {described[0]} next to it. Move it to its own folder to merge it by "
            f"guessed roles, or pick the folder {folder}."
        )
    return opened


def _assemble(path: Path, config: dict[str, Any], headers: dict[Path, Header]) -> Checkpoint:
    tensors: dict[str, TensorInfo] = {}
    files: dict[str, Path] = {}
    for file, header in headers.items():
        for info in header.tensors:
            if info.name in files:
                raise CheckpointError(
                    f"{path}: tensor {info.name!r} is in both {files[info.name].name} and {file.name}. "
                    "Download the checkpoint again."
                )
            tensors[info.name], files[info.name] = info, file
    if not tensors:
        raise CheckpointError(f"{path}: its weight files hold no tensors. Download the checkpoint again.")
    stamps = {file: header.stamp for file, header in headers.items()}
    opened = Checkpoint(path.resolve(), config, tensors, files, stamps)
    return _dequantised(opened, find_quantised(path, tensors, files))


def _dequantised(stored: Checkpoint, found: Dequantised) -> Checkpoint:
    """A checkpoint whose quantised weights look like the numbers that they stand for, without their scales."""
    if not found.scalings:
        return stored
    dtype = read_dtype(stored.config)
    tensors = {name: info for name, info in stored.tensors.items() if name not in found.left_out}
    for name in found.scalings:
        n_bytes = torch.Size(tensors[name].shape).numel() * dtype.itemsize
        tensors[name] = replace(tensors[name], dtype=dtype, n_bytes=n_bytes)
    config = {key: value for key, value in stored.config.items() if key != "quantization_config"}
    return replace(stored, config=config, tensors=tensors, scalings=found.scalings, original=stored)


def _next_step_without_config(folder: Path) -> str:
    for name, what in ((CONFIG_NAME, "checkpoints"), (ADAPTER_CONFIG_NAME, "adapters")):
        if inner := [child.name for child in _inner_folders(folder, name)]:
            return f"It holds several {what}: pick one of {', '.join(inner[:8])}."
    return "Pick the folder that `save_pretrained` wrote, with config.json and model.safetensors in it."


def _inner_folders(folder: Path, holding: str) -> list[Path]:
    """The folders in a folder that hold a file of this name."""
    try:
        return sorted(child for child in folder.iterdir() if (child / holding).is_file())
    except OSError:
        return []


def index_note(checkpoint: Checkpoint) -> str | None:
    """A sentence on what the index of a sharded checkpoint says wrongly about its files, if anything.

    Raises:
        CheckpointError: the index was removed or damaged since the checkpoint was opened.
    """
    index = checkpoint.path if checkpoint.path.name.endswith(INDEX_SUFFIX) else checkpoint.path / INDEX_NAME
    if not index.is_file():
        return None
    sizes = {name: info.n_bytes for name, info in checkpoint.as_stored.tensors.items()}
    return size_note(read_json(index).get("metadata"), sizes)
