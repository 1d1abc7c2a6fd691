"""Settings next to the tokens: the chat template, special tokens, and how text is generated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sftm_app.errors import CheckpointError
from sftm_app.weights.header import open_regular
from sftm_app.weights.json_files import read_json
from sftm_app.weights.shards import refuse_foreign_link
from sftm_app.weights.vocabulary import TOKENIZER_CONFIG

GENERATION, TEMPLATE, SPECIAL_TOKENS = "generation_config.json", "chat_template.jinja", "special_tokens_map.json"
SPECIAL = ("bos_token", "eos_token", "pad_token", "unk_token")
CONFIG_IDS = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")
# Entries of a generation config that are no settings.
_HISTORY = ("transformers_version", "_from_model_config")
# Entries that hold numbers of tokens.
_NUMBERS = ("_token_id", "_token_ids")
_LISTS = ("suppress_tokens", "begin_suppress_tokens", "bad_words_ids", "force_words_ids")
_MAX_TEMPLATE_BYTES = 4 << 20
_MAX_SHOWN = 40


@dataclass(frozen=True)
class TextSettings:
    """What a checkpoint says beyond its tokens. An empty table says nothing.

    Attributes:
        template: the chat template, as text or as a list of named ones; None if there is none.
        special: entries of `SPECIAL` -> the token.
        generation: entries of generation_config.json.
        ids: entries of `CONFIG_IDS` in config.json.
        has_tokenizer: whether there are settings of a tokenizer at all.
    """

    template: Any = None
    special: Mapping[str, str] = field(default_factory=dict)
    generation: Mapping[str, Any] = field(default_factory=dict)
    ids: Mapping[str, Any] = field(default_factory=dict)
    has_tokenizer: bool = False

    def with_rows(self, rows: Sequence[int]) -> TextSettings:
        """The same settings for tables in another order. Numbers of tokens that are no longer there are left out.

        rows: for each row of these tables, the row that it has here, or -1.
        """
        places = {row: place for place, row in reversed(list(enumerate(rows))) if row >= 0}

        def moved(name: str, value: Any) -> Any:
            if not name.endswith(_NUMBERS) and name not in _LISTS:
                return value
            if isinstance(value, list):
                found = [moved(name, item) for item in value]
                return [item for item in found if item is not None] or None
            return places.get(value) if isinstance(value, int) and not isinstance(value, bool) else value

        generation = {name: moved(name, value) for name, value in self.generation.items()}
        return replace(self, generation=generation, ids={name: moved(name, value) for name, value in self.ids.items()})

    def entries(self) -> dict[tuple[str, str], Any]:
        """All settings by their table and name. A setting that is missing is as one that is null."""
        found = {("template", "chat template"): self.template}
        for table in ("special", "generation", "ids"):
            found |= {(table, name): value for name, value in getattr(self, table).items()}
        return {key: value for key, value in found.items() if value is not None}


def read_settings(folder: Path, config: Mapping[str, Any]) -> TextSettings:
    """Read the settings of a checkpoint.

    Args:
        folder: its folder; a single weight file has no settings of its own.
        config: its config.json.

    Raises:
        CheckpointError: a file is damaged, too large, or a link that leads out of the checkpoint.
    """
    ids = {name: config[name] for name in CONFIG_IDS if config.get(name) is not None}
    if folder.is_file():
        return TextSettings(ids=ids)
    tokenizer = _table(folder / TOKENIZER_CONFIG)
    special = {**_table(folder / SPECIAL_TOKENS), **tokenizer}
    words = {name: word for name in SPECIAL if (word := _word(special.get(name))) is not None}
    generation = {key: value for key, value in _table(folder / GENERATION).items() if key not in _HISTORY}
    template = _template(folder / TEMPLATE) or tokenizer.get("chat_template")
    return TextSettings(template, words, generation, ids, bool(tokenizer or words or template))


def describe(value: Any) -> str:
    """A setting in a few characters."""
    text = str(value)
    return text if len(text) <= _MAX_SHOWN else f"{text[: _MAX_SHOWN - 3]}..."


def _word(value: Any) -> str | None:
    word = value.get("content") if isinstance(value, dict) else value
    return word if isinstance(word, str) else None


def _table(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    refuse_foreign_link(file)
    return read_json(file)


def _template(file: Path) -> str | None:
    if not file.is_file():
        return None
    refuse_foreign_link(file)
    with open(open_regular(file), "rb") as opened:
        raw = opened.read(_MAX_TEMPLATE_BYTES + 1)
    try:
        if len(raw) <= _MAX_TEMPLATE_BYTES:
            return raw.decode("utf-8")
    except UnicodeDecodeError:
        pass
    raise CheckpointError(f"{file}: is not a chat template: too large, or not text. Download it again.")
