"""Labelled texts: files that are read, files that are refused, packs of texts."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from sftm_app.errors import CheckpointError, SampleError
from sftm_app.evaluation import text_files
from sftm_app.evaluation.packs import load_samples, open_pack
from sftm_app.evaluation.samples import TextSamples
from sftm_app.evaluation.text_files import load_texts


def written(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.json", '{"inputs": ["a b", "c"], "targets": [" x", "y"], "choices": null}'),
        ("x.json", '\ufeff{"inputs": ["a b", "c"], "targets": [" x", "y"]}'),
        ("x.jsonl", '{"input": "a b", "target": " x"}\n\n{"target": "y", "input": "c", "more": 1}\r\n'),
        ("x.csv", "text,label\na b, x\nc,y\n"),
        ("x.csv", 'label,more,text\r\n" x",1,"a b"\r\ny,2,c'),
        ("X.TSV", "text\tlabel\na b\t x\nc\ty\n"),
    ],
)
def test_files_of_labelled_texts(tmp_path: Path, name: str, content: str) -> None:
    assert load_texts(written(tmp_path / name, content)) == TextSamples(("a b", "c"), (" x", "y"))


def test_lines_and_quotes_inside_a_text_stay(tmp_path: Path) -> None:
    found = load_texts(written(tmp_path / "x.csv", 'text,label\n"a, ""b""\nc",y\n'))
    assert found.inputs == ('a, "b"\nc',)
    line = json.dumps({"input": "a\u2028b", "target": "c\x85"}, ensure_ascii=False)
    assert load_texts(written(tmp_path / "x.jsonl", line)) == TextSamples(("a\u2028b",), ("c\x85",))


def test_choices(tmp_path: Path) -> None:
    content = {"inputs": ["a", "b"], "targets": [" no", " yes"], "choices": [" yes", " no"]}
    found = load_texts(written(tmp_path / "x.json", json.dumps(content)))
    assert found == TextSamples(("a", "b"), (" no", " yes"), (" yes", " no"))


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("x.txt", "a", "is not a file of labelled texts"),
        ("x.json", "[1]", "should be an object, found"),
        ("x.json", "{", "Invalid JSON"),
        ("x.json", "[" * 100_000, "Invalid JSON: recursion limit"),
        ("x.json", '{"inputs": []}', "targets: Field required"),
        ("x.json", '{"inputs": "ab", "targets": "cd"}', "inputs: Input should be a valid array, found 'ab'"),
        ("x.json", '{"inputs": [], "targets": []}', "holds no texts"),
        ("x.json", '{"inputs": ["a"], "targets": ["b", "c"]}', "1 inputs and 2 targets"),
        ("x.json", '{"inputs": ["a"], "targets": [3]}', "targets 1: Input should be a valid string, found 3"),
        ("x.json", '{"inputs": [null], "targets": ["b"]}', "inputs 1: Input should be a valid string, found None"),
        (
            "x.json",
            '{"inputs": ["a"], "targets": ["b"], "choices": "bc"}',
            "choices: Input should be a valid array",
        ),
        ("x.json", '{"inputs": ["a"], "targets": ["b"], "choices": ["b"]}', "2 to 1000 different texts"),
        ("x.json", '{"inputs": ["a"], "targets": ["b"], "choices": ["b", "b"]}', "2 to 1000 different texts"),
        (
            "x.json",
            '{"inputs": ["a"], "targets": ["b"], "choices": ["b", 1]}',
            "choices 2: Input should be a valid string",
        ),
        ("x.json", '{"inputs": ["a"], "targets": ["b"], "choices": ["b ", "c"]}', "target 1 is 'b', which is none"),
        ("x.jsonl", '{"input": "a", "target": "b"}\n{"input": "a"}', "line 2: target: Field required"),
        ("x.jsonl", '{"input": "a", "target": "b"}\n{"in', "line 2: Invalid JSON"),
        ("x.jsonl", "\n", "holds no texts"),
        ("x.csv", "a,b\n1,2\n", "needs the columns text and label in its first line; it has a, b"),
        ("x.csv", "", "needs the columns text and label in its first line; it has none"),
        ("x.csv", "text,label\n", "holds no texts"),
        ("x.csv", "text,label\nonly\n", "line 2 has fewer columns"),
        ("x.csv", 'text,label\n"open,b\n', "is damaged"),
        ("x.csv", "text,label\n" + "a" * 200_000 + ",b\n", "is damaged"),
        ("x.csv", b"text,label\n\xff,b\n", "is not UTF-8 text"),
        ("x.csv", b"\0" * 50, "needs the columns"),
    ],
)
def test_files_that_are_refused(tmp_path: Path, name: str, content: str | bytes, sentence: str) -> None:
    with pytest.raises(SampleError, match=sentence):
        load_texts(written(tmp_path / name, content))


def test_cut_files_are_read_or_refused(tmp_path: Path) -> None:
    for name, content in (
        ("x.json", '{"inputs": ["aä", "c"], "targets": ["x", "y"], "choices": ["x", "y"]}'),
        ("x.jsonl", '{"input": "aä", "target": "x"}\n{"target": "y", "input": "c"}'),
        ("x.csv", 'text,label\n"aä ""b""",x\nc,y\n'),
    ):
        for end in range(len(content.encode())):
            path = written(tmp_path / name, content.encode()[:end])
            try:
                assert len(load_texts(path)) in (1, 2)
            except SampleError:
                continue


