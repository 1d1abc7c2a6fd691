"""Labelled samples from a Parquet file, as data sets on the Hugging Face hub are stored: texts, or images as bytes."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow
from pyarrow import parquet

from sftm_app.errors import CheckpointError, SampleError
from sftm_app.weights.header import open_regular

PARQUET = ".parquet"
MAX_ROWS = 200_000
# Of the two columns, once they are unpacked.
MAX_BYTES = 512 * 1024 * 1024


@dataclass(frozen=True)
class LabelledTable:
    """Two columns of a table.

    Attributes:
        inputs: a text, or the bytes of an image file, for each row.
        labels: a text or a number for each row.
        classes: the names of the numbers, where the file says them.
    """

    inputs: tuple[Any, ...]
    labels: tuple[Any, ...]
    classes: tuple[str, ...] = ()


def read_labelled(path: Path, pairs: Sequence[tuple[str, str]]) -> LabelledTable:
    """Read two columns of a Parquet file.

    Args:
        path: of the file.
        pairs: the names of the columns of inputs and labels; the first pair that the file has counts.

    Raises:
        SampleError: it is not a Parquet file, is too large, or has none of these columns.
    """
    try:
        with os.fdopen(open_regular(path), "rb") as file:
            found = parquet.ParquetFile(file)
            names = found.schema_arrow.names
            pair = next((pair for pair in pairs if set(pair) <= set(names)), None)
            if pair is None:
                wanted = " or ".join(" and ".join(pair) for pair in pairs)
                has = ", ".join(names[:8]) or "none"
                raise SampleError(f"{path}: needs the columns {wanted}; it has {has}.")
            _check_size(path, found, pair)
            table = found.read(columns=list(pair))
            classes = _class_names(found.schema_arrow.metadata, pair[1])
    except CheckpointError as error:
        raise SampleError(str(error)) from None
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        what = str(error).partition("\n")[0]
        raise SampleError(f"{path}: cannot be read as Parquet ({what}). Save it again.") from None
    inputs, labels = (tuple(table.column(name).to_pylist()) for name in pair)
    # An image of the hub is a table of its bytes and its name.
    inputs = tuple(one.get("bytes") if isinstance(one, dict) else one for one in inputs)
    missing = next((row for row, both in enumerate(zip(inputs, labels, strict=True), start=1) if None in both), None)
    if missing is not None:
        raise SampleError(f"{path}: row {missing} lacks its {pair[0]} or its {pair[1]}. Remove it.")
    return LabelledTable(inputs, labels, classes)


def _check_size(path: Path, found: parquet.ParquetFile, pair: tuple[str, str]) -> None:
    meta = found.metadata
    if meta.num_rows > MAX_ROWS:
        raise SampleError(f"{path}: has {meta.num_rows} rows; at most {MAX_ROWS} are read. A few thousand are enough.")
    n_bytes = 0
    for group in range(meta.num_row_groups):
        for place in range(meta.num_columns):
            column = meta.row_group(group).column(place)
            if column.path_in_schema.partition(".")[0] in pair:
                n_bytes += column.total_uncompressed_size
    if n_bytes > MAX_BYTES:
        raise SampleError(f"{path}: its columns take {n_bytes} bytes; at most {MAX_BYTES} are read. Take fewer rows.")


def _class_names(metadata: dict[bytes, bytes] | None, column: str) -> tuple[str, ...]:
    """The class names that the library `datasets` notes in a file."""
    try:
        noted = json.loads((metadata or {})[b"huggingface"])
        return tuple(map(str, noted["info"]["features"][column]["names"]))
    except (KeyError, TypeError, ValueError):
        return ()


def label_texts(path: Path, table: LabelledTable) -> tuple[str, ...]:
    """The labels as texts; numbers become class names where these are known.

    Raises:
        SampleError: a label is neither a text nor a whole number, or a number is beyond the names.
    """
    found = []
    for row, label in enumerate(table.labels, start=1):
        if isinstance(label, str):
            found.append(label)
        elif isinstance(label, bool) or not isinstance(label, int):
            raise SampleError(f"{path}: row {row} has the label {label!r}, which is neither a text nor a whole number.")
        elif table.classes and not 0 <= label < len(table.classes):
            raise SampleError(f"{path}: row {row} has the label {label}; it should be below {len(table.classes)}.")
        else:
            found.append(table.classes[label] if table.classes else str(label))
    return tuple(found)
