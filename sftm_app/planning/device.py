"""The devices of this machine."""

from __future__ import annotations

import torch

from sftm_app.devices import DEVICES
from sftm_app.errors import InputError


def available_devices() -> tuple[str, ...]:
    """The names of DEVICES that this machine can compute on, "auto" first."""
    there = {"auto": True, "cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    return tuple(device for device in DEVICES if there[device])


def resolve_device(name: str) -> torch.device:
    """The device of this name; "auto" is the first of cuda, mps, cpu that this machine has.

    Raises:
        InputError: this machine has no such device.
    """
    available = available_devices()
    if name == "auto":
        return torch.device(next(device for device in ("cuda", "mps", "cpu") if device in available))
    if name not in available:
        raise InputError(
            f"device: {name!r} is not available here (torch {torch.__version__} finds {', '.join(available[1:])}). "
            "Choose auto or cpu."
        )
    return torch.device(name)