def test_what_is_no_regular_file_of_a_fair_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SampleError, match="no such file"):
        load_texts(tmp_path / "none.csv")
    (tmp_path / "folder.csv").mkdir()
    os.mkfifo(tmp_path / "pipe.csv")
    for name in ("folder.csv", "pipe.csv"):
        with pytest.raises(SampleError):
            load_texts(tmp_path / name)
    monkeypatch.setattr(text_files, "MAX_FILE_BYTES", 10)
    with pytest.raises(SampleError, match="larger than 10 bytes"):
        load_texts(written(tmp_path / "x.csv", "text,label\na,b\nc,d\n"))


def test_a_subset_holds_every_target() -> None:
    samples = TextSamples(tuple("abcdef"), ("x", "x", "x", "x", "y", "z"), ("x", "y", "z"), True)
    assert samples.subset(4) == TextSamples(("a", "b", "e", "f"), ("x", "x", "y", "z"), ("x", "y", "z"), True)
    assert samples.subset(10) == samples and len(samples.subset(0)) == 0
    free = TextSamples(tuple("abc"), ("1", "2", "3"))
    assert free.subset(2) == TextSamples(("a", "b"), ("1", "2"))


def save_pack(folder: Path, **changes: Any) -> Path:
    content = {"name": "words", "title": "Words", "description": "Few.", "kind": "text", "base": "base"}
    content["tasks"] = [{"name": "a", "title": "A", "path": "tasks/a", "samples": "a.json"}]  # type: ignore[assignment]
    folder.mkdir(exist_ok=True)
    (folder / "pack.json").write_text(json.dumps(content | changes))
    return folder


def test_a_pack_of_texts(tmp_path: Path) -> None:
    pack = open_pack(save_pack(tmp_path / "words"))
    assert (pack.kind, pack.drawn, pack.tasks[0].path) == ("text", False, tmp_path / "words" / "tasks" / "a")
    with pytest.raises(SampleError, match="no such file"):
        load_samples(pack.tasks[0])
    content = {"inputs": ["a"], "targets": ["b"], "choices": None}
    written(tmp_path / "words" / "a.json", json.dumps(content))
    assert load_samples(pack.tasks[0]) == TextSamples(("a",), ("b",))


def test_packs_that_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SampleError, match="kind: Input should be 'images' or 'text'"):
        open_pack(save_pack(tmp_path, kind="sound"))
    with pytest.raises(SampleError, match="image is missing"):
        open_pack(save_pack(tmp_path, kind="images"))
    with pytest.raises(CheckpointError):
        open_pack(tmp_path / "none")
