"""Names with what wrappers put before them, and matrices that no module of a known kind owns."""

from __future__ import annotations

import pytest
import torch
import transformers as hf

from sftm_app.architecture.naming import fitting_prefix, plain_names, without_wrappers
from sftm_app.architecture.owners import kind_of
from sftm_app.architecture.reading import read_architecture


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("_orig_mod.lm_head.weight", "lm_head.weight"),
        ("module._orig_mod.module.lm_head.weight", "lm_head.weight"),
        ("_fsdp_wrapped_module.h.0._fsdp_wrapped_module.mlp._checkpoint_wrapped_module.fc.bias", "h.0.mlp.fc.bias"),
        ("model.layers.0.module.weight", "model.layers.0.module.weight"),
        ("module.weight", "module.weight"),
        ("weight", "weight"),
    ],
)
def test_wrappers_are_taken_off(name: str, plain: str) -> None:
    assert without_wrappers(name) == plain


def test_names_that_would_become_one_stay_as_they_are() -> None:
    names = ("_orig_mod.a.weight", "a.weight", "_orig_mod.b.weight")
    assert plain_names(names) == {names[0]: names[0], names[1]: names[1], names[2]: "b.weight"}


def test_the_shortest_prefix_that_fits_best_is_found() -> None:
    known = {"a.weight", "b.weight", "c.weight"}
    names = ["net.inner.a.weight", "net.inner.b.weight", "net.inner.c.weight", "net.extra.weight"]
    assert fitting_prefix(names, lambda names: len(known & set(names))) == "net.inner."
    assert fitting_prefix(sorted(known), lambda names: len(known & set(names))) == ""


@pytest.mark.parametrize(
    ("name", "shape", "kind"),
    [
        ("q", (16, 2, 8), "convolution"),
        ("input_gate_weight", (2, 8, 8), "experts"),
        ("mm_input_projection_weight", (8, 12), "linear"),
        ("r_w_bias", (2, 8), "bare"),
        ("A_log", (16, 4), "bare"),
        ("query_tokens", (1, 4, 8), "bare"),
        ("latents", (4, 8), "bare"),
        ("weight", (1, 1, 8), "bare"),
    ],
)
def test_what_a_composite_module_holds_is_a_matrix_only_by_name_and_shape(
    name: str, shape: tuple[int, ...], kind: str
) -> None:
    class Mixer(torch.nn.Module):
        pass

    assert kind_of(Mixer(), name, shape) == kind


def test_tensors_that_a_class_ignores_are_unused_if_they_look_trained() -> None:
    config = hf.Qwen3NextConfig(num_hidden_layers=1, layer_types=["full_attention"], hidden_size=8, num_experts=2)
    names = ["mtp.layers.0.mlp.gate.weight", "model.norm.weight", "mtp.rotary_emb.inv_freq"]
    found = read_architecture(config.to_dict() | {"architectures": ["Qwen3NextForCausalLM"]}, names)
    assert found.unused == (names[0],)
    assert (found.owners[names[1]].kind, found.owners[names[2]].kind) == ("norm", "buffer")
