"""Labelled texts from a file."""

from __future__ import annotations

import csv
import io
import os
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import BaseModel, Field, ValidationError

from sftm_app.errors import CheckpointError, SampleError
from sftm_app.evaluation.samples import TextSamples
from sftm_app.evaluation.table_files import PARQUET, label_texts, read_labelled
from sftm_app.weights.header import open_regular

MAX_FILE_BYTES = 64 * 1024 * 1024
MAX_CHOICES = 1000
TEXT_ENDINGS = (".json", ".jsonl", ".csv", ".tsv", PARQUET)
# The names of the columns of a table: of the texts, and of what is expected.
COLUMNS = (("text", "label"), ("input", "target"))
FORMATS = 'a .json table {"inputs": [...], "targets": [...]}, .jsonl lines {"input": ..., "target": ...}, or .csv, '
FORMATS += ".tsv or .parquet with the columns text and label"

# Only the first error is shown, so validation may stop there.
Strings = Annotated[list[str], Field(fail_fast=True)]


class _Texts(BaseModel):
    inputs: Strings
    targets: Strings
    choices: Strings | None = None


class _Line(BaseModel):
    input: str
    target: str


Model = TypeVar("Model", bound=BaseModel)


def load_texts(path: Path) -> TextSamples:
    """Read labelled texts from a file in one of FORMATS.

    Returns:
        Texts that all have a target. Where the file lists choices, every target is one of them.

    Raises:
        SampleError: the file does not exist, has another ending, or its content is damaged or incomplete.
    """
    ending = path.suffix.lower()
    if ending not in TEXT_ENDINGS:
        raise SampleError(f"{path}: is not a file of labelled texts. Use {FORMATS}.")
    if ending == PARQUET:
        content = _from_parquet(path)
    elif ending == ".json":
        content = _parse(_Texts, _read(path), str(path))
    elif ending == ".jsonl":
        content = _from_lines(path, _read(path))
    else:
        content = _from_table(path, _read(path), "," if ending == ".csv" else "\t")
    _check(path, content)
    choices = None if content.choices is None else tuple(content.choices)
    return TextSamples(tuple(content.inputs), tuple(content.targets), choices)


def _check(path: Path, content: _Texts) -> None:
    inputs, targets, choices = content.inputs, content.targets, content.choices
    if not inputs:
        raise SampleError(f"{path}: holds no texts. It should hold {FORMATS}.")
    if len(inputs) != len(targets):
        raise SampleError(f"{path}: holds {len(inputs)} inputs and {len(targets)} targets; each input needs one.")
    if choices is None:
        return
    known = set(choices)
    if not 2 <= len(known) == len(choices) <= MAX_CHOICES:
        raise SampleError(f"{path}: `choices` should hold 2 to {MAX_CHOICES} different texts, or be null.")
    for number, target in enumerate(targets, start=1):
        if target not in known:
            raise SampleError(f"{path}: target {number} is {_shorten(target)}, which is none of the choices.")


def _read(path: Path) -> str:
    try:
        with os.fdopen(open_regular(path), "rb") as file:
            raw = file.read(MAX_FILE_BYTES + 1)
    except (CheckpointError, OSError) as error:
        raise SampleError(str(error)) from None
    if len(raw) > MAX_FILE_BYTES:
        raise SampleError(f"{path}: is larger than {MAX_FILE_BYTES} bytes. A few thousand texts are enough.")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SampleError(f"{path}: is not UTF-8 text (byte {error.start}). Save it again as UTF-8.") from None


def _from_lines(path: Path, text: str) -> _Texts:
    # Not splitlines(): it also splits at the Unicode line separators that a JSON string may hold.
    lines = enumerate(text.split("\n"), start=1)
    rows = [_parse(_Line, line, f"{path}: line {number}") for number, line in lines if line.strip()]
    return _Texts(inputs=[row.input for row in rows], targets=[row.target for row in rows])


def _from_table(path: Path, text: str, delimiter: str) -> _Texts:
    rows = []
    try:
        reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        pair = next((pair for pair in COLUMNS if set(pair) <= set(reader.fieldnames or ())), None)
        if pair is None:
            found = ", ".join(name[:40] for name in (reader.fieldnames or ())[:8]) or "none"
            raise SampleError(f"{path}: needs the columns text and label in its first line; it has {found}.")
        for row in reader:
            if any(row[name] is None for name in pair):
                raise SampleError(f"{path}: line {reader.line_num} has fewer columns than the first line.")
            rows.append((row[pair[0]], row[pair[1]]))
    except csv.Error as error:
        raise SampleError(f"{path}: line {reader.line_num} is damaged ({error}). Save the table again.") from None
    return _Texts(inputs=[text for text, _ in rows], targets=[label for _, label in rows])


def _from_parquet(path: Path) -> _Texts:
    table = read_labelled(path, COLUMNS)
    odd = next((row for row, text in enumerate(table.inputs, start=1) if not isinstance(text, str)), None)
    if odd is not None:
        raise SampleError(f"{path}: row {odd} holds no text. Use {FORMATS}.")
    return _Texts(inputs=list(table.inputs), targets=list(label_texts(path, table)))


def _parse(model: type[Model], text: str, where: str) -> Model:
    try:
        return model.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
    place = " ".join(str(step + 1) if isinstance(step, int) else step for step in first["loc"])
    if first["type"] == "json_invalid":
        raise SampleError(f"{where}: {first['msg']}. Use {FORMATS}.")
    found = "" if first["type"] == "missing" else f", found {_shorten(first['input'])}"
    raise SampleError(f"{where}: {f'{place}: ' if place else ''}{first['msg']}{found}. Use {FORMATS}.")


def _shorten(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
