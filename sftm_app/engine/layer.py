"""Merge one layer by its rule, for any method: cache it, scale it, and measure what it keeps of each task."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from sftm_app.architecture.roles import Part
from sftm_app.engine.cache import CachedLayer, LayerFacts, Measured, find_layer, put_layer
from sftm_app.engine.features import features_of
from sftm_app.engine.records import Figures
from sftm_app.engine.signs import SignedMatrices, signed_features
from sftm_app.engine.task_matrices import TaskMatrices
from sftm_app.linalg.factors import cut_all
from sftm_app.linalg.low_rank import Delta, LowRank, weighted_sum
from sftm_app.linalg.parallel import single_threaded
from sftm_app.linalg.preservation import errors, measure
from sftm_app.linalg.system import fits_one_gemm, superposed
from sftm_app.methods.base import Features, Layer, Merged, weighted_average
from sftm_app.methods.calling import calibrated, call_method, refuse_base
from sftm_app.planning.keys import at_scaling_1, factor_key, layer_key, matrix_key, scaling_of
from sftm_app.planning.memory import tasks_at_once
from sftm_app.planning.plan import Plan, PlanEntry
from sftm_app.session import Session
from sftm_app.weights.adapter_config import LoraPair


@dataclass(frozen=True, eq=False)
class LayerWork:
    """What to merge, and where.

    Attributes:
        plan, entry: a tensor of the output.
        part: the linear map in it, or None for the tensor in its own shape.
        device: where to compute.
        session: its cache and its threads are used.
        base: the base's tensor where it is in memory already: a method must leave it as it is.
    """

    plan: Plan
    entry: PlanEntry
    part: Part | None
    device: torch.device
    session: Session
    base: Tensor | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the delta: (m, n), or the tensor's own."""
        return self.part.shape_in(self.entry.output.shape) if self.part else self.entry.output.shape


@dataclass(frozen=True, eq=False)
class MergedLayer:
    """What is added to the base for one layer, (m, n) or of the tensor's own shape, and its figures."""

    delta: Delta
    figures: Figures


def merge_layer(work: LayerWork, matrices: TaskMatrices, read_base: Callable[[], Tensor]) -> MergedLayer:
    """Merge one linear map, or one tensor in its own shape, by the entry's rule.

    Args:
        work: what to merge, and where.
        matrices: the task matrices of the tasks that hold it.
        read_base: gives the base's weight, for methods that ask for it.
    """
    layer, entry = make_layer(work, matrices, read_base), work.entry
    if 0 in work.shape:  # there is nothing to merge, and methods need not expect that
        return MergedLayer(torch.zeros(work.shape), Figures())
    with _threads_for(work):
        if entry.rule == "method" and not entry.elementwise:
            return _merge_whole(work, layer)
        delta = merge_elements(work, layer)
        measured = _measure(layer, delta) if entry.measured else None
        return MergedLayer(delta, _figures(measured, 1.0))


def merge_elements(work: LayerWork, layer: Layer, span: tuple[int, int] | None = None) -> Delta:
    """The delta of an elementwise rule, scaling included; with a span, of these elements of the tensor."""
    rule, params = work.entry.rule, work.plan.recipe.params
    factor = work.plan.factor_of(work.entry)
    if rule == "method":
        return _scaled(_call(work, layer, params, span).delta, factor)
    if rule == "average":
        return _scaled(weighted_average(layer), factor)
    scaling = scaling_of(params) * factor
    return weighted_sum(layer.task_matrices, [scaling * weight for weight in layer.weights])


def _call(work: LayerWork, layer: Layer, params: Any, span: tuple[int, int] | None = None) -> Merged:
    """The checked result of the plan's method."""
    method, base = work.plan.method, work.base
    version = base._version if base is not None else 0
    shape = (span[1] - span[0],) if span else work.shape
    # A piece is added at once, and the sum is looked at anyway.
    merged = call_method(method, layer, params, shape, check_values=span is None)
    if base is not None:
        refuse_base(method, merged.delta, base, version)
    return merged


