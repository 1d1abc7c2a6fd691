"""Tokens are read from the files of fast and slow tokenizers, and odd files are refused in a sentence (A15, A20)."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from sftm_app.errors import CheckpointError
from sftm_app.weights.sentencepiece_file import read_pieces
from sftm_app.weights.vocabulary import Vocabulary, read_vocabulary


def piece(text: str, score: float = 0.5) -> bytes:
    """One piece of a sentencepiece model: text (1), score (2, four bytes), type (3)."""
    raw = text.encode()
    message = b"\x0a" + bytes([len(raw)]) + raw + b"\x15" + b"\0" * 4 + b"\x18\x01"
    return b"\x0a" + bytes([len(message)]) + message


def sentencepiece(*texts: str) -> bytes:
    # After the pieces come the trainer's settings (2), which are skipped.
    return b"".join(map(piece, texts)) + b"\x12\x02\x08\x01"


def fast(model: dict[str, Any], added: list[dict[str, Any]] | None = None) -> str:
    return json.dumps({"model": model, "added_tokens": added or []})


def rows(folder: Path) -> dict[str, int]:
    found = read_vocabulary(folder)
    assert found is not None
    return dict(found.rows)


@pytest.mark.parametrize(
    "model",
    [
        {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": []},
        {"type": "WordPiece", "vocab": {"a": 0, "b": 1}},
        {"type": "Unigram", "vocab": [["a", -1.0], ["b", -2.0]]},
        {"vocab": {"a": 0, "b": 1}},
    ],
)
def test_fast_tokenizers(tmp_path: Path, model: dict[str, Any]) -> None:
    (tmp_path / "tokenizer.json").write_text(fast(model, [{"id": 2, "content": "<x>"}, {"id": 1, "content": "b"}]))
    assert rows(tmp_path) == {"a": 0, "b": 1, "<x>": 2}


@pytest.mark.parametrize("name", ["spiece.model", "tokenizer.model", "sentencepiece.bpe.model"])
def test_slow_tokenizers_of_sentencepiece(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(sentencepiece("<unk>", "▁a", "b"))
    (tmp_path / "added_tokens.json").write_text('{"<x>": 3}')
    assert rows(tmp_path) == {"<unk>": 0, "▁a": 1, "b": 2, "<x>": 3}


def test_slow_tokenizers_of_words_and_pairs(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_bytes(b"[PAD]\r\na\r\nb\r\n")
    config = {"added_tokens_decoder": {"3": {"content": "<x>"}}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert rows(tmp_path) == {"[PAD]": 0, "a": 1, "b": 2, "<x>": 3}
    (tmp_path / "vocab.txt").rename(tmp_path / "vocab.json")
    (tmp_path / "vocab.json").write_text('{"a": 0, "b": 1}')
    assert rows(tmp_path) == {"a": 0, "b": 1, "<x>": 3}


def test_what_transformers_reads_is_the_same(tmp_path: Path) -> None:
    from tiny_vocabularies import save_tokenizer

    save_tokenizer(tmp_path, added=("<tool>",))
    assert rows(tmp_path) == AutoTokenizer.from_pretrained(tmp_path).get_vocab()
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "##b"]
    slow = tmp_path / "slow"
    slow.mkdir()
    (slow / "vocab.txt").write_text("\n".join(words) + "\n")
    (slow / "config.json").write_text('{"model_type": "bert"}')
    assert rows(slow) == AutoTokenizer.from_pretrained(slow).get_vocab()


def test_formats_whose_tokens_are_not_known_are_told_apart_by_their_bytes(tmp_path: Path) -> None:
    digests = []
    for content in (b"IQ== 0\nIg== 1\n", b"IQ== 0\nIw== 1\n"):  # tiktoken under sentencepiece's name
        (tmp_path / "tokenizer.model").write_bytes(content)
        found = read_vocabulary(tmp_path)
        assert found is not None and not found.rows
        digests.append(found.digest)
    assert digests[0] != digests[1]
    assert read_vocabulary(tmp_path / "nowhere") is None


@pytest.mark.parametrize(
    "content",
    [
        "not JSON",
        "[]",
        "{}",
        '{"model": null}',
        '{"model": {"vocab": 3}}',
        '{"model": {"vocab": {"a": -1}}}',
        '{"model": {"vocab": {"a": true}}}',
        '{"model": {"vocab": {"a": 1.5}}}',
        '{"model": {"vocab": {"a": 99999999999999}}}',
        '{"model": {"vocab": {"a": ' + "9" * 5000 + "}}}",
        '{"model": {"vocab": [3]}}',
        '{"model": {"vocab": {}}, "added_tokens": [{"id": 1}]}',
        '{"model": {"vocab": {}}, "added_tokens": 7}',
        '{"model": {"vocab": {}}, "added_tokens": [{"id": 1, "content": 5}]}',
        "[" * 100_000,
    ],
)
def test_a_damaged_tokenizer_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"tokenizer.json: .*(Download it again)"):
        read_vocabulary(tmp_path)


@pytest.mark.parametrize("raw", [b"", b"\x0a\xff", b"\x0a" + b"\xff" * 12, b"\x0b\x01", b"\x0a\x02\x10\x01", b"text\n"])
def test_a_damaged_sentencepiece_model(raw: bytes) -> None:
    with pytest.raises(ValueError):
        read_pieces(raw)


def test_links_out_and_pipes_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "outside.json").write_text(fast({"vocab": {"secret": 0}}))
    (folder / "tokenizer.json").symlink_to(tmp_path / "outside.json")
    with pytest.raises(CheckpointError, match="link that leads out"):
        read_vocabulary(folder)
    (folder / "tokenizer.json").unlink()
    os.mkfifo(folder / "tokenizer.json")
    assert read_vocabulary(folder) is None  # nothing regular is there, and nothing waits for it


def test_an_empty_token_as_of_a_blank_line_names_no_row() -> None:
    assert Vocabulary({"": 0, "a": 1}, "words", "vocab.txt").names(3) == [None, "a", None]
