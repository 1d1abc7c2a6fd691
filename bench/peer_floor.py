"""Read files and write a copy of the first one: `python peer_floor.py OUTPUT FILE...`. The least any merge must do."""

from __future__ import annotations

import os
import sys

CHUNK = 4 << 20


def main() -> None:
    output, *files = sys.argv[1:]
    with open(output, "wb", buffering=0) as written:
        for index, name in enumerate(files):
            with open(name, "rb", buffering=0) as file:
                while chunk := file.read(CHUNK):
                    if index == 0:
                        written.write(chunk)
        os.fsync(written.fileno())


if __name__ == "__main__":
    main()
