"""What a person has chosen on the tab, as one value."""

from __future__ import annotations

from dataclasses import dataclass

from sftm_app.evaluation.samples import Samples
from sftm_app.methods.settings import MergeSettings
from sftm_app.ui.inspect.layer_view import LayerView, look
from sftm_app.ui.studio import Studio
from sftm_app.ui.view import Pinned, View
from sftm_app.ui.workspace import Workspace


@dataclass(frozen=True, kw_only=True)
class InspectState(View):
    """The view, and what is not part of an address.

    Attributes:
        top: how many leading features the principal angles are between; None for as many as hold 90 % of the energy.
        where: the labelled samples, see evaluate.labelled.
        sample: the sample that is tried; fitted: the task that the inputs for it suit.
        factor: what the feature is multiplied by.
    """

    ws: Workspace
    settings: MergeSettings
    top: int | None = None
    where: str = ""
    sample: Samples | None = None
    fitted: str = ""
    factor: float = 0.0

    def look(self, studio: Studio) -> LayerView:
        """The layer.

        Raises:
            InputError: there is none of this name.
        """
        return look(studio, self.ws, self.layer)

    @property
    def now(self) -> Pinned:
        """What "Pin this view" keeps."""
        return Pinned(self.layer, self.settings)
