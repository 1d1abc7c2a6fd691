"""Which settings of the best method mattered in a search, by PED-ANOVA.

Watanabe, Bansal, Hutter, "PED-ANOVA: Efficiently Quantifying Hyperparameter Importance in Arbitrary Subspaces", IJCAI
2023, arXiv 2304.10255: how much the values of a setting among the best tenth of the trials differ from those among all.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from optuna.exceptions import ExperimentalWarning
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

from sftm_app.tuning.space import METHOD, Space
from sftm_app.tuning.study import Tried, best_of, study_of

# With fewer trials of one method, the best tenth is a single one.
MIN_TRIALS = 15


def importances(space: Space, tried: Sequence[Tried]) -> dict[str, float]:
    """How much each setting of the best trial's method mattered, over all trials with that method.

    Args:
        space: what was searched.
        tried: the trials.

    Returns:
        Shares that sum to 1, by the name of the choice in the space, most important first. Settings that do nothing in
        some of the trials are left out. Empty for fewer than MIN_TRIALS trials.
    """
    best = best_of(tried)
    if best is None:
        return {}
    method = best.settings.method
    same = [one for one in tried if one.settings.method == method and one.score is not None]
    chosen = [space.choices(one.settings) for one in same]
    names = [name for name in space.distributions(method) if name != METHOD]
    varied = [name for name in names if all(name in one for one in chosen) and len({one[name] for one in chosen}) > 1]
    if len(same) < MIN_TRIALS or not varied:
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        found = get_param_importances(study_of(space, same), evaluator=PedAnovaImportanceEvaluator(), params=varied)
    return {name: float(value) for name, value in found.items()}
