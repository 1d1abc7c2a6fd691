"""Attack the app and print a table: python -m bench.faults [--quick] [--headers N] [PART ...]"""

from __future__ import annotations

import argparse
import sys
from functools import partial

import torch

from bench.faults.cancels import attack_cancels
from bench.faults.chaos import attack_chaos
from bench.faults.dependencies import attack_dependencies
from bench.faults.figures import Part, show
from bench.faults.headers import attack_headers
from bench.faults.hostile import attack_files
from bench.faults.kills import attack_kills
from bench.faults.matrices import attack_matrices
from bench.faults.routes import attack_routes
from bench.faults.soak import attack_soak
from bench.machine import machine_line

PARTS: dict[str, Part] = {
    "files": attack_files,
    "headers": attack_headers,
    "kills": attack_kills,
    "matrices": attack_matrices,
    "cancels": attack_cancels,
    "chaos": attack_chaos,
    "routes": attack_routes,
    "soak": attack_soak,
    "dependencies": attack_dependencies,
}


def main() -> None:
    """Run the parts, and exit with 1 if a promise is broken."""
    parser = argparse.ArgumentParser(prog="python -m bench.faults", description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="which attacks (default: all)")
    parser.add_argument("--quick", action="store_true", help="a small part of each, as the tests run it")
    parser.add_argument("--headers", type=int, metavar="N", help="how many headers to mutate (default: 100000)")
    options = parser.parse_args()
    torch.set_num_threads(1)  # copies of this process are made, and threads are not copied
    parts = PARTS | ({"headers": partial(attack_headers, n=options.headers)} if options.headers else {})
    print(machine_line(), end="\n\n")
    sys.exit(show(((name, parts[name]) for name in options.parts or parts), options.quick) > 0)


if __name__ == "__main__":
    main()