def make_layer(work: LayerWork, matrices: TaskMatrices, read_base: Callable[[], Tensor]) -> Layer:
    """The layer as a method sees it. Arguments as for `merge_layer`."""
    plan, entry, part, session = work.plan, work.entry, work.part, work.session
    tasks, method = plan.tasks_of(entry), plan.method
    rank = method.features(plan.recipe.params) if method.features else None
    n_at_once = min(tasks_at_once(work.device, session.n_threads), session.n_threads)

    def factorise() -> list[Features]:
        assert part is not None, "only linear maps have features"
        shape = part.shape_in(entry.output.shape)
        keys = [
            factor_key(matrix_key(plan.preflight, entry.name, part, index), shape, rank, work.device)
            for index in tasks.present
        ]
        found = features_of(matrices, keys, rank, session.cache, n_at_once, session.n_threads)
        return signed_features(found, tasks.weights) if taken_away else found

    taken_away = min(tasks.weights, default=1.0) < 0
    return Layer(
        SignedMatrices(matrices, tasks.weights) if taken_away else matrices,
        tuple(map(abs, tasks.weights)),
        read_base,
        factorise,
        tasks.idle_weight,
        session.n_threads,
        n_at_once,
        name=part.name_in(entry.name) if part else entry.name,
        task_names=[plan.task_names[index] for index in tasks.present],
        prepared=plan.prepared_for(entry),
        depth=entry.place.depth,
        kind=entry.place.kind,
    )


def _merge_whole(work: LayerWork, layer: Layer) -> MergedLayer:
    """Merge by what needs the whole tensor, at scaling 1, and scale the result: another scaling is quick."""
    cache = work.session.cache
    key = layer_key(work.plan, work.entry, work.part, work.device)
    made = find_layer(cache, key)
    if made is None:
        made = _compute(work, layer)
        put_layer(cache, key, made)
    scaling = scaling_of(work.plan.recipe.params) * work.plan.factor_of(work.entry)
    delta = made.delta if isinstance(made.delta, LowRank) else made.delta.to(work.device)
    delta = _scaled(delta, scaling)
    facts = made.facts
    figures = _figures(facts.measured, scaling)
    figures = replace(figures, ranks=facts.ranks, factorised_by=facts.factorised_by, cached=made.found)
    if facts.solve:
        figures = replace(figures, **vars(facts.solve))
    return MergedLayer(delta, figures)


def _compute(work: LayerWork, layer: Layer) -> CachedLayer:
    method, params = work.plan.method, at_scaling_1(work.plan.recipe.params)
    merged = _call(work, layer, params)
    if work.entry.calibrated:
        merged = calibrated(method, layer, params, merged)
    measured = _measure(layer, merged.delta) if work.entry.measured else None
    if method.features is None:
        return CachedLayer(merged.delta, LayerFacts(merged.solve, measured=measured))
    cut = cut_all([item.factors for item in layer.features()], method.features(params))
    ranks, how = tuple(f.rank for f in cut), tuple(f.how for f in cut)
    return CachedLayer(merged.delta, LayerFacts(merged.solve, ranks, how, measured))


def _scaled(delta: Delta, factor: float) -> Delta:
    """A multiple of a delta, which may be changed."""
    if factor == 1:
        return delta
    return delta * factor if isinstance(delta, LowRank) else delta.mul_(factor)


def _measure(layer: Layer, delta: Delta) -> Measured:
    """What a delta, and the plain average of the same features, keep of each task."""
    features = layer.features()
    factors, lost = [item.factors for item in features], [item.lost for item in features]
    total = sum(layer.weights) + layer.idle_weight
    shares = [f.S * (weight / total) for f, weight in zip(factors, layer.weights, strict=True)]
    average = errors(measure(superposed(factors, shares), factors, lost))
    errors_on = "features kept" if any(lost) else "all features"
    return Measured(tuple(measure(delta, factors, lost)), average, errors_on)


def _figures(measured: Measured | None, scaling: float) -> Figures:
    if measured is None:
        return Figures()
    found = errors(measured.kept, scaling)
    return Figures(
        readout_errors=tuple(found.readout),
        mapping_errors=tuple(found.mapping),
        average_readout_errors=tuple(measured.average.readout),
        average_mapping_errors=tuple(measured.average.mapping),
        errors_on=measured.errors_on,
    )


@contextmanager
def _threads_for(work: LayerWork) -> Iterator[None]:
    """One thread for a few small LoRA pairs: every product takes less time than waking another thread."""
    entry, part = work.entry, work.part
    thin = sum(source.rank for source in entry.sources if isinstance(source, LoraPair))
    if part is None or entry.n_dense or not fits_one_gemm(*part.shape_in(entry.output.shape), thin):
        yield
        return
    with single_threaded(work.session.n_threads):
        yield
