"""The last table of compared methods, kept over a restart: which models it had, for their answers are kept anyway."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import BaseModel, Field, ValidationError

from sftm_app.errors import SFTMError
from sftm_app.evaluation.candidates import BASE, INDIVIDUAL, Candidate, method_candidate
from sftm_app.methods.settings import merge_settings
from sftm_app.ui.comparisons import Conditions
from sftm_app.ui.workspace import Workspace

# Its word for the keeper.
PART = "compared"
MOST_ROWS = 256


class _Row(BaseModel):
    method: str
    params: dict[str, Any] = {}
    weights: tuple[float, ...] | None = None


class _Table(BaseModel):
    rows: Annotated[tuple[_Row, ...], Field(max_length=MOST_ROWS)]
    where: str = ""
    limit: Annotated[int, Field(ge=1, le=10**6)]
    split: bool = False


def table_to_text(conditions: Conditions, candidates: Sequence[Candidate]) -> str:
    """The merges of a table, and what they were measured with."""
    merges = [one for one in candidates if one.key not in (BASE.key, INDIVIDUAL.key)]
    rows = tuple(_Row(method=one.kind, params=dict(one.params), weights=one.weights) for one in merges[-MOST_ROWS:])
    table = _Table(rows=rows, where=conditions.where, limit=conditions.limit, split=conditions.split_fused)
    return table.model_dump_json()


def table_from_text(text: str, ws: Workspace) -> tuple[list[Candidate], str, int, bool] | None:
    """The merges of such a text that there can still be, then where the samples are, how many, and whether fused maps
    are split; None if it is not one."""
    try:
        table = _Table.model_validate_json(text)
    except ValidationError:
        return None
    found = []
    for row in table.rows:
        try:
            merge_settings(row.method, row.params, row.weights or ws.weights)
            found.append(method_candidate(row.method, row.params, row.weights))
        except SFTMError:  # of another version
            continue
    return found, table.where, table.limit, table.split
