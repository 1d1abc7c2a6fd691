"""Adapters over models with something special: fused maps, experts, composite heads, tied tables."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from closeness import assert_close
from peft import LoraConfig, PeftModel, get_peft_model
from tiny_adapters import SIZE, build, load_adapter, logits, save_adapter
from transformers import (
    BertConfig,
    BertForMaskedLM,
    CLIPConfig,
    CLIPModel,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    MixtralConfig,
    MixtralForCausalLM,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from sftm_app.api import check, merge, merge_recipe
from sftm_app.output.report import Report
from sftm_app.planning.recipe import make_recipe
from sftm_app.session import open_session

TOKENS = torch.tensor([[3, 4, 5, 6], [7, 8, 9, 10]])


def write(root: Path, name: str, tasks: list[Path], kind: str, **recipe: Any) -> Report:
    output = {"kind": kind} | recipe.pop("output", {})
    made = make_recipe(root / "base", tasks, output=output, device="cpu", **recipe)
    return merge_recipe(made, root / name, open_session())


def adapter_of(model: Any, folder: Path, seed: int, **settings: Any) -> Path:
    """A random adapter over any model."""
    adapted = get_peft_model(model, LoraConfig(**({"r": 2, "lora_alpha": 3} | settings)))
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn_like(parameter))
    adapted.save_pretrained(str(folder))
    return folder


def roberta() -> Any:
    return RobertaForSequenceClassification(RobertaConfig(**SIZE, vocab_size=30, num_labels=3))


def distilbert() -> Any:
    return DistilBertForSequenceClassification(
        DistilBertConfig(dim=16, n_layers=2, n_heads=2, hidden_dim=24, vocab_size=30, num_labels=3)
    )


def masked_bert() -> Any:
    return BertForMaskedLM(BertConfig(**SIZE, vocab_size=30))


def mixtral() -> Any:
    return MixtralForCausalLM(
        MixtralConfig(**SIZE, vocab_size=30, num_key_value_heads=1, num_local_experts=4, num_experts_per_tok=2)
    )


MODELS: dict[str, tuple[Any, list[dict[str, Any]]]] = {
    "roberta": (roberta, [{"task_type": "SEQ_CLS", "target_modules": ["query"]}] * 2),
    "distilbert": (
        distilbert,
        [{"task_type": "SEQ_CLS", "target_modules": ["q_lin", "lin1"], "modules_to_save": ["pre_classifier"]}] * 2,
    ),
    "masked bert": (masked_bert, [{"target_modules": ["word_embeddings", "query"]}, {"target_modules": ["dense"]}]),
    "mixtral": (mixtral, [{"target_modules": ["q_proj", "o_proj"]}, {"target_modules": ["v_proj"]}]),
}


def said_by(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(input_ids=TOKENS).logits
    return found


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.filterwarnings("ignore")
def test_model_and_adapter_say_the_same(name: str, tmp_path: Path) -> None:
    make, settings = MODELS[name]

    def fresh() -> Any:
        torch.manual_seed(0)
        return make()

    fresh().save_pretrained(tmp_path / "base")
    tasks = [adapter_of(fresh(), tmp_path / f"{i}", i, **each) for i, each in enumerate(settings, start=1)]
    write(tmp_path, "full", tasks, "model")
    report = write(tmp_path, "adapter", tasks, "adapter")
    assert not [text for text in report.warnings if "cannot carry" in text]
    expected = said_by(type(fresh()).from_pretrained(tmp_path / "full"))
    assert (expected - said_by(fresh())).abs().max() > 1e-3
    base = type(fresh()).from_pretrained(tmp_path / "base")
    assert_close(said_by(PeftModel.from_pretrained(base, str(tmp_path / "adapter"))), expected)
    write(tmp_path, "again", [tmp_path / "adapter"], "model", method="average")
    again = said_by(type(fresh()).from_pretrained(tmp_path / "again"))
    assert_close(again, expected, 1e-4)


def test_fused_maps_merged_apart_are_one_pair_again(tmp_path: Path) -> None:
    build("gpt2").save_pretrained(tmp_path / "base")
    tasks = [save_adapter(tmp_path / f"{seed}", "gpt2", seed, fan_in_fan_out=True) for seed in (1, 2)]
    write(tmp_path, "full", tasks, "model", split_fused=True)
    report = write(tmp_path, "adapter", tasks, "adapter", split_fused=True)
    assert len([record for record in report.tensors if "c_attn" in record.name]) == 6
    expected = logits(type(build("gpt2")).from_pretrained(tmp_path / "full"), "gpt2")
    assert_close(logits(load_adapter(tmp_path / "adapter", "gpt2"), "gpt2"), expected)


def test_experts_of_a_full_fine_tune_are_left_out_by_name(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = mixtral()
    model.save_pretrained(tmp_path / "base")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    model.save_pretrained(tmp_path / "task")
    report = write(tmp_path, "adapter", [tmp_path / "task"], "adapter", method="average", output={"rank": 4})
    left_out = {record.name for record in report.tensors if record.figures.left_out}
    assert any("experts" in name for name in left_out)
    assert any("cannot carry" in text and "experts" in text for text in report.warnings)
    assert not any("self_attn" in name for name in left_out)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        PeftModel.from_pretrained(type(model).from_pretrained(tmp_path / "base"), str(tmp_path / "adapter"))


@pytest.mark.filterwarnings("ignore")
def test_both_towers_of_clip(tmp_path: Path) -> None:
    towers = {"text_config": SIZE | {"vocab_size": 30}, "vision_config": SIZE | {"image_size": 8, "patch_size": 4}}
    torch.manual_seed(0)
    model = CLIPModel(CLIPConfig(**towers, projection_dim=8))
    model.save_pretrained(tmp_path / "base")
    tasks = [
        adapter_of(CLIPModel.from_pretrained(tmp_path / "base"), tmp_path / f"{i}", i, target_modules=targets)
        for i, targets in enumerate((["q_proj", "visual_projection"], ["fc1", "patch_embedding"]), start=1)
    ]
    write(tmp_path, "full", tasks, "model")
    write(tmp_path, "adapter", tasks, "adapter")
    samples = {"input_ids": TOKENS, "pixel_values": torch.randn(2, 3, 8, 8)}
    with torch.no_grad():
        expected = CLIPModel.from_pretrained(tmp_path / "full").eval()(**samples).logits_per_image
        base = CLIPModel.from_pretrained(tmp_path / "base")
        found = PeftModel.from_pretrained(base, str(tmp_path / "adapter")).eval()(**samples).logits_per_image
    assert_close(found, expected)


def test_heads_of_adapters_and_full_checkpoints_are_never_mixed(tmp_path: Path) -> None:
    """One task has more classes than the base: then no task's classifier is merged."""
    model = build("bert")
    model.save_pretrained(tmp_path / "base")
    other = type(model).from_pretrained(tmp_path / "base", num_labels=4, ignore_mismatched_sizes=True)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    other.save_pretrained(tmp_path / "full")
    adapter = save_adapter(tmp_path / "adapter", "bert", 1, task_type="SEQ_CLS")
    found = check(tmp_path / "base", [adapter, tmp_path / "full"])
    assert not found.problems
    assert not any("classifier" in name for match in found.matches for name in match.names)
    assert [len(match.heads) for match in found.matches] == [2, 2]


def test_a_tied_table_that_is_saved_whole_twice(tmp_path: Path) -> None:
    """PEFT saves table and output layer of a tied model under both names; the values are the same."""
    base = {"tie_word_embeddings": True}
    build("llama", **base).save_pretrained(tmp_path / "base")
    model = get_peft_model(build("llama", **base), LoraConfig(r=2, target_modules=["q_proj"]))
    with torch.no_grad():
        model.get_input_embeddings().weight.add_(0.1)
    model.save_pretrained(str(tmp_path / "one"), save_embedding_layers=True)
    found = check(tmp_path / "base", [tmp_path / "one"])
    assert "base_model.model.lm_head.weight" in found.tasks[0].checkpoint.tensors
    assert not found.problems
    assert "model.embed_tokens.weight" in found.matches[0].names
    merge(tmp_path / "base", [tmp_path / "one"], tmp_path / "out", "sftm", "cpu")
    merged = type(build("llama")).from_pretrained(tmp_path / "out")
    assert_close(merged.lm_head.weight, model.get_input_embeddings().weight, 1e-6)
