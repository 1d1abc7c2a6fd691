"""SFTM on a GPU, layer by layer: `python -m bench.gpu [--device cuda] [--works vit-b-32,7b] [--ranks full,1/T]`.

Task matrices are made up, one shape of a model at a time, and lie in main memory, as they do after reading. The time of
a shape counts as often as the model has it. The method is compared with torch's plain route on the same device (an SVD
of each task by torch.linalg.svd, the whole system, Cholesky, the sum) and with itself on the CPU. Prints a Markdown
table. `off` is the largest relative difference of D* from the CPU's, which should stay below 1e-4.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.machine import machine_line
from sftm_app.engine.features import features_of
from sftm_app.linalg.low_rank import dense
from sftm_app.methods import get_method
from sftm_app.methods.base import Features, Layer
from sftm_app.methods.calling import call_method
from sftm_app.methods.params import make_params


@dataclass(frozen=True)
class Model:
    """A model's linear maps: (m, n) -> how many of them; and how many tasks are merged."""

    maps: dict[tuple[int, int], int]
    n_tasks: int


MODELS = {
    "vit-b-32": Model({(768, 768): 48, (3072, 768): 12, (768, 3072): 13}, 8),
    "vit-l-14": Model({(1024, 1024): 96, (4096, 1024): 24, (1024, 4096): 24, (1024, 588): 1}, 8),
    # Two of 32 layers: all of them would be the same again.
    "7b": Model({(4096, 4096): 8, (11008, 4096): 4, (4096, 11008): 2}, 3),
    "tiny": Model({(80, 80): 2, (160, 80): 1}, 3),
}


@dataclass(frozen=True)
class Measured:
    """All maps of a model by one route: seconds, and the most memory of the GPU (0 on a CPU)."""

    seconds: float
    peak_bytes: int
    changes: tuple[Tensor, ...]  # D* of one map of each shape, on the CPU


def make_changes(shape: tuple[int, int], n_tasks: int) -> list[Tensor]:
    """Task matrices (m, n), float32, whose gains fall from 1 to 0.03, with a part that all tasks share."""
    generator = torch.Generator().manual_seed(shape[0] * shape[1])
    k = min(shape)

    def directions(count: int) -> tuple[Tensor, Tensor]:
        return tuple(torch.linalg.qr(torch.randn(side, count, generator=generator)).Q for side in shape)

    left, right = directions(k // 12)
    shared = left @ right.T
    changes = []
    for _ in range(n_tasks):
        left, right = directions(k)
        changes.append((left * torch.logspace(0, -1.5, k)) @ right.T + 0.7 * shared)
    return changes


def engine(changes: Sequence[Tensor], rank: int | None, device: torch.device) -> Tensor:
    """D* (m, n) on the CPU, by the functions that a merge calls, from changes on the CPU."""
    method = get_method("sftm")
    params = make_params(method.params, {"variant": "readout", "rank": rank}, "params")
    there = [change.to(device) for change in changes]
    n_threads = torch.get_num_threads()

    def factorise() -> list[Features]:
        return features_of(there, [None] * len(there), rank, n_at_once=n_threads, n_threads=n_threads)

    layer = Layer(there, [1.0] * len(there), lambda: torch.zeros_like(there[0]), factorise, n_threads=n_threads)
    return dense(call_method(method, layer, params, there[0].shape).delta).float().cpu()


def plain(changes: Sequence[Tensor], rank: int | None, device: torch.device) -> Tensor:
    """The same by torch's own functions, in float32."""
    parts = [torch.linalg.svd(change.to(device), full_matrices=False) for change in changes]
    U = torch.cat([part.U[:, :rank] for part in parts], dim=1)
    Vh = torch.cat([part.Vh[:rank] for part in parts])
    gains = torch.cat([part.S[:rank] for part in parts])
    lower = torch.linalg.cholesky((U.T @ U).mul_(Vh @ Vh.T))
    return ((U * torch.cholesky_solve(gains[:, None], lower).squeeze(1)) @ Vh).cpu()


Route = Callable[[Sequence[Tensor], "int | None", torch.device], Tensor]


def measure(model: Model, rank: str, route: Route, device: torch.device) -> Measured:
    """Run every shape once (on a GPU once before, to start its libraries), and multiply by how many there are."""
    seconds, changes, peak = 0.0, [], 0
    on_gpu = device.type == "cuda"
    for shape, count in model.maps.items():
        given = make_changes(shape, model.n_tasks)
        kept = None if rank == "full" else max(1, min(shape) // model.n_tasks)
        if on_gpu:
            route(given, kept, device)
            torch.cuda.reset_peak_memory_stats(device)
        started = time.perf_counter()
        changes.append(route(given, kept, device))  # on the CPU, so the GPU is done
        seconds += count * (time.perf_counter() - started)
        peak = max(peak, torch.cuda.max_memory_allocated(device) if on_gpu else 0)
    return Measured(seconds, peak, tuple(changes))


def off(found: Measured, expected: Measured) -> float:
    """The largest relative difference of a D*."""
    pairs = zip(found.changes, expected.changes, strict=True)
    return max(float((one - other).norm() / other.norm()) for one, other in pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--works", default="vit-b-32,vit-l-14,7b", help=f"some of {', '.join(MODELS)}")
    parser.add_argument("--ranks", default="full,1/T")
    parser.add_argument("--no-cpu", action="store_true", help="do not compare with the engine on the CPU")
    options = parser.parse_args()
    device = torch.device(options.device)
    print("| maps of | tasks | rank | engine | torch's plain route | of it | engine, CPU | off | GPU memory | plain |")
    print("|---|---:|---|---:|---:|---:|---:|---:|---:|---:|")
    for name in options.works.split(","):
        for rank in options.ranks.split(","):
            model = MODELS[name]
            ours, other = (measure(model, rank, route, device) for route in (engine, plain))
            cpu = None if options.no_cpu else measure(model, rank, engine, torch.device("cpu"))
            print(
                f"| {name} | {model.n_tasks} | {rank} | {ours.seconds:.2f} s | {other.seconds:.2f} s "
                f"| {ours.seconds / other.seconds:.2f} | {f'{cpu.seconds:.1f} s' if cpu else ''} "
                f"| {f'{off(ours, cpu):.0e}' if cpu else ''} "
                f"| {ours.peak_bytes / 1e6:.0f} MB | {other.peak_bytes / 1e6:.0f} MB |",
                flush=True,
            )
    device_name = torch.cuda.get_device_name(device) if device.type == "cuda" else "no GPU"
    print(f"\n{device_name}. {machine_line()}")


if __name__ == "__main__":
    main()
