"""Merged layers in the cache: all that does not depend on the scaling."""

from __future__ import annotations

from dataclasses import asdict, astuple, dataclass

from sftm_app.linalg.conflicts import Conflict
from sftm_app.linalg.low_rank import Delta, LowRank
from sftm_app.linalg.preservation import Errors, Preservation
from sftm_app.methods.base import SolveFigures
from sftm_app.planning.keys import LayerKey
from sftm_app.weights.disk_cache import DiskCache, Entry


@dataclass(frozen=True)
class Measured:
    """What a delta keeps of each task.

    Attributes:
        kept: of the delta, one per task; its errors at any scaling follow from it.
        average: the errors of the plain average.
        errors_on: see `engine.records.Figures`.
    """

    kept: tuple[Preservation, ...]
    average: Errors
    errors_on: str


@dataclass(frozen=True, eq=False)
class CachedLayer:
    """A merged layer at scaling 1.

    Attributes:
        delta: (m, n), or of the tensor's own shape.
        solve: how a system was solved for it, if one was.
        ranks, factorised_by: of the features that the method used, per task.
        measured: what it keeps of each task, if that was measured.
        found: whether it comes from the cache.
    """

    delta: Delta
    solve: SolveFigures | None = None
    ranks: tuple[int, ...] = ()
    factorised_by: tuple[str, ...] = ()
    measured: Measured | None = None
    found: bool = False


def find_layer(cache: DiskCache | None, key: LayerKey | None) -> CachedLayer | None:
    """The cached layer of this key, or None."""
    entry = cache.find(key.address(cache)) if cache and key else None
    return _from_entry(entry) if entry else None


def put_layer(cache: DiskCache | None, key: LayerKey | None, made: CachedLayer) -> None:
    """Cache a layer, if there is a cache with room for it."""
    if cache and key:
        cache.put(key.address(cache), _to_entry(made))


def _to_entry(made: CachedLayer) -> Entry:
    delta = made.delta
    tensors = {"left": delta.left, "right": delta.right} if isinstance(delta, LowRank) else {"delta": delta}
    measured = made.measured
    values = {
        "solve": asdict(made.solve) if made.solve else None,
        "ranks": made.ranks,
        "factorised_by": made.factorised_by,
        "measured": {
            "kept": [astuple(one) for one in measured.kept],
            "average": asdict(measured.average),
            "errors_on": measured.errors_on,
        }
        if measured
        else None,
    }
    return Entry(tensors, values)


def _from_entry(entry: Entry) -> CachedLayer:
    tensors, values = entry.tensors, entry.values
    delta: Delta = LowRank(tensors["left"], tensors["right"]) if "left" in tensors else tensors["delta"]
    solve, measured = values["solve"], values["measured"]
    if solve:
        solve = SolveFigures(**solve | {"conflicts": tuple(Conflict(**one) for one in solve["conflicts"])})
    if measured:
        kept = tuple(Preservation(*one) for one in measured["kept"])
        measured = Measured(kept, Errors(**measured["average"]), measured["errors_on"])
    return CachedLayer(delta, solve, tuple(values["ranks"]), tuple(values["factorised_by"]), measured, found=True)
