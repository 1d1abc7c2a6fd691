"""From a recipe to a checked, planned and priced merge."""

from __future__ import annotations

from sftm_app.planning.plan import Plan
from sftm_app.planning.planner import make_plan, open_inputs
from sftm_app.planning.recipe import Recipe
from sftm_app.preflight.preflight import Preflight, refuse_unchanged
from sftm_app.session import Session


def prepare(recipe: Recipe, session: Session, found: Preflight | None = None) -> Plan:
    """Check, plan and price a merge. The preview, Start, `check` and the worker all come here, once each.

    Args:
        recipe: what to merge.
        session: what this process may use.
        found: base and tasks, if the caller has opened and compared them for this recipe already.

    Returns:
        A plan. It may be over its memory budget: `planning.budget.check_budget` refuses that.

    Raises:
        InputError: base and tasks do not fit together, a task equals the base, or the settings do not fit the inputs.
    """
    if found is None:
        found = open_inputs(recipe, session).require()
        refuse_unchanged(found)
    return make_plan(recipe, found.require(), session)
