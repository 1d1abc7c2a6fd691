"""Merged layers in the cache: all that does not depend on the scaling."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import TypeAdapter, ValidationError

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


@dataclass(frozen=True)
class LayerFacts:
    """What is cached of a layer besides its delta.

    Attributes:
        solve: how a system was solved for it, if one was.
        ranks, factorised_by: of the features that the method used, per task.
        measured: what it keeps of each task, if that was measured.
    """

    solve: SolveFigures | None = None
    ranks: tuple[int, ...] = ()
    factorised_by: tuple[str, ...] = ()
    measured: Measured | None = None


_FACTS = TypeAdapter(LayerFacts)


@dataclass(frozen=True, eq=False)
class CachedLayer:
    """A merged layer at scaling 1.

    Attributes:
        delta: (m, n), or of the tensor's own shape.
        facts: the rest of what is cached.
        found: whether it comes from the cache.
    """

    delta: Delta
    facts: LayerFacts = LayerFacts()
    found: bool = False


def find_layer(cache: DiskCache | None, key: LayerKey | None) -> CachedLayer | None:
    """The cached layer of this key, or None."""
    entry = cache.find(key.address(cache)) if cache and key else None
    if entry is None:
        return None
    tensors = entry.tensors
    try:
        delta: Delta = LowRank(tensors["left"], tensors["right"]) if "left" in tensors else tensors["delta"]
        return CachedLayer(delta, _FACTS.validate_python(entry.values), found=True)
    except (KeyError, ValidationError):  # another state of the code wrote it
        return None


def put_layer(cache: DiskCache | None, key: LayerKey | None, made: CachedLayer) -> None:
    """Cache a layer, if there is a cache with room for it."""
    if cache and key:
        delta = made.delta
        tensors = {"left": delta.left, "right": delta.right} if isinstance(delta, LowRank) else {"delta": delta}
        cache.put(key.address(cache), Entry(tensors, _FACTS.dump_python(made.facts, mode="json")))
