"""Odd matrices through every factorisation and every method: no result that is not finite is passed on."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from bench.faults.figures import Figure
from sftm_app.errors import SFTMError
from sftm_app.linalg.low_rank import dense
from sftm_app.linalg.svd import factorise
from sftm_app.methods import METHODS
from sftm_app.methods.base import Features, Layer, Method
from sftm_app.methods.calling import call_method
from sftm_app.methods.params import make_params

N_QUICK, N_FULL = 40, 2_500
KINDS = (
    *("gaussian", "zero", "ones", "rank one", "hilbert", "identical", "nearly identical", "opposed", "huge", "tiny"),
    *("mixed", "decaying", "one zero task", "nan", "infinite"),
)
VARIANTS = ("readout", "mapping", "minimum_variance")


def attack_matrices(quick: bool) -> Figure:
    """Factorise and merge random sets of odd matrices."""
    generator, torch_generator = random.Random(0), torch.Generator().manual_seed(0)
    n_factorised = n_merged = n_refused = 0
    wrong: list[str] = []
    for index in range(N_QUICK if quick else N_FULL):
        matrices, kind = _matrices(generator, torch_generator)
        for D in matrices:
            n_factorised += 1
            wrong += [f"set {index} ({kind}): {said}" for said in _check_factors(D)]
        others = [name for name in METHODS if name != "sftm"]
        cases = [("sftm", {"variant": variant, "calibration": 0.0}) for variant in VARIANTS]
        cases += [("sftm", {}), (generator.choice(others), {}), (generator.choice(others), {})]
        for name, given in cases:
            n_merged += 1
            method = METHODS[name]
            layer = _layer(matrices)
            try:
                params = make_params(method.params, given, "params")
                found = dense(call_method(method, _prepared(method, layer, params), params, matrices[0].shape).delta)
            except SFTMError:
                n_refused += 1
                continue
            except Exception as error:
                wrong.append(f"set {index} ({kind}), {name} {given}: {type(error).__name__}: {error}")
                continue
            if not bool(torch.isfinite(found).all()):
                wrong.append(f"set {index} ({kind}), {name} {given}: passed on what is not finite")
            elif not any(bool(D.any()) for D in matrices) and bool(found.any()):
                wrong.append(f"set {index} ({kind}), {name}: zero tasks gave something")
    note = f"{n_factorised} factorisations, {n_merged} merges of which {n_refused} were refused"
    return Figure("matrices and solves, all methods", n_factorised + n_merged, tuple(wrong), note)


def _check_factors(D: Tensor) -> list[str]:
    try:
        factors = factorise(D)
    except SFTMError:
        return []
    if not bool(torch.isfinite(D).all()):
        return ["factorised NaN or infinity"]
    if not all(bool(torch.isfinite(part).all()) for part in (factors.U, factors.S, factors.Vh)):
        return ["factors are not finite"]
    size = float(D.double().norm())
    error = float(((factors.U.double() * factors.S.double()) @ factors.Vh.double() - D.double()).norm())
    if error > 50 * max(D.shape) * torch.finfo(D.dtype).eps * size:
        return [f"factors are off by {error / size:.1e}"]
    return []


def _layer(matrices: list[Tensor]) -> Layer:
    names = [str(task) for task in range(len(matrices))]
    base = torch.zeros_like(matrices[0])
    return Layer(
        matrices,
        [1.0] * len(matrices),
        lambda: base,
        lambda: [Features(factorise(D)) for D in matrices],
        name="layer",
        task_names=names,
    )


def _prepared(method: Method, layer: Layer, params: Any) -> Layer:
    look = method.prepare(params) if method.prepare else None
    found = [look(lambda D=D: [dense(D)]) for D in layer.task_matrices] if look else []  # type: ignore[misc]
    return replace(layer, prepared=found)


def _matrices(generator: random.Random, torch_generator: torch.Generator) -> tuple[list[Tensor], str]:
    m, n, n_tasks = generator.randint(1, 12), generator.randint(1, 12), generator.randint(1, 4)

    def gaussian() -> Tensor:
        return torch.randn(m, n, generator=torch_generator, dtype=torch.float64)

    kind = generator.choice(KINDS)
    first = gaussian()
    if kind == "zero":
        made = [torch.zeros(m, n)] * n_tasks
    elif kind == "ones":
        made = [torch.ones(m, n)] * n_tasks
    elif kind == "rank one":
        made = [gaussian()[:, :1] @ gaussian()[:1] for _ in range(n_tasks)]
    elif kind == "hilbert":
        made = [1 / (torch.arange(m)[:, None] + torch.arange(n) + 1.0 + task) for task in range(n_tasks)]
    elif kind == "identical":
        made = [first] * n_tasks
    elif kind == "nearly identical":
        made = [first + 10.0 ** -generator.randint(3, 16) * gaussian() for _ in range(n_tasks)]
    elif kind == "opposed":
        made = [first * (-1) ** task for task in range(n_tasks)]
    elif kind == "huge":
        made = [gaussian() * 10.0 ** generator.uniform(20, 37) for _ in range(n_tasks)]
    elif kind == "tiny":
        made = [gaussian() * 10.0 ** -generator.uniform(20, 37) for _ in range(n_tasks)]
    elif kind == "mixed":
        made = [gaussian() * 10.0 ** generator.uniform(-20, 20) for _ in range(n_tasks)]
    elif kind == "decaying":
        made = [gaussian() * torch.logspace(0, -30, n, dtype=torch.float64) for _ in range(n_tasks)]
    else:
        made = [gaussian() for _ in range(n_tasks)]
    made = [D.clone() for D in made]
    if kind == "one zero task":
        made[0].zero_()
    if kind in ("nan", "infinite"):
        made[-1][generator.randrange(m), generator.randrange(n)] = float("nan" if kind == "nan" else "inf")
    return [D.float().contiguous() for D in made], kind
