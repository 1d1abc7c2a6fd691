"""Do our methods give what mergekit and FusionBench give? `python -m bench.agreement [--folder F] [--env E]`.

Merges the same small checkpoints (bench.reference, random, nothing is trained) with each tool and compares the merged
weights tensor by tensor. A difference is relative to the tensor's largest change: max |ours - theirs| / max |change|.
Random masks are the same in all tools: ours are given to them (bench.agreement_peers).

Prints a Markdown table; `--every` also prints one row per tensor.
"""

from __future__ import annotations

import argparse
import json
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor

from bench.machine import machine_line
from bench.ours import CACHE, clear
from bench.peer_environment import peer_environment
from bench.reference import Tower, Work, make_towers
from sftm_app.api import merge
from sftm_app.methods.base import Layer
from sftm_app.methods.sparsify import uniform

TOWER = Tower(hidden=96, intermediate=192, layers=2, heads=4, image=32, patch=8)
N_TASKS, SEED = 4, 0
DENSITY, SCALING = 0.5, 0.3
MERGEKIT, FUSION_BENCH = "mergekit", "FusionBench"


@dataclass(frozen=True)
class Comparison:
    """One method in two tools.

    Attributes:
        name: of the files.
        title: what is compared.
        method, params: ours.
        peer: the other tool.
        settings: mergekit's method, and parameters of each task and of the merge; or what FusionBench's function takes.
        differs: what the tools define differently.
    """

    name: str
    title: str
    method: str
    params: Mapping[str, Any]
    peer: str
    settings: Mapping[str, Any]
    differs: str = ""


RANDOM = {"density": DENSITY, "seed": SEED}
OUTLIERS = {"density": 0.15, "gamma": 0.01}
DROPPED = {"density": DENSITY, "weight": 1.0}
L1 = "mergekit scales each tensor back to the sum of its magnitudes; the paper and we divide by the probability"
ABOUT_SHAPES = (
    "FusionBench takes every tensor of two dimensions for a matrix, tables too, and averages convolutions. Here a "
    "matrix is the weight of a linear map, which a convolution is and a table is not."
)
LINE = "mergekit takes the line below an angle of 1.8 degrees, we below 0.00006 degrees"
ONE_MORE = "FusionBench keeps one entry more of each task; it is asked for one less here"
SHAPES = "tables and convolutions (see below)"
MEAN = f"its mean counts all tasks alike, ours weights them by the energy of their responses; {SHAPES}"


def _mergekit(
    name: str,
    title: str,
    ours: tuple[str, Mapping[str, Any]],
    of_task: Mapping[str, Any],
    of_merge: Mapping[str, Any] | None = None,
    method: str = "",
    differs: str = "",
) -> Comparison:
    settings = {"merge_method": method or name, "task": of_task, "merge": of_merge or {}}
    return Comparison(f"mergekit-{name}", title, *ours, MERGEKIT, settings, differs)


def _fusion_bench(
    name: str, title: str, ours: tuple[str, Mapping[str, Any]], settings: Mapping[str, Any], differs: str = ""
) -> Comparison:
    method = settings.get("method", name)
    return Comparison(f"fusionbench-{name}", title, *ours, FUSION_BENCH, {**settings, "method": method}, differs)


