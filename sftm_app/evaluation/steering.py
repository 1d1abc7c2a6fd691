"""Switch off or scale singular features of a built model, without touching the model or its files."""

from __future__ import annotations

from torch import Tensor, nn

from sftm_app.architecture.roles import Part
from sftm_app.errors import SampleError
from sftm_app.evaluation.locating import Model, locate, share_weights
from sftm_app.linalg.low_rank import LowRank, add_to


def steered(model: Model, tensor: Tensor, part: Part, change: LowRank, name: str = "") -> Model:
    """Add a change to one linear map of a model.

    A parameter that is tied to others changes wherever it is used, as it would in a file.

    Args:
        model: the model, which stays as it is.
        tensor: the stored tensor that holds the linear map, as the model was built from it; see `ModelPool.tensor`.
        part: the linear map in that tensor.
        change: (m, n), added to the linear map.
        name: the tensor's name, see `locate`.

    Returns:
        A model that shares all other weights with `model`.

    Raises:
        SampleError: the model does not hold the tensor as one parameter.
    """
    place = locate(model.model, tensor, name)
    if place is None:
        raise SampleError(
            f"This layer cannot be steered: {type(model.model).__name__} holds no parameter with the values of "
            f"{name or 'this tensor'}: it was combined with others or left out on loading. Choose another layer."
        )
    weight = place.parameter.detach().clone()
    add_to(part.of(weight), change)
    return share_weights(model, {place.parameter: nn.Parameter(weight, requires_grad=False)})
