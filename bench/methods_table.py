"""The README's table of methods, made from the code: `python -m bench.methods_table` prints it, `--write` writes it."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sftm_app.methods import METHODS
from sftm_app.methods.base import Method
from sftm_app.methods.params import CommonParams, Control, controls

README = Path(__file__).resolve().parents[1] / "README.md"
HEAD = ("| method | what it does, and what for | parameters and their defaults | source |", "|---|---|---|---|")


def methods_table(methods: Mapping[str, Method] = METHODS) -> str:
    """The table in Markdown, a row for each method; the settings that every method has are left out."""
    return "\n".join([*HEAD, *map(_row, methods.values())])


def with_table(text: str) -> str:
    """A README with its table of methods made anew.

    Raises:
        ValueError: there is no such table in it.
    """
    before, head, rest = text.partition(HEAD[0] + "\n")
    if not head:
        raise ValueError(f"README.md has no line {HEAD[0]!r}. Put it where the table belongs.")
    lines = rest.splitlines(keepends=True)
    n_rows = next((index for index, line in enumerate(lines) if not line.startswith("|")), len(lines))
    return before + methods_table() + "\n" + "".join(lines[n_rows:])


def _row(method: Method) -> str:
    defaults, off = method.params(), CommonParams()
    own = {
        name: control
        for name, control in controls(method.params).items()
        if not hasattr(off, name) or getattr(defaults, name) != getattr(off, name)
    }
    said = [_parameter(name, control, getattr(defaults, name)) for name, control in own.items()]
    cells = (f"`{method.name}`: {method.title}", method.summary, "; ".join(said) or "none", method.reference)
    return f"| {' | '.join(cells)} |"


def _parameter(name: str, control: Control, default: Any) -> str:
    if control.kind == "rank":
        return f"`{name}` {'full' if default is None else default}"
    others = [choice for choice in control.choices if choice != default]
    return f"`{name}` {default}" + (f" (or {', '.join(others)})" if others else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="put it into README.md instead of printing it")
    if not parser.parse_args().write:
        print(methods_table())
        return
    README.write_text(with_table(README.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