COMPARISONS: tuple[Comparison, ...] = (
    _mergekit("task_arithmetic", "task arithmetic", ("task_arithmetic", {"scaling": SCALING}), {"weight": SCALING}),
    _mergekit("ties", "TIES, trimmed tensor by tensor", ("ties", {}), {"density": 0.2, "weight": 1.0}),
    _mergekit(
        "dare_linear",
        "DARE, linear",
        ("dare_linear", {**RANDOM, "scaling": SCALING}),
        DROPPED,
        {"rescale": False, "lambda": SCALING / DENSITY},
    ),
    _mergekit(
        "dare_linear_l1",
        "DARE, linear, mergekit's default",
        ("dare_linear", {**RANDOM, "scaling": SCALING}),
        DROPPED,
        {"lambda": SCALING},
        "dare_linear",
        L1,
    ),
    _mergekit(
        "dare_ties",
        "DARE with TIES",
        ("dare_ties", {**RANDOM, "scaling": 1.0}),
        DROPPED,
        {"rescale": False, "normalize": True, "lambda": 1 / DENSITY},
    ),
    _mergekit(
        "dare_ties_sum",
        "DARE with TIES, mergekit's default",
        ("dare_ties", {**RANDOM, "scaling": 1.0}),
        DROPPED,
        {},
        "dare_ties",
        "the same, and mergekit adds up the entries whose sign wins; the paper's code and we average them",
    ),
    _mergekit("breadcrumbs", "Breadcrumbs", ("breadcrumbs", {**OUTLIERS, "scaling": 0.2}), {**OUTLIERS, "weight": 0.2}),
    _mergekit(
        "breadcrumbs_ties",
        "Breadcrumbs with TIES",
        ("breadcrumbs_ties", {**OUTLIERS, "scaling": 1.0}),
        {**OUTLIERS, "weight": 1.0},
        {"normalize": True},
    ),
    _mergekit(
        "della_linear",
        "DELLA, linear",
        ("della_linear", {**RANDOM, "epsilon": 0.1, "scaling": SCALING}),
        {**DROPPED, "epsilon": 0.1},
        {"lambda": SCALING},
        differs="as for DARE, and ranks in convolutions: within a channel there, within a whole filter here",
    ),
    _mergekit(
        "della",
        "DELLA",
        ("della", {**RANDOM, "epsilon": 0.1, "scaling": 1.0}),
        {**DROPPED, "epsilon": 0.1},
        differs="as for linear DELLA",
    ),
    _mergekit("slerp", "SLERP, two tasks", ("slerp", {}), {}, {"t": 0.5}, differs=LINE),
    _fusion_bench(
        "ties",
        "TIES, trimmed as a whole",
        ("ties", {"trim": "whole task vector"}),
        {"density": 0.2, "scaling": 1.0},
        ONE_MORE,
    ),
    _fusion_bench(
        "dare",
        "DARE, linear",
        ("dare_linear", {**RANDOM, "scaling": SCALING}),
        {"density": DENSITY, "scaling": SCALING},
    ),
    _fusion_bench("tsv_m", "TSV-M", ("tsv_m", {}), {}, SHAPES),
    _fusion_bench("iso_c", "Iso-C", ("iso_c", {}), {}, SHAPES),
    _fusion_bench("iso_cts", "Iso-CTS", ("iso_cts", {}), {"common_space_fraction": 0.8}, SHAPES),
    _fusion_bench(
        "wudi",
        "WUDI",
        ("wudi", {"cutoff": 0.0}),
        {"iter_num": 400},
        f"FusionBench takes 400 steps of Adam, we take the minimum (cut-off 0); {SHAPES}",
    ),
    _fusion_bench(
        "knots",
        "KnOTS with TIES",
        ("knots", {"density": 0.2, "scaling": 1.0}),
        {"density": 0.2},
        f"FusionBench has the basis only; the rest is put together from its TIES. {ONE_MORE}; {SHAPES}",
    ),
    _fusion_bench("svc", "SVC of the sum", ("task_arithmetic", {"scaling": 1.0, "calibration": 1.0}), {}, MEAN),
)


@dataclass(frozen=True)
class Difference:
    """How far one merged tensor is from the other tool's.

    Attributes:
        tensor: its name.
        group: what kind of tensor it is, one of GROUPS.
        relative: the largest difference, relative to the largest change that the other tool made.
        rounding: half the spacing of float32 at the tensor's largest value, relative to the same.
        one_only: the share of entries that one tool changes and the other does not.
    """

    tensor: str
    group: str
    relative: float
    rounding: float
    one_only: float


GROUPS = ("linear layers", "biases and norms", "tables and convolutions")


def group_of(name: str, tensor: Tensor) -> str:
    """What kind of tensor of a CLIP tower it is."""
    if tensor.ndim == 1:
        return GROUPS[1]
    return GROUPS[2] if "embedding" in name else GROUPS[0]


