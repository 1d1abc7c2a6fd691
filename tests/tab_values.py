"""What tests give to the handlers of a tab."""

from __future__ import annotations

from typing import Any


def values_of(owner: Any, inputs: set[Any], **changes: Any) -> dict[Any, Any]:
    """The value of each input, by component, with changes to the components that `owner` has under these names."""
    found = {component: component.value for component in inputs}
    return found | {getattr(owner, name): value for name, value in changes.items()}


def after(values: dict[Any, Any], updates: dict[Any, Any]) -> dict[Any, Any]:
    """The values once updates have reached the page; an update without a value leaves it as it was."""
    now = dict(values)
    for component, update in updates.items():
        if not isinstance(update, dict):
            now[component] = update
        elif "value" in update:
            now[component] = update["value"]
    return now
