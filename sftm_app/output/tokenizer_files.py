"""The tokenizer files of the output: one model's, with the tokens and settings that the merged model has besides."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sftm_app.caching import write_text
from sftm_app.preflight.tokenizers import TokenizerFindings
from sftm_app.weights.file_names import CONFIG_NAME
from sftm_app.weights.json_files import read_json
from sftm_app.weights.text_settings import GENERATION, SPECIAL_TOKENS, TEMPLATE, read_settings
from sftm_app.weights.vocabulary import ADDED_TOKENS, TOKENIZER, TOKENIZER_CONFIG

# What `save_pretrained` of a tokenizer writes.
TOKENIZER_FILES = (
    "tokenizer*.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "normalizer.json",
    "vocab.json",
    "vocab.txt",
    "vocab.bpe",
    "vocab-*.json",
    "merges.txt",
    "bpe.codes",
    "dict.txt",
    "*.model",
    "*.tiktoken",
    "chat_template.*",
    "additional_chat_templates/*.jinja",
)
_PLAIN_TOKEN = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}


def complete_tokenizer(found: TokenizerFindings, folder: Path) -> None:
    """Add tokens and settings to the files in `folder`: a tokenizer's, config.json and generation_config.json.

    Raises:
        CheckpointError: a copied file cannot be read.
    """
    if found.additions:
        _add_tokens(found.additions, folder)
    if found.settings.entries:
        _set_settings(found.settings.entries, folder)


def _add_tokens(additions: Mapping[str, tuple[int, dict[str, Any]]], folder: Path) -> None:
    entries = {
        token: {**_PLAIN_TOKEN, **entry, "id": row, "content": token} for token, (row, entry) in additions.items()
    }

    def add_to_fast(table: dict[str, Any]) -> None:
        model = table["model"]
        for token, (row, entry) in additions.items():
            # A token of the model itself, which only these two kinds can take one by one.
            if not entry and model.get("type") in ("WordLevel", "WordPiece"):
                model["vocab"][token] = row
            else:
                table.setdefault("added_tokens", []).append(entries[token])
        table["added_tokens"] = sorted(table.get("added_tokens") or [], key=lambda entry: entry["id"])

    def add_to_config(table: dict[str, Any]) -> None:
        if table.get("added_tokens_decoder"):
            for token, entry in entries.items():
                plain = {key: value for key, value in entry.items() if key != "id"}
                table["added_tokens_decoder"][str(additions[token][0])] = plain

    fast = (folder / TOKENIZER).is_file()
    if fast:
        _change(folder / TOKENIZER, add_to_fast)
    if not fast or (folder / ADDED_TOKENS).is_file():
        _change(folder / ADDED_TOKENS, lambda table: table.update({t: row for t, (row, _) in additions.items()}))
    if (folder / TOKENIZER_CONFIG).is_file():
        _change(folder / TOKENIZER_CONFIG, add_to_config)


def _set_settings(entries: Mapping[tuple[str, str], Any], folder: Path) -> None:
    config = read_json(folder / CONFIG_NAME) if (folder / CONFIG_NAME).is_file() else {}
    now = read_settings(folder, config).entries()
    by_table: dict[str, dict[str, Any]] = {"template": {}, "special": {}, "generation": {}, "ids": {}}
    for key in {**now, **entries}:
        if now.get(key) != entries.get(key):
            by_table[key[0]][key[1]] = entries.get(key)
    if by_table["template"]:
        _set_template(next(iter(by_table["template"].values())), folder)
    if by_table["special"]:
        _change(folder / TOKENIZER_CONFIG, lambda table: _update(table, by_table["special"]))
        if (folder / SPECIAL_TOKENS).is_file():
            _change(folder / SPECIAL_TOKENS, lambda table: _update(table, by_table["special"]))
    if by_table["generation"]:
        _change(folder / GENERATION, lambda table: _update(table, by_table["generation"]))
    if by_table["ids"]:
        _change(folder / CONFIG_NAME, lambda table: _update(table, by_table["ids"]))


def _set_template(template: Any, folder: Path) -> None:
    # Text has a file of its own, which comes before an entry; several templates are an entry.
    if (folder / TOKENIZER_CONFIG).is_file() or isinstance(template, list):
        _change(folder / TOKENIZER_CONFIG, lambda table: _update(table, {"chat_template": None}))
    (folder / TEMPLATE).unlink(missing_ok=True)
    if isinstance(template, str):
        write_text(folder / TEMPLATE, template, sync=True)
    elif template is not None:
        _change(folder / TOKENIZER_CONFIG, lambda table: _update(table, {"chat_template": template}))


def _update(table: dict[str, Any], changes: Mapping[str, Any]) -> None:
    """Set entries; None removes one."""
    for name, value in changes.items():
        if value is None:
            table.pop(name, None)
        else:
            table[name] = value


def _change(file: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change a JSON file, or make it."""
    table = read_json(file) if file.is_file() else {}
    change(table)
    write_text(file, json.dumps(table, indent=2, ensure_ascii=False) + "\n", sync=True)
