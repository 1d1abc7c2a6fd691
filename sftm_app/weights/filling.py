"""Bytes of a file into a tensor that is there already."""

from __future__ import annotations

import os
from io import FileIO
from threading import Lock

import torch
from torch import Tensor


def fill(tensor: Tensor, file: FileIO, offset: int, lock: Lock) -> None:
    """Read a contiguous tensor's bytes from `offset` on. lock: of the file's position, which not every system needs.

    Raises
        OSError: the file ends too early, or cannot be read.
    """
    wanted: memoryview = tensor.reshape(-1).view(torch.uint8).numpy().data
    while wanted:
        # One call gives at most 2 GiB on Linux, and refuses to be asked for as much on macOS.
        if hasattr(os, "preadv"):
            n_read = os.preadv(file.fileno(), [wanted[: 1 << 30]], offset)
        else:
            with lock:
                file.seek(offset)
                n_read = file.readinto(wanted)
        if not n_read:
            raise OSError("it is cut off")
        wanted, offset = wanted[n_read:], offset + n_read
