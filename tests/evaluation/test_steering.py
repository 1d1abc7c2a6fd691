"""Steered models against models whose weights were edited by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from closeness import assert_close
from tiny_models import clip, direction, language, vit

from sftm_app.architecture.roles import Part
from sftm_app.errors import SampleError
from sftm_app.evaluation.samples import ImageSamples, Samples, TextSamples
from sftm_app.evaluation.steering import steered
from sftm_app.linalg.low_rank import LowRank

TEXTS = TextSamples(("the cat sat on", "a big red"), (None, None), (" mat", " sky"))
NAMES = ("cat", "big_dog", "red bird")
IMAGES = ImageSamples(np.random.default_rng(0).integers(0, 256, (3, 8, 8)).astype(np.uint8), np.full(3, -1), NAMES)


def change_of(m: int, n: int) -> LowRank:
    left, right = [direction(m, 1), direction(m, 2)], [direction(n, 3), direction(n, 4)]
    return LowRank(2 * torch.stack(left, 1), torch.stack(right))


CASES: list[tuple[str, str, Part, Samples]] = [
    ("bert", "bert.encoder.layer.0.attention.self.query.weight", Part(), TextSamples(TEXTS.inputs, TEXTS.targets)),
    ("gpt2", "transformer.h.1.mlp.c_proj.weight", Part(transposed=True), TEXTS),
    ("gpt2", "transformer.h.0.attn.c_attn.weight", Part("value", rows=(32, 48), transposed=True), TEXTS),
    ("gpt2", "lm_head.weight", Part(), TEXTS),
    ("t5", "decoder.block.0.layer.1.EncDecAttention.v.weight", Part(), TEXTS),
    ("mixtral", "model.layers.0.mlp.experts.down_proj", Part("expert 1", expert=1), TEXTS),
    ("vit", "vit.embeddings.patch_embeddings.projection.weight", Part(), IMAGES),
    ("clip", "vision_model.encoder.layers.0.mlp.fc1.weight", Part(), IMAGES),
    ("clip", "text_model.encoder.layers.0.mlp.fc1.weight", Part(), IMAGES),
]


def built(name: str) -> Any:
    return {"vit": vit, "clip": clip}[name]() if name in ("vit", "clip") else language(name)


def scores(model: Any, samples: Samples) -> np.ndarray:
    return np.array([answer.scores for answer in model.answer(samples)])


@pytest.mark.parametrize(("name", "parameter", "part", "samples"), CASES, ids=lambda value: str(value)[:40])
def test_a_steered_model_is_one_with_the_edited_weight(name: str, parameter: str, part: Part, samples: Samples) -> None:
    model = built(name)
    before = scores(model, samples)
    state = {key: value.clone() for key, value in model.model.state_dict().items()}
    tensor = dict(model.model.named_parameters(remove_duplicate=False))[parameter].detach().clone()
    change = change_of(*part.of(tensor).shape)

    other = steered(model, tensor, part, change, parameter)

    by_hand = built(name)
    edited = tensor.clone()
    part.of(edited).add_(change.left @ change.right)
    with torch.no_grad():
        dict(by_hand.model.named_parameters(remove_duplicate=False))[parameter].copy_(edited)
    wanted = scores(by_hand, samples)
    assert abs(wanted - before).max() > 1e-3, "the change is seen"
    assert_close(scores(other, samples), wanted)
    np.testing.assert_array_equal(scores(model, samples), before)
    for key, value in model.model.state_dict().items():
        assert torch.equal(value, state[key]), key


def test_a_feature_switched_off_in_a_model_of_half_precision() -> None:
    """Its tensor is stored in half precision, and the built model holds the same values in float32."""
    model = language("bert")
    name = "bert.encoder.layer.1.intermediate.dense.weight"
    stored = model.model.get_parameter(name).detach().half()
    with torch.no_grad():
        model.model.get_parameter(name).copy_(stored)
    U, S, Vh = torch.linalg.svd(stored.float(), full_matrices=False)
    off = steered(model, stored, Part(), LowRank(-U[:, :1] * S[0], Vh[:1])).model.get_parameter(name)
    assert_close(torch.linalg.svdvals(off)[:-1], S[1:])
    assert torch.linalg.svdvals(off)[-1] < 1e-5 * S[0]


def test_only_the_changed_weight_takes_memory() -> None:
    model = language("llama")
    name = "model.layers.0.mlp.down_proj.weight"
    other = steered(model, model.model.get_parameter(name).detach(), Part(), change_of(16, 24))
    pairs = zip(other.model.named_parameters(), model.model.named_parameters(), strict=True)
    assert [key for (key, ours), (_, theirs) in pairs if ours is not theirs] == [name]


def test_heads_that_were_made_from_names_are_not_taken_over() -> None:
    model = clip()
    head = model.head(NAMES)
    name = "text_model.encoder.layers.1.mlp.fc2.weight"
    other = steered(model, model.model.get_parameter(name).detach(), Part(), change_of(16, 24))
    assert not torch.allclose(other.head(NAMES), head, atol=1e-3)
    assert model.head(NAMES) is head


def test_a_tensor_that_the_model_does_not_hold_is_refused() -> None:
    with pytest.raises(SampleError, match=r"cannot be steered: LlamaForCausalLM holds no parameter .* of expert\.w1"):
        steered(language("llama"), torch.ones(24, 16), Part(), change_of(24, 16), "expert.w1")
