"""SFTM Studio: merge fine-tuned models by superposing their singular features.

    from sftm_app import merge, inspect, check, extract, search, pick_scaling

The functions are loaded when first used: torch takes seconds, and `sftm --help` does not need it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sftm_app.api import check, extract, inspect, merge, pick_scaling, search

__version__ = "0.2.0"
__all__ = ["__version__", "check", "extract", "inspect", "merge", "pick_scaling", "search"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from sftm_app import api

        return getattr(api, name)
    raise AttributeError(f"module 'sftm_app' has no attribute {name!r}")
