"""Labelled texts: those of a demo pack, and a person's own file."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sftm_app.errors import CheckpointError, SampleError
from sftm_app.evaluation.samples import balanced
from sftm_app.weights.header import open_regular

MAX_FILE_BYTES = 64 * 1024 * 1024
MAX_CHOICES = 1000
TEXT_ENDINGS = (".json", ".jsonl", ".csv", ".tsv")
SHAPES = 'a .json table {"inputs": [...], "targets": [...]}, .jsonl lines {"input": ..., "target": ...}, or .csv or '
SHAPES += ".tsv with the columns text and label"


@dataclass(frozen=True)
class TextSamples:
    """Texts to be tried: targets[i] is the right answer to inputs[i], None where it is not known.

    choices: what the answer is chosen from; None where the model writes freely or has classes of its own.
    chat: whether each input is a message to be put into the tokenizer's chat template.
    """

    inputs: tuple[str, ...]
    targets: tuple[str | None, ...]
    choices: tuple[str, ...] | None = None
    chat: bool = False

    def __len__(self) -> int:
        return len(self.inputs)

    def subset(self, n: int) -> TextSamples:
        """At most `n` of them, in their order, the same ones each time and as even over the targets as can be."""
        return self.take(self.spread(n))

    def spread(self, n: int) -> list[int]:
        """The positions of subset(n)."""
        order = {target: number for number, target in enumerate(dict.fromkeys(self.targets))}
        chosen: list[int] = balanced(np.array([order[target] for target in self.targets], np.int64), n).tolist()
        return chosen

    def take(self, positions: list[int]) -> TextSamples:
        """The samples at these positions."""
        targets = tuple(self.targets[i] for i in positions)
        return TextSamples(tuple(self.inputs[i] for i in positions), targets, self.choices, self.chat)


def load_texts(path: Path) -> TextSamples:
    """Labelled texts from a file, see SHAPES. Every text has its target, and every target is one of the choices.

    Raises
        SampleError: no such file, another ending, or damaged or incomplete content; naming the line.
    """
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise SampleError(f"{path}: is no file of labelled texts. Give {SHAPES}.")
    inputs, targets, choices = reader(path, _read_text(path))
    if not inputs:
        raise SampleError(f"{path}: holds no texts. It should hold {SHAPES}.")
    if len(inputs) != len(targets):
        raise SampleError(f"{path}: holds {len(inputs)} inputs and {len(targets)} targets; each input needs one.")
    for name, values in (("input", inputs), ("target", targets), ("choice", choices or [])):
        for number, value in enumerate(values, start=1):
            if not isinstance(value, str):
                raise SampleError(f"{path}: {name} {number} is {_shown(value)}; it should be a text.")
    if choices is not None:
        _check_choices(path, targets, choices)
    return TextSamples(tuple(inputs), tuple(targets), None if choices is None else tuple(choices))


def _check_choices(path: Path, targets: list[str], choices: list[str]) -> None:
    if not 2 <= len(choices) <= MAX_CHOICES or len(set(choices)) != len(choices):
        raise SampleError(f"{path}: `choices` should hold 2 to {MAX_CHOICES} different texts, or be null.")
    known = set(choices)
    for number, target in enumerate(targets, start=1):
        if target not in known:
            raise SampleError(f"{path}: target {number} is {_shown(target)}, which is none of the choices.")


def _read_text(path: Path) -> str:
    try:
        with os.fdopen(open_regular(path), "rb") as file:
            raw = file.read(MAX_FILE_BYTES + 1)
    except (CheckpointError, OSError) as error:
        raise SampleError(str(error)) from None
    if len(raw) > MAX_FILE_BYTES:
        raise SampleError(f"{path}: is larger than {MAX_FILE_BYTES} bytes. Keep a few thousand texts of it.")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SampleError(f"{path}: is not UTF-8 text (byte {error.start}). Save it again as UTF-8.") from None


Content = tuple[list[Any], list[Any], list[Any] | None]


def _from_json(path: Path, text: str) -> Content:
    value = _parsed(path, text, "")
    inputs, targets = (value.get("inputs"), value.get("targets")) if isinstance(value, dict) else (None, None)
    if not isinstance(inputs, list) or not isinstance(targets, list):
        raise SampleError(f'{path}: should be a table {{"inputs": [...], "targets": [...], "choices": [...] or null}}.')
    choices = value.get("choices")
    if choices is not None and not isinstance(choices, list):
        raise SampleError(f"{path}: `choices` is {_shown(choices)}; it should be a list of texts, or null.")
    return inputs, targets, choices


def _from_json_lines(path: Path, text: str) -> Content:
    inputs, targets = [], []
    # Not splitlines: a text may hold line separators of Unicode, which JSON leaves as they are.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        value = _parsed(path, line, f"line {number} ")
        if not isinstance(value, dict) or not {"input", "target"} <= value.keys():
            raise SampleError(f'{path}: line {number} should be a table {{"input": ..., "target": ...}}.')
        inputs.append(value["input"])
        targets.append(value["target"])
    return inputs, targets, None


def _from_table(path: Path, text: str, delimiter: str) -> Content:
    inputs, targets = [], []
    try:
        reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        if not {"text", "label"} <= set(reader.fieldnames or ()):
            found = ", ".join((reader.fieldnames or ())[:8]) or "none"
            raise SampleError(f"{path}: needs the columns text and label in its first line; it has {found}.")
        for row in reader:
            if row["text"] is None or row["label"] is None:
                raise SampleError(f"{path}: line {reader.line_num} has fewer columns than the first line.")
            inputs.append(row["text"])
            targets.append(row["label"])
    except csv.Error as error:
        raise SampleError(f"{path}: line {reader.line_num} is not sound ({error}). Save the table again.") from None
    return inputs, targets, None


def _parsed(path: Path, text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise SampleError(f"{path}: {where}is not valid JSON. Save it again, or give {SHAPES}.") from None


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


_READERS: dict[str, Callable[[Path, str], Content]] = {
    ".json": _from_json,
    ".jsonl": _from_json_lines,
    ".csv": lambda path, text: _from_table(path, text, ","),
    ".tsv": lambda path, text: _from_table(path, text, "\t"),
}
