"""Merge with FusionBench or mergekit: `python agreement_peers.py JOBS.json`. bench.agreement runs it with their Python.

A job names the peer, its method and settings, the weight files of base and tasks, and the file to write. Random masks
are drawn by comparing a uniform number per entry with the probability of keeping it; the numbers come from files, so
that all tools drop the same entries.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

Tensors = dict[str, Tensor]


def mergekit(job: Mapping[str, Any]) -> None:
    """Run its command `mergekit-pytorch`, in this process so that its random masks can be given."""
    adapter = import_module("mergekit.merge_methods.task_adapter")
    command = import_module("mergekit.scripts.merge_raw_pytorch").main
    execute = adapter.ExecuteMergeMethodTask.execute
    uniform = [load_file(file) for file in job.get("uniform", [])]
    drawn: Iterator[Tensor] = iter(())

    def announced(self: Any, *given: Any, **named: Any) -> Any:
        nonlocal drawn
        drawn = (numbers[self.output_weight.name] for numbers in uniform)
        return execute(self, *given, **named)

    def bernoulli(probability: Tensor) -> Tensor:
        return (next(drawn).reshape(probability.shape) < probability).to(probability.dtype)

    adapter.ExecuteMergeMethodTask.execute = announced
    original, torch.bernoulli = torch.bernoulli, bernoulli  # type: ignore[assignment]
    try:
        command([job["settings"], job["output"]], standalone_mode=False)
    finally:
        torch.bernoulli, adapter.ExecuteMergeMethodTask.execute = original, execute


def fusion_bench(job: Mapping[str, Any]) -> None:
    """Call the functions that its merging classes call, on the tensors of the files."""
    base = load_file(job["base"])
    models = [load_file(file) for file in job["tasks"]]
    vectors = [{name: model[name] - tensor for name, tensor in base.items()} for model in models]
    delta = METHODS[job["method"]](base, models, vectors, job)
    merged = {name: tensor + delta[name].detach() for name, tensor in base.items()}
    Path(job["output"]).mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in merged.items()}, Path(job["output"], "model.safetensors"))


def _share(n_entries: int, density: float) -> float:
    """The share to ask FusionBench's TIES for, so that it keeps int(density * n_entries) entries: it keeps one more."""
    return (int(density * n_entries) - 0.5) / n_entries


def _ties(base: Tensors, models: Sequence[Tensors], vectors: Sequence[Tensors], job: Mapping[str, Any]) -> Tensors:
    ties_merging = import_module("fusion_bench.method.ties_merging.ties_merging_utils").ties_merging
    flat = torch.stack([torch.cat([vector[name].flatten() for name in base]) for vector in vectors])
    merged = ties_merging(flat, reset_thresh=_share(flat.shape[1], job["density"]), merge_func="mean")
    parts = merged.split([tensor.numel() for tensor in base.values()])
    return {name: part.reshape(base[name].shape) * job["scaling"] for name, part in zip(base, parts, strict=True)}


def _dare(base: Tensors, models: Sequence[Tensors], vectors: Sequence[Tensors], job: Mapping[str, Any]) -> Tensors:
    drop = import_module("fusion_bench.method.dare.utils").module_random_drop_
    rand_like = torch.rand_like
    for vector, file in zip(vectors, job["uniform"], strict=True):
        numbers = load_file(file)
        drawn = iter(1 - numbers[name] for name in vector)  # it keeps the entries with the large numbers
        torch.rand_like = lambda like, drawn=drawn: next(drawn).reshape(like.shape)  # type: ignore[assignment]
        drop(vector, 1 - job["density"], True)
    torch.rand_like = rand_like
    return {name: sum(vector[name] for vector in vectors) * job["scaling"] for name in base}


def _tsv_m(base: Tensors, models: Sequence[Tensors], vectors: Sequence[Tensors], job: Mapping[str, Any]) -> Tensors:
    utils = import_module("fusion_bench.method.task_singular_vector.utils").TSVM_utils
    merged: Tensors = utils.compute_and_sum_svd_mem_reduction(vectors, accelerator="cpu")
    return merged


def _iso_c(base: Tensors, models: Sequence[Tensors], vectors: Sequence[Tensors], job: Mapping[str, Any]) -> Tensors:
    merged: Tensors = import_module("fusion_bench.method.isotropic_merging.iso_utils").iso_c(vectors, "cpu")
    return merged


def _iso_cts(base: Tensors, models: Sequence[Tensors], vectors: Sequence[Tensors], job: Mapping[str, Any]) -> Tensors:
    iso_cts = import_module("fusion_bench.method.isotropic_merging.iso_utils").iso_cts
    merged: Tensors = iso_cts(vectors, job["common_space_fraction"], "cpu")
    return merged


def _wudi(base: Tensors, models: Sequence[Tensors], vectors: Sequence[Tensors], job: Mapping[str, Any]) -> Tensors:
    wudi = import_module("fusion_bench.method.wudi.wudi").wudi_merging
    merged: Tensors = wudi(vectors, accelerator="cpu", iter_num=job["iter_num"])
    return merged


def _svc(base: Tensors, models: Sequence[Tensors], vectors: Sequence[Tensors], job: Mapping[str, Any]) -> Tensors:
    utils = import_module("fusion_bench.method.singular_value_calibration.utils")
    summed: Tensors = {name: sum(vector[name] for vector in vectors) for name in base}  # type: ignore[misc]
    for name, tensor in base.items():
        if tensor.ndim == 2:
            weights = [model[name] for model in models]
            calibrate = utils.subspace_consistency_spectral_calibration_accelerated
            summed[name] = calibrate(tensor, weights, tensor + summed[name], 1.0, torch.device("cpu")) - tensor
    return summed


def _knots(base: Tensors, models: Sequence[Tensors], vectors: Sequence[Tensors], job: Mapping[str, Any]) -> Tensors:
    align = import_module("fusion_bench.method.knots.knots_utils").subspace_alignment
    ties_merging = import_module("fusion_bench.method.ties_merging.ties_merging_utils").ties_merging
    merged: Tensors = {}
    for name, tensor in base.items():
        changes = [vector[name] for vector in vectors]
        merged[name] = torch.stack(changes).mean(0)
        if tensor.ndim == 2:
            U, S, parts = align(changes)
            flat = torch.stack([(S[:, None] * part).flatten() for part in parts])
            aligned = ties_merging(flat, reset_thresh=_share(flat.shape[1], job["density"]), merge_func="mean")
            merged[name] = U @ aligned.reshape(len(S), -1)
    return merged


METHODS: dict[str, Callable[[Tensors, Sequence[Tensors], Sequence[Tensors], Mapping[str, Any]], Tensors]] = {
    "ties": _ties,
    "dare": _dare,
    "tsv_m": _tsv_m,
    "iso_c": _iso_c,
    "iso_cts": _iso_cts,
    "wudi": _wudi,
    "knots": _knots,
    "svc": _svc,
}


def main() -> None:
    for job in json.loads(Path(sys.argv[1]).read_text()):
        {"mergekit": mergekit, "FusionBench": fusion_bench}[job["peer"]](job)


if __name__ == "__main__":
    main()
