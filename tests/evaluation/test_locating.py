"""Tensors of files in built models, found by their values."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from pools import pool_of
from tiny_checkpoints import save_task
from tiny_language import VOCABULARY, save_set, save_tokenizer
from tiny_models import direction, language, place_of, vit
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, GPT2Config, GPT2LMHeadModel, ViTImageProcessor

from sftm_app.architecture.roles import Role, assign
from sftm_app.errors import InputError
from sftm_app.evaluation.candidates import BASE, INDIVIDUAL, ModelPool, method_candidate
from sftm_app.evaluation.locating import locate, share_weights
from sftm_app.evaluation.samples import TextSamples


def linear_maps(model_pool: ModelPool) -> list[str]:
    """The base's tensors that hold linear maps, by their names in its files."""
    found = model_pool._found
    infos = found.base.tensors.items()
    return [name for name, info in infos if assign(info, found.architecture.owners.get(name)).role is Role.MATRIX]


def test_every_linear_map_of_a_vision_transformer_is_found(tiny_models: Path, tmp_path: Path) -> None:
    """In a task of half precision, in a merge, and in the base, whatever transformers calls them in memory."""
    (tmp_path / "base").symlink_to(tiny_models / "base")
    for seed, name in enumerate("ab", start=1):
        save_task(tmp_path / name, tmp_path / "base", seed, 3, torch.float16)
        ViTImageProcessor(size={"height": 8, "width": 8}).save_pretrained(tmp_path / name)
    model_pool = pool_of(tmp_path)
    names = linear_maps(model_pool)
    assert len(names) == 13, "a patch embedding, and six maps in each of two blocks"
    for candidate in (BASE, INDIVIDUAL, method_candidate("average")):
        model = model_pool.model(candidate, "b").model
        places = {name: locate(model, model_pool.tensor(candidate, "b", name), name) for name in names}
        assert all(places.values()) and len({place.name for place in places.values()}) == len(names)
        for name, place in places.items():
            tensor = model_pool.tensor(candidate, "b", name)
            assert place.module is model.get_submodule(place.path) and place.parameter is place.module.weight
            assert torch.equal(place.parameter, tensor.float())
            query = ("query" in name, "q_proj" in place.name or "query" in place.name)
            assert query[0] == query[1], "and it is the right one"
    assert model_pool.tensor(INDIVIDUAL, "b", names[0]).dtype == torch.float16
    with pytest.raises(InputError, match="The base has no tensor 'x'"):
        model_pool.tensor(BASE, "a", "x")
    with pytest.raises(InputError, match="There is no task 'x'"):
        model_pool.tensor(BASE, "x", names[0])


def test_what_an_adapter_changed_is_found(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=VOCABULARY, n_embd=16, n_layer=2, n_head=2, n_positions=32, bos_token_id=1)
    base = GPT2LMHeadModel(config)
    base.save_pretrained(tmp_path / "base")
    save_tokenizer(tmp_path / "base")
    for name in "ab":
        settings = LoraConfig(r=2, target_modules=["c_attn", "c_proj"], task_type="CAUSAL_LM", fan_in_fan_out=True)
        model = get_peft_model(GPT2LMHeadModel.from_pretrained(tmp_path / "base"), settings)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.copy_(torch.randn_like(parameter))
        model.save_pretrained(tmp_path / name)
    model_pool = pool_of(tmp_path)
    for candidate in (INDIVIDUAL, method_candidate("average")):
        built = model_pool.model(candidate, "a").model
        for name in linear_maps(model_pool):
            place = locate(built, model_pool.tensor(candidate, "a", name))
            assert place is not None and place.name == name
    c_attn = "transformer.h.0.attn.c_attn.weight"
    assert not torch.equal(model_pool.tensor(INDIVIDUAL, "a", c_attn), model_pool.tensor(BASE, "a", c_attn))
    c_fc = "transformer.h.0.mlp.c_fc.weight"
    assert torch.equal(model_pool.tensor(INDIVIDUAL, "a", c_fc), model_pool.tensor(BASE, "a", c_fc))


def test_a_base_that_is_stored_without_its_prefix(tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    base = BertForSequenceClassification(BertConfig(vocab_size=VOCABULARY, **sizes)).bert
    save_set(tmp_path, base, BertForSequenceClassification)
    save_tokenizer(tmp_path / "base")
    model_pool = pool_of(tmp_path)
    name = "encoder.layer.1.output.dense.weight"
    place = locate(model_pool.model(INDIVIDUAL, "a").model, model_pool.tensor(INDIVIDUAL, "a", name), name)
    assert place is not None and place.name == f"bert.{name}"


def test_of_equal_tensors_the_one_of_the_most_alike_name_counts() -> None:
    model = nn.ModuleDict({name: nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3)]) for name in ("up", "down")})
    same = torch.zeros(3, 3, dtype=torch.float16)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert locate(model, same, "model.down.1.weight").name == "down.1.weight"
    assert locate(model, same, "model.up.1.weight").name == "up.1.weight"


def test_what_no_parameter_holds_is_not_found() -> None:
    model = vit().model
    weight = place_of(vit(), "vit.layers.0.mlp.fc1").parameter.detach()
    assert locate(model, weight) is not None
    for other in (weight + 1, weight.T, weight[:1], torch.zeros(0, 3)):
        assert locate(model, other) is None
    # One value that is not compared beforehand.
    changed = weight.clone()
    changed[0, 1] += 1
    assert locate(model, changed) is None


def test_a_twin_shares_weights_but_no_modules() -> None:
    model = language("gpt2")
    own = share_weights(model)
    assert own.tokenizer is model.tokenizer and own.model is not model.model
    for (name, ours), (other, theirs) in zip(
        own.model.named_parameters(remove_duplicate=False),
        model.model.named_parameters(remove_duplicate=False),
        strict=True,
    ):
        assert name == other and ours is theirs
    modules = set(model.model.modules())
    assert not any(module in modules for module in own.model.modules())
    samples = TextSamples(("the cat sat",), (None,))
    assert own.answer(samples) == model.answer(samples)
    new = nn.Parameter(torch.outer(direction(27), direction(16)))
    swapped = share_weights(model, {model.model.transformer.wte.weight: new}).model
    assert swapped.lm_head.weight is new and swapped.transformer.wte.weight is new, "a tied one in both places"
    assert model.model.lm_head.weight is model.model.transformer.wte.weight is not new
