"""Regular expressions that a file brings, matched in linear time.

Python's `re` may backtrack for ever on a hostile pattern, and it holds the interpreter's lock meanwhile: no timeout in
this process would stop it. RE2 matches every pattern in time linear in the text. https://github.com/google/re2

RE2 reads some constructs otherwise than Python's `re`, with which PEFT reads the pattern. So only the constructs that
both read the same way are accepted.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import re2

MAX_PATTERN = 1000
MAX_PATTERNS = 4000
# RE2 gives up on a pattern that needs more, such as (a{500}){500}.
_MAX_MEMORY = 1 << 20

_REPEAT = r"(?:[*+?]|\{\d{1,3}(?:,\d{0,3})?\})\??(?![*+?{])"
# One construct after the other: plain characters, escaped ones, sets of characters, groups, anchors, repeats.
_CONSTRUCT = re.compile(
    r"[A-Za-z0-9_ \-/:,;=@!#%&~'\"<>.]"
    r"|\\[.^$*+?(){}\[\]|\\/\-_:,]"
    r"|\\[dDwWsS]|\\[bB](?![*+?{])"
    r"|\[\^?(?:[A-Za-z0-9_.\-/:,;=@!#%&$*+?(){}| ]|\\[.^$*+?(){}\[\]|\\/\-_:,dDwWsS])+\]"
    r"|\((?:\?:)?|\)|\||\^|\$"
    rf"|(?<=[^(|^$]){_REPEAT}"
)


@dataclass(frozen=True)
class Pattern:
    """A regular expression for the path of a module. `fault` says why it is not used: "is longer than ...", or ""."""

    text: str

    @property
    def fault(self) -> str:
        """Why the pattern is not used; "" if it is."""
        return self._compiled if isinstance(self._compiled, str) else ""

    def matches(self, module: str) -> bool:
        """Whether it matches the whole path of a module, or its end after a dot; see PEFT's `get_pattern_key`."""
        return not isinstance(self._compiled, str) and self._compiled.match(module) is not None

    @cached_property
    def _compiled(self) -> Any:
        if len(self.text) > MAX_PATTERN:
            return f"is longer than {MAX_PATTERN} characters"
        place = 0
        while place < len(self.text):
            construct = _CONSTRUCT.match(self.text, place)
            if construct is None:
                return f"holds {self.text[place : place + 8]!r}, which is not understood in patterns of module names"
            place = construct.end()
        options = re2.Options()
        options.log_errors = False
        options.max_mem = _MAX_MEMORY
        options.never_capture = True
        try:
            return re2.compile(rf"(.*\.)?({self.text})$", options)
        except re2.error:
            return "is not a regular expression, or is too large"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.text,)


@dataclass(frozen=True)
class PatternTable:
    """Values by pattern, such as PEFT's `rank_pattern`."""

    values: Mapping[str, float]

    def at(self, module: str, default: float) -> float:
        """The value of the first pattern that matches a module's path."""
        return next((value for pattern, value in self._patterns if pattern.matches(module)), default)

    @cached_property
    def _patterns(self) -> list[tuple[Pattern, float]]:
        return [(Pattern(text), value) for text, value in self.values.items()]