def compare(base: Mapping[str, Tensor], ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> list[Difference]:
    """The differences of all tensors, the largest first."""
    found = []
    for name, origin in base.items():
        mine, wanted = (tensors[name].double() - origin.double() for tensors in (ours, theirs))
        change = float(wanted.abs().max())
        one_only = float((mine.ne(0) != wanted.ne(0)).double().mean())
        rounding = 2.0**-24 * float(theirs[name].abs().max())
        off = float((mine - wanted).abs().max())
        found.append(Difference(name, group_of(name, origin), off / change, rounding / change, one_only))
    return sorted(found, key=lambda one: -one.relative)


def merge_theirs(comparisons: Sequence[Comparison], work: Work, folder: Path, python: Path) -> None:
    """Merge with the other tools, in one process of their Python.

    Raises:
        SystemExit: it failed; names its log.
    """
    files = [str(model / "model.safetensors") for model in (work.base, *work.tasks)]
    uniform_files = [str(file) for file in save_uniform(work, folder)]
    jobs = []
    for one in comparisons:
        clear(folder / one.name)
        job = {"peer": one.peer, "output": str(folder / one.name), "base": files[0], "tasks": files[1:]}
        job["uniform"] = uniform_files
        if one.peer == MERGEKIT:
            config = folder / f"{one.name}.yaml"
            config.write_text(yaml.safe_dump(mergekit_config(one, files), sort_keys=False))
            jobs.append(job | {"settings": str(config)})
        else:
            jobs.append({**job, **one.settings})
    (folder / "jobs.json").write_text(json.dumps(jobs))
    log = folder / "peers.log"
    with log.open("w") as out:
        command = [python, Path(__file__).with_name("agreement_peers.py"), folder / "jobs.json"]
        if subprocess.run(command, stdout=out, stderr=subprocess.STDOUT, check=False).returncode:
            raise SystemExit(f"The other tools failed. {log} has what they printed.")


def mergekit_config(one: Comparison, files: Sequence[str]) -> dict[str, Any]:
    """The file that `mergekit-pytorch` reads. SLERP goes from the first task, its base, to the second."""
    base, *tasks = files[1:3] if one.method == "slerp" else files
    return {
        "merge_method": one.settings["merge_method"],
        "base_model": base,
        "models": [{"model": task, "parameters": dict(one.settings["task"])} for task in tasks],
        "parameters": dict(one.settings["merge"]),
        "dtype": "float32",
    }


def save_uniform(work: Work, folder: Path) -> list[Path]:
    """Save the random numbers that our masks come from, a file for each task."""
    base, files = load_file(work.base / "model.safetensors"), []
    for task in work.tasks:
        numbers = {}
        for name, tensor in base.items():
            layer = Layer([tensor], [1.0], lambda: tensor, list, name=name, task_names=[task.name])  # noqa: B023
            numbers[name] = uniform(layer, 0, SEED, tensor)
        files.append(folder / f"uniform-{task.name}.safetensors")
        save_file(numbers, files[-1])
    return files


def merge_ours(one: Comparison, work: Work, folder: Path) -> dict[str, Tensor]:
    """Our merged tensors."""
    output = folder / f"{one.name}-ours"
    clear(output)
    tasks = work.tasks[:2] if one.method == "slerp" else work.tasks
    merge(work.base, tasks, output, one.method, "cpu", measure="none", **one.params)
    return load_file(output / "model.safetensors")


def row(one: Comparison, found: Sequence[Difference]) -> str:
    """A row of the table."""
    cells = [one.title, one.peer]
    for name in GROUPS:
        group = [item for item in found if item.group == name]
        cells.append(f"{group[0].relative:.0e} ({max(item.rounding for item in group):.0e})" if group else "")
    linear = [item.one_only for item in found if item.group == GROUPS[0]]
    cells += [f"{max(linear):.1%}", one.differs or "nothing"]
    return f"| {' | '.join(cells)} |"


def interference(
    base: Mapping[str, Tensor], tasks: Sequence[Mapping[str, Tensor]], merged: Mapping[str, Tensor]
) -> float:
    """What WUDI minimises: sum_t || (D - D_t) D_t^T ||^2 / ||D_t||^2, over all linear layers."""
    total = 0.0
    for name, origin in base.items():
        if group_of(name, origin) == GROUPS[0]:
            D = merged[name].double() - origin.double()
            for task in tasks:
                change = task[name].double() - origin.double()
                total += float(((D - change) @ change.T).square().sum() / change.square().sum())
    return total


HEAD = (
    f"| method | compared with | {', '.join(GROUPS[:1])}: largest difference (rounding) | {GROUPS[1]} | {GROUPS[2]} | "
    "entries of linear layers that one tool alone changes | defined differently |",
    "|---|---|---:|---:|---:|---:|---|",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=CACHE / "agreement", help="where to make inputs and outputs")
    parser.add_argument("--env", type=Path, default=CACHE / "env", help="the environment of the other tools")
    parser.add_argument("--only", default="", help="names of comparisons, separated by commas")
    parser.add_argument("--every", action="store_true", help="also print a row for each tensor")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.folder.mkdir(parents=True, exist_ok=True)
    work = make_towers(options.folder / "work", TOWER, N_TASKS)
    environment = peer_environment(options.env)
    wanted = set(options.only.split(",")) - {""}
    comparisons = [
        one for one in COMPARISONS if one.peer not in environment.missing and (not wanted or one.name in wanted)
    ]
    for peer, why in environment.missing.items():
        print(f"{peer} cannot be compared: {why}")
    merge_theirs(comparisons, work, options.folder, environment.python)
    base = load_file(work.base / "model.safetensors")
    print(f"{machine_line()}, {N_TASKS} tasks\n\n" + "\n".join(HEAD))
    every, notes = [], []
    tasks = [load_file(task / "model.safetensors") for task in work.tasks]
    for one in comparisons:
        theirs = load_file(options.folder / one.name / "model.safetensors")
        ours = merge_ours(one, work, options.folder)
        found = compare(base, ours, theirs)
        print(row(one, found), flush=True)
        if one.method == "wudi":
            ratio = interference(base, tasks, theirs) / interference(base, tasks, ours)
            notes.append(f"What WUDI minimises is {ratio:.3g} times as large in {one.peer}'s result as in ours.")
        every += [
            f"| {one.title} | {one.peer} | `{item.tensor}` | {item.relative:.1e} | {item.one_only:.2%} |"
            for item in found
        ]
    print("\n" + "\n".join([*notes, ABOUT_SHAPES]))
    if options.every:
        head = "| method | compared with | tensor | largest difference | changed by one only |"
        print("\n".join(["", head, "|---|---|---|---:|---:|", *every]))


if __name__ == "__main__":
    main()
