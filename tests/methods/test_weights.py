"""What task weights mean to a method, and so to the calibration of its delta."""

from __future__ import annotations

import pytest
import torch
from closeness import assert_close
from method_cases import delta_of, layer_of, random_matrices

from sftm_app.methods import METHODS
from sftm_app.methods.base import Merged, Method
from sftm_app.methods.calling import calibrated, call_method
from sftm_app.methods.params import CommonParams, common_of

SHAPE = (9, 7)
EACH = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)


@EACH
def test_only_where_weights_are_shares_their_sum_does_not_matter(method: Method) -> None:
    base, *matrices = random_matrices(1 + (method.n_tasks or 3), SHAPE)
    weights = [1.0, 0.5, 2.0][: len(matrices)]
    one, twice = (
        delta_of(method.merge(layer_of(matrices, [c * w for w in weights], base), method.params())) for c in (1.0, 2.0)
    )
    same = float((twice - one).abs().max()) <= 1e-5 * float(one.abs().max())
    assert same is method.weights_are_shares


@EACH
def test_every_method_has_the_common_settings(method: Method) -> None:
    assert issubclass(method.params, CommonParams)
    assert common_of(method.params(calibration=0.0)) == CommonParams(), "off, unless the benches say otherwise"
    assert method.name == "sftm" or method.params() == method.params(calibration=0.0, depth=1.0)
    assert method.place_factor(method.params(), 0.3, "mlp") == 1.0


def merged(name: str, weights: list[float], copies: int = 3) -> torch.Tensor:
    """What a calibrated method makes of copies of one task matrix, as multiples of it."""
    method, (D,) = METHODS[name], random_matrices(1, SHAPE)
    params = method.params(calibration=1.0, **({} if name == "average" else {"scaling": 1.0}))
    layer = layer_of([D] * copies, weights)
    return delta_of(calibrated(method, layer, params, call_method(method, layer, params, SHAPE))) / D


@pytest.mark.parametrize(
    ("name", "weights", "multiple"),
    [
        # Each task wants w_t D. The sum gives 3 D, 1.5 D, and (2 + 1) D to tasks that want 2 D and D.
        ("task_arithmetic", [1.0, 1.0, 1.0], 1.0),
        ("task_arithmetic", [0.5, 0.5, 0.5], 0.5),
        ("task_arithmetic", [2.0, 1.0], 3.0 / ((4 * 1.5 + 1 * 3.0) / 5)),
        # A mean gives D, which is what each task wants, whatever the weights are.
        ("average", [1.0, 1.0, 1.0], 1.0),
        ("average", [0.5, 0.5], 1.0),
        ("average", [2.0, 1.0], 1.0),
    ],
)
def test_a_task_wants_its_matrix_as_often_as_its_weight_says(name: str, weights: list[float], multiple: float) -> None:
    assert_close(merged(name, weights, len(weights)), multiple, 1e-4)


def test_without_calibration_nothing_happens() -> None:
    layer = layer_of(random_matrices(2, SHAPE))
    made = Merged(torch.ones(SHAPE))
    assert calibrated(METHODS["average"], layer, METHODS["average"].params(), made) is made
    assert calibrated(METHODS["average"], layer, object(), made) is made, "params of a method defined elsewhere"


@pytest.mark.parametrize(("depth", "share"), [(0.0, 0.25), (0.5, 0.625), (1.0, 1.0), (None, 0.25)])
def test_the_share_of_a_depth_follows_a_line(depth: float | None, share: float) -> None:
    assert CommonParams(depth=0.25).share_at(depth) == pytest.approx(share)
    assert CommonParams().share_at(depth) == 1.0
