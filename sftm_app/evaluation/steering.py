"""Singular features switched off or scaled in a model that is tried, without touching its files or the model itself."""

from __future__ import annotations

from torch import Tensor, nn

from sftm_app.architecture.roles import Part
from sftm_app.errors import SampleError
from sftm_app.evaluation.locating import Model, locate, twin
from sftm_app.linalg.low_rank import LowRank, add_to


def steered(model: Model, tensor: Tensor, part: Part, change: LowRank, name: str = "") -> Model:
    """A model that differs from `model` in one linear map: W + change, (m, n). It shares all other weights with it.

    tensor: the stored tensor that holds W, as `model` was built from it, see ModelPool.tensor; name: its name, see locate.
    A parameter that is tied to others changes wherever it is used, as it would in a file.

    Raises
        SampleError: the model does not hold the tensor as one parameter.
    """
    place = locate(model.model, tensor, name)
    if place is None:
        raise SampleError(
            f"This layer cannot be steered: {type(model.model).__name__} holds no parameter with the values of "
            f"{name or 'this tensor'}. It is put together with others when the model is loaded, or left out. Choose "
            "another layer."
        )
    weight = place.parameter.detach().clone()
    add_to(part.of(weight), change)
    return twin(model, {place.parameter: nn.Parameter(weight, requires_grad=False)})
