"""Reads which token each row of a table stands for, from the tokenizer's files. Nothing in them is run.

Fast tokenizers are one file, tokenizer.json. Slow ones are vocab.txt, vocab.json or a sentencepiece model, and name the
tokens that were added later in files of their own.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sftm_app.errors import CheckpointError
from sftm_app.weights.header import open_regular
from sftm_app.weights.json_files import parse_object
from sftm_app.weights.sentencepiece_file import read_pieces
from sftm_app.weights.shards import refuse_foreign_link

TOKENIZER, TOKENIZER_CONFIG, ADDED_TOKENS = "tokenizer.json", "tokenizer_config.json", "added_tokens.json"
SLOW_NAMES = ("vocab.txt", "vocab.json", "spiece.model", "tokenizer.model", "sentencepiece.bpe.model", "spm.model")
MAX_BYTES = 256 << 20
MAX_ROWS = 1 << 27
# Tokenizers whose ids are not the places of the pieces in the sentencepiece model.
_SHIFTED = (
    "XLMRoberta",
    "Camembert",
    "MBart",
    "NLLB",
    "M2M100",
    "Barthez",
    "XGLM",
    "Pegasus",
    "BigBird",
    "Speech2Text",
)


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of a tokenizer.

    Attributes:
        rows: token -> its row in the tables; empty where the format of the file is not known.
        kind: how text is split: "WordLevel", "WordPiece", "BPE", "Unigram", "sentencepiece", or "" where unknown.
        file: the name of the file that holds most tokens.
        added: token -> its entry under `added_tokens` of tokenizer.json, for tokens that were added to the kind's own.
        splitting: a digest of how text is split into tokens, apart from the tokens.
        digest: of the files; equal digests mean equal vocabularies.
    """

    rows: Mapping[str, int]
    kind: str
    file: str
    added: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    splitting: str = ""
    digest: str = ""

    def names(self, size: int) -> list[str | None]:
        """The token of each of the first `size` rows; None for rows without one."""
        found: list[str | None] = [None] * size
        for token, row in self.rows.items():
            if token and row < size and found[row] is None:  # an empty token, as of a blank line, names nothing
                found[row] = token
        return found

    @property
    def n_rows(self) -> int:
        """The number of rows up to the last one that a token names."""
        return max(self.rows.values(), default=-1) + 1


def read_vocabulary(folder: Path, like: Vocabulary | None = None) -> Vocabulary | None:
    """Read the vocabulary of a checkpoint's folder.

    Args:
        folder: the checkpoint.
        like: a vocabulary that this one probably equals: equal files are not parsed again.

    Returns:
        The vocabulary; None where the folder has no tokenizer.

    Raises:
        CheckpointError: a file is damaged, too large, or a link that leads out of the checkpoint.
    """
    main = next((folder / name for name in (TOKENIZER, *SLOW_NAMES) if (folder / name).is_file()), None)
    if main is None:
        return None
    raw = {
        file.name: _read(file) for file in (main, folder / ADDED_TOKENS, folder / TOKENIZER_CONFIG) if file.is_file()
    }
    settings = parse_object(folder / TOKENIZER_CONFIG, raw[TOKENIZER_CONFIG]) if TOKENIZER_CONFIG in raw else {}
    added = {key: settings.get(key) for key in ("added_tokens_decoder", "tokenizer_class")}
    parts = [main.name.encode(), raw[main.name], raw.get(ADDED_TOKENS, b""), json.dumps(added).encode()]
    digest = hashlib.sha256(b"\0".join(parts)).hexdigest()
    if like is not None and like.digest == digest:
        return like
    try:
        found = _parse(main, raw, settings)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError) as error:
        raise CheckpointError(f"{main}: is not a tokenizer that can be read ({error}). Download it again.") from None
    return replace(found or Vocabulary({}, "", main.name), digest=digest)


def _parse(main: Path, raw: Mapping[str, bytes], settings: Mapping[str, Any]) -> Vocabulary | None:
    """The vocabulary; None where the format is not known."""
    content = raw[main.name]
    if main.name == TOKENIZER:
        found = _parse_fast(parse_object(main, content))
    elif main.name == "vocab.txt":
        words = content.decode("utf-8").split("\n")
        rows = {word.rstrip("\r"): row for row, word in enumerate(words[:-1] if words[-1] == "" else words)}
        found = Vocabulary(rows, "WordPiece", main.name)
    elif main.name == "vocab.json":
        table = parse_object(main, content)
        if any(isinstance(value, dict) for value in table.values()):
            return None  # a table for each language, as some speech models have
        found = Vocabulary(_rows(table), "BPE", main.name)
    else:
        if str(settings.get("tokenizer_class", "")).startswith(_SHIFTED):
            return None
        try:
            pieces = read_pieces(content)
        except (ValueError, UnicodeDecodeError):
            return None  # such as tiktoken's format under the name tokenizer.model
        found = Vocabulary({piece: row for row, piece in enumerate(pieces)}, "sentencepiece", main.name)
    later = _rows(parse_object(main.with_name(ADDED_TOKENS), raw[ADDED_TOKENS])) if ADDED_TOKENS in raw else {}
    listed = settings.get("added_tokens_decoder") or {}
    named = {_content(entry): _row(row) for row, entry in listed.items()}
    return replace(found, rows={**later, **named, **found.rows})


def _parse_fast(table: Mapping[str, Any]) -> Vocabulary:
    model = table["model"]
    vocabulary = model["vocab"]
    if isinstance(vocabulary, list):
        rows = {str(piece): row for row, (piece, *_) in enumerate(vocabulary)}
    else:
        rows = _rows(vocabulary)
    entries = {_content(entry): entry for entry in table.get("added_tokens") or []}
    # A token that the model has keeps its row there.
    rows = {token: _row(entry["id"]) for token, entry in entries.items()} | rows
    steps = [table.get(key) for key in ("normalizer", "pre_tokenizer", "post_processor", "decoder")]
    splitting = hashlib.sha256(json.dumps([steps, model.get("merges")]).encode()).hexdigest()
    kind = str(model.get("type") or ("Unigram" if isinstance(vocabulary, list) else "BPE"))
    return Vocabulary(rows, kind, TOKENIZER, entries, splitting)


def _rows(table: Mapping[str, Any]) -> dict[str, int]:
    return {str(token): _row(row) for token, row in table.items()}


def _row(value: Any) -> int:
    """A row's number, which JSON has as a number, or as a string where it is a key."""
    number = int(value) if isinstance(value, str) and len(value) < 12 and value.isdecimal() else value
    if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < MAX_ROWS:
        raise ValueError(f"{str(value)[:40]!r} is not the number of a row")
    return number


def _content(entry: Any) -> str:
    found = entry["content"] if isinstance(entry, dict) else entry
    if not isinstance(found, str):
        raise ValueError("an added token has no text")
    return found


def _read(file: Path) -> bytes:
    refuse_foreign_link(file)
    try:
        with os.fdopen(open_regular(file), "rb") as opened:
            raw = opened.read(MAX_BYTES + 1)
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read ({error.strerror}). Change its permissions.") from None
    if len(raw) > MAX_BYTES:
        raise CheckpointError(f"{file}: is larger than {MAX_BYTES} bytes, too large for a tokenizer. Remove it.")
    return raw
