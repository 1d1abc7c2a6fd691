"""Labelled samples from Parquet files: texts and images, as the hub stores them, and files that are refused."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from sftm_app.errors import SampleError
from sftm_app.evaluation import table_files
from sftm_app.evaluation.image_tables import load_image_table
from sftm_app.evaluation.text_files import load_texts

CLASSES = {0: "cat", 1: "dog"}


def write(path: Path, names: list[str] | None = None, **columns: Any) -> Path:
    """A Parquet file; names: of the classes, as the library `datasets` notes them."""
    table = pa.table(columns)
    if names:
        noted = {"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(noted)})
    parquet.write_table(table, path)
    return path


def png(value: int, side: int = 8) -> bytes:
    held = io.BytesIO()
    Image.new("L", (side, side), value).save(held, "PNG")
    return held.getvalue()


def test_texts_with_labels_as_text_number_and_class(tmp_path: Path) -> None:
    texts = ["the cat", "ж"]
    for number, (columns, names, wanted) in enumerate(
        [
            ({"text": texts, "label": ["x", "y"], "other": [1.5, 2.5]}, None, ("x", "y")),
            ({"input": texts, "target": ["x", "y"]}, None, ("x", "y")),
            ({"text": texts, "label": [1, 0]}, None, ("1", "0")),
            ({"text": texts, "label": [1, 0]}, ["no", "yes"], ("yes", "no")),
        ]
    ):
        found = load_texts(write(tmp_path / f"{number}.parquet", names, **columns))
        assert (found.inputs, found.targets) == (tuple(texts), wanted)


def test_the_same_column_names_in_csv(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("target,input\ny,the cat\n")
    assert load_texts(tmp_path / "x.csv").targets == ("y",)


def test_images_of_the_hub_and_plain_bytes(tmp_path: Path) -> None:
    images = [png(10), png(200, 4)]
    held = [{"bytes": one, "path": "x.png"} for one in images]
    hub = write(tmp_path / "hub.parquet", ["cat", "dog"], image=held, label=[1, 0])
    plain = write(tmp_path / "plain.parquet", img=images, label=["dog", "cat"])
    for file in (hub, plain):
        samples, classes = load_image_table(file, CLASSES, 1)
        assert samples.images.shape == (2, 8, 8) and samples.labels.tolist() == [1, 0] and classes == ("cat", "dog")
        assert samples.images[0].max() == 10 and samples.images[1].min() == 200, "scaled to the first one's size"
    assert load_image_table(hub, None, 3)[0].images.shape == (2, 8, 8, 3)
    assert load_image_table(plain, None, 1)[1] == ("cat", "dog")
    many = write(tmp_path / "many.parquet", image=[png(v) for v in range(9)], label=["cat"] * 6 + ["dog"] * 3)
    assert np.bincount(load_image_table(many, CLASSES, 1, limit=4)[0].labels).tolist() == [2, 2]


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"sentence": ["a"], "label": ["x"]}, "needs the columns text and label or input and target; it has sentence"),
        ({"text": ["a"], "label": [1.5]}, "row 1 has the label 1.5"),
        ({"text": ["a", None], "label": ["x", "y"]}, "row 2 lacks its text"),
        ({"text": [b"a"], "label": ["x"]}, "row 1 holds no text"),
        ({"text": pa.array([], pa.string()), "label": pa.array([], pa.string())}, "holds no texts"),
    ],
)
def test_odd_tables_are_refused_with_the_row(tmp_path: Path, columns: dict[str, Any], said: str) -> None:
    with pytest.raises(SampleError, match=said):
        load_texts(write(tmp_path / "x.parquet", **columns))


def test_odd_images_are_refused(tmp_path: Path) -> None:
    for columns, said in (
        ({"image": [b"no image"], "label": ["cat"]}, "x.parquet, row 1: cannot be read as an image"),
        ({"image": [png(1)], "label": ["bird"]}, "'bird' is not a class of this task"),
        ({"image": ["text"], "label": ["cat"]}, "row 1 holds no image"),
        ({"image": pa.array([], pa.binary()), "label": pa.array([], pa.string())}, "holds no images"),
    ):
        with pytest.raises(SampleError, match=said):
            load_image_table(write(tmp_path / "x.parquet", **columns), CLASSES, 1)
    with pytest.raises(SampleError, match="label 5; it should be below 2"):
        load_image_table(write(tmp_path / "y.parquet", ["cat", "dog"], image=[png(1)], label=[5]), CLASSES, 1)


def test_damaged_large_and_special_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path / "x.parquet", text=["a" * 1000] * 50, label=["x"] * 50)
    whole = file.read_bytes()
    for damage in (b"", b"PAR1", whole[:-10], whole[:20] + b"\xff" * 40 + whole[60:]):
        (tmp_path / "damaged.parquet").write_bytes(damage)
        with pytest.raises(SampleError, match="cannot be read as Parquet"):
            load_texts(tmp_path / "damaged.parquet")
    os.mkfifo(tmp_path / "pipe.parquet")
    with pytest.raises(SampleError, match="not a regular file"):
        load_texts(tmp_path / "pipe.parquet")
    with pytest.raises(SampleError, match="no such file"):
        load_texts(tmp_path / "none.parquet")
    monkeypatch.setattr(table_files, "MAX_ROWS", 49)
    with pytest.raises(SampleError, match="has 50 rows; at most 49"):
        load_texts(file)
    monkeypatch.setattr(table_files, "MAX_ROWS", 50)
    monkeypatch.setattr(table_files, "MAX_BYTES", 100)
    with pytest.raises(SampleError, match="at most 100 are read"):
        load_texts(file)
