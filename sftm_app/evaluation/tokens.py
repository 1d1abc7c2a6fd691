"""Batches, and tokens as text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import takewhile
from typing import Any, TypeVar

Item = TypeVar("Item")


def batches(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    """The items in their order, at most `size` at a time."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


def n_shared(left: Sequence[object], right: Sequence[object]) -> int:
    """How many items two sequences share at their beginning."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(left, right, strict=False)))


def token_texts(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """What each token adds to the text.

    A special token is given by its name. A token that holds only part of a character gives ""; the token that completes
    the character gives the whole of it.
    """
    special = set(tokenizer.all_special_ids)
    found: list[str] = []
    plain: list[int] = []
    shown = ""
    for token in ids:
        if token in special:
            found.append(str(tokenizer.convert_ids_to_tokens(token)))
            continue
        plain.append(token)
        text = str(tokenizer.decode(plain, clean_up_tokenization_spaces=False))
        complete = not text.endswith("\ufffd")
        found.append(text[len(shown) :] if complete else "")
        shown = text if complete else shown
    return found
