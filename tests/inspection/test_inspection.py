"""The factors of a layer's task matrices, from the files."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from closeness import assert_close
from inspection_cases import NAME, direct, layer_of, made_of, opened, preflight_of
from safetensors.torch import load_file
from tiny_checkpoints import change_weights

from sftm_app.errors import NumericalError
from sftm_app.inspection.factors import factorise_layer
from sftm_app.inspection.layers import map_layers
from sftm_app.inspection.survey import find_layer
from sftm_app.inspection.what_if import WhatIf
from sftm_app.linalg.factors import Factors
from sftm_app.methods.settings import merge_settings
from sftm_app.planning.recipe import make_recipe


@pytest.mark.parametrize("name", ["embeddings.patch_embeddings.projection.weight", NAME])
def test_factors_are_those_of_the_task_matrices(tiny_models: Path, name: str) -> None:
    found = preflight_of(tiny_models)
    made = factorise_layer(found, layer_of(found, name))
    base, parts = direct(tiny_models, name)
    assert made.base_norm == pytest.approx(np.linalg.norm(base), rel=1e-6)
    for factors, (U, s, Vh) in zip(made.factors, parts, strict=True):
        assert_close(factors.matrix(), (U * s) @ Vh, 5e-6)
    assert made.n_bytes == sum(4 * (f.U.numel() + f.S.numel() + f.Vh.numel()) for f in made.factors)


def test_transposed_weights_are_turned(tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2Model

    config = GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=11, n_positions=6)
    for seed, name in enumerate(("base", "t")):
        torch.manual_seed(seed)
        GPT2Model(config).save_pretrained(tmp_path / name)
    found = opened(make_recipe(tmp_path / "base", [tmp_path / "t"]))
    layer = find_layer(map_layers(found), "h.0.attn.c_attn")
    assert (layer.shape, layer.part.transposed) == ((24, 8), True)
    base, task = (load_file(tmp_path / name / "model.safetensors")[layer.name] for name in ("base", "t"))
    made = factorise_layer(found, layer)
    assert_close(made.factors[0].matrix(), (task - base).T)
    assert_close(made.read_base(), base.T, 1e-7)


def test_a_method_that_asks_for_the_bases_weight_reads_it_from_the_files(tiny_models: Path) -> None:
    found = opened(make_recipe(tiny_models / "base", [tiny_models / "a", tiny_models / "b"]))
    what_if = WhatIf(factorise_layer(found, layer_of(found)))
    prediction = what_if.predict(merge_settings("slerp", {}, (1.0, 3.0)))
    base, parts = direct(tiny_models)
    A, B = (base + (U * s) @ Vh for U, s, Vh in parts[:2])
    omega = np.arccos((A * B).sum() / np.linalg.norm(A) / np.linalg.norm(B))
    D = (np.sin(0.25 * omega) * A + np.sin(0.75 * omega) * B) / np.sin(omega) - base
    assert_close(what_if.spectrum(prediction), np.linalg.svd(D, compute_uv=False))
    assert prediction.norm == pytest.approx(np.linalg.norm(D), rel=1e-4)
    for factors, read, (U, _, Vh) in zip(what_if.made.factors, prediction.readouts, parts[:2], strict=True):
        signs = np.sign((factors.U.numpy() * U).sum(0)) * np.sign((factors.Vh.numpy() * Vh).sum(1))
        assert_close(read, signs * ((U.T @ D) * Vh).sum(1))


def test_nan_is_refused_by_name(models: Path) -> None:
    change_weights(models / "b" / "model.safetensors", lambda tensors: tensors[f"vit.{NAME}"].fill_(math.nan))
    found = preflight_of(models)
    with pytest.raises(NumericalError, match=f"b/model.safetensors: tensor 'vit.{NAME}' holds 384".replace(".", r"\.")):
        factorise_layer(found, layer_of(found))


def test_factors_are_not_compared_by_value() -> None:
    """Dataclasses of tensors compare by identity; comparing tensors would raise."""
    factors = Factors(torch.eye(2), torch.ones(2), torch.eye(2), "")
    assert factors == factors
    assert made_of(torch.eye(2)) != made_of(torch.eye(2))
