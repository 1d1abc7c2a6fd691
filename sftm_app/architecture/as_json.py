"""An Architecture as JSON, for files and for another process."""

from __future__ import annotations

from pydantic import TypeAdapter

from sftm_app.architecture.architecture import Architecture

_ARCHITECTURE = TypeAdapter(Architecture)


def architecture_to_json(found: Architecture) -> str:
    """The JSON text of an architecture, on one line."""
    return _ARCHITECTURE.dump_json(found).decode()


def architecture_from_json(text: str | bytes) -> Architecture:
    """The architecture of such a text. Raises ValueError: it is something else."""
    return _ARCHITECTURE.validate_json(text)
