"""Merged layers in the cache come back as they were, and what another state of the code wrote is computed again."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from sftm_app.engine.cache import CachedLayer, LayerFacts, Measured, find_layer, put_layer
from sftm_app.linalg.conflicts import Conflict
from sftm_app.linalg.low_rank import Delta, LowRank, dense
from sftm_app.linalg.preservation import Errors, Preservation
from sftm_app.methods.base import SolveFigures
from sftm_app.planning.keys import LayerKey
from sftm_app.session import Session
from sftm_app.weights.disk_cache import Entry

KEY = LayerKey(("a", "b"), "sftm", None, (1.0, 2.0), 0.0, ("x", "y"), True, "cpu")
SOLVE = SolveFigures("direct", 4, 1e-7, math.inf, 0, 2, (Conflict(0, 1, -0.5),))
MEASURED = Measured((Preservation(1.0, 0.0, 0.5, 0.1, 1 / 3),), Errors((0.25,), (math.inf,)), "all features")


@pytest.mark.parametrize("facts", [LayerFacts(), LayerFacts(SOLVE, (2, 3), ("gesdd", "gram"), MEASURED)])
@pytest.mark.parametrize("delta", [torch.arange(6.0).view(2, 3), LowRank(torch.ones(2, 1), torch.ones(1, 3))])
def test_a_layer_comes_back_as_it_was(cached_session: Session, delta: Delta, facts: LayerFacts) -> None:
    cache = cached_session.cache
    assert find_layer(cache, KEY) is None and find_layer(None, KEY) is None and find_layer(cache, None) is None
    put_layer(cache, KEY, CachedLayer(delta, facts))
    found = find_layer(cache, KEY)
    assert found is not None and found.found and found.facts == facts
    assert type(found.delta) is type(delta) and torch.equal(dense(found.delta), dense(delta))
    assert find_layer(cache, dataclasses.replace(KEY, weights=(2.0, 1.0))) is None


@pytest.mark.parametrize(
    "entry",
    [
        Entry({"delta": torch.ones(2, 3)}, {"ranks": "many"}),
        Entry({"delta": torch.ones(2, 3)}, {"measured": {"kept": [[1.0]]}}),
        Entry({"left": torch.ones(2, 1)}, {}),
        Entry({}, {}),
    ],
)
def test_what_another_state_of_the_code_wrote_is_computed_again(cached_session: Session, entry: Entry) -> None:
    assert cached_session.cache is not None
    cached_session.cache.put(KEY.address(cached_session.cache), entry)
    assert find_layer(cached_session.cache, KEY) is None
