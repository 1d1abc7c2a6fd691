"""LoRA files of other tools, adapters on experts, and adapters of a part of the base, against direct computation."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tiny_adapters import build, save_adapter
from torch.testing import assert_close

from sftm_app.api import check, merge
from sftm_app.errors import CheckpointError, CompatibilityError, InputError
from sftm_app.weights.checkpoint import open_checkpoint

Tensors = dict[str, torch.Tensor]
PART = "encoder.layers.0.self_attn.q_proj"
NAME = f"{PART}.weight"
A, B = torch.randn(2, 16, generator=torch.Generator().manual_seed(0)), torch.randn(16, 2)
KOHYA = "lora_te_text_model_encoder_layers_0_self_attn_q_proj"


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = hf.CLIPTextConfig(vocab_size=20, max_position_embeddings=16, bos_token_id=0, eos_token_id=1, **sizes)
    hf.CLIPTextModel(config).save_pretrained(tmp_path / "base")
    return tmp_path


def changed(root: Path, task: Path) -> Tensors:
    """What a merge of one task alone adds to each tensor: the task's own change, with this method."""
    out = root / "out"
    merge(root / "base", [{"path": task, "name": "t"}], out, method="task_arithmetic", scaling=1.0)
    base, found = load_file(root / "base" / "model.safetensors"), load_file(out / "model.safetensors")
    return {name: found[name] - base[name] for name in base if not torch.equal(found[name], base[name])}


@pytest.mark.parametrize(
    ("tensors", "metadata", "factor"),
    [
        ({f"{KOHYA}.lora_down.weight": A, f"{KOHYA}.lora_up.weight": B, f"{KOHYA}.alpha": torch.tensor(1.0)}, {}, 0.5),
        ({f"{KOHYA}.lora_down.weight": A, f"{KOHYA}.lora_up.weight": B}, {}, 1.0),
        (
            {
                f"text_encoder.text_model.{PART}.lora_A.weight": A,
                f"text_encoder.text_model.{PART}.lora_B.weight": B,
                "unet.down.to_q.lora_A.weight": A + 1,
                "unet.down.to_q.lora_B.weight": B + 1,
            },
            {},
            1.0,
        ),
        (
            {f"text_encoder.{PART}.lora_A.weight": A, f"text_encoder.{PART}.lora_B.weight": B},
            {"lora_adapter_metadata": json.dumps({"text_encoder.r": 2, "text_encoder.lora_alpha": 6})},
            3.0,
        ),
        (
            {
                f"text_encoder.text_model.{PART}.lora_linear_layer.down.weight": A,
                f"text_encoder.text_model.{PART}.lora_linear_layer.up.weight": B,
            },
            {},
            1.0,
        ),
    ],
    ids=["kohya", "kohya without alpha", "diffusers for two models", "diffusers with metadata", "old diffusers"],
)
def test_single_files(clip: Path, tensors: Tensors, metadata: dict[str, str], factor: float) -> None:
    save_file(tensors, clip / "lora.safetensors", metadata or None)
    found = changed(clip, clip / "lora.safetensors")
    assert set(found) == {NAME}
    assert_close(found[NAME], factor * B @ A)


def test_mlx_keeps_factors_transposed_and_gives_the_factor_itself(clip: Path) -> None:
    (clip / "mlx").mkdir()
    flipped = {f"text_model.{PART}.lora_a": A.T.contiguous(), f"text_model.{PART}.lora_b": B.T.contiguous()}
    save_file(flipped, clip / "mlx" / "adapters.safetensors")
    config: dict[str, Any] = {"fine_tune_type": "lora", "lora_parameters": {"rank": 2, "scale": 20.0}}
    (clip / "mlx" / "adapter_config.json").write_text(json.dumps(config))
    found = changed(clip, clip / "mlx")
    assert set(found) == {NAME}
    assert_close(found[NAME], 20.0 * B @ A)
    for changes, said in (({"fine_tune_type": "dora"}, "'dora'"), ({"lora_parameters": {}}, "gives no `scale`")):
        (clip / "mlx" / "adapter_config.json").write_text(json.dumps(config | changes))
        (problem,) = check(clip / "base", [clip / "mlx"]).problems
        assert said in problem


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        ({f"{KOHYA}.dora_scale": torch.ones(16)}, "uses DoRA"),
        ({f"{KOHYA}.lora_mid.weight": torch.ones(2, 2)}, "uses LoCon with a Tucker core"),
        ({"something.else": torch.ones(2)}, "holds 1 tensors that are no LoRA factors"),
        ({"lora_te_l_9.lora_down.weight": A + 1, "lora_te_l_9.lora_up.weight": B + 1}, "kohya has names of its own"),
    ],
)
def test_what_cannot_be_converted_is_said(clip: Path, extra: Tensors, said: str) -> None:
    save_file({f"{KOHYA}.lora_down.weight": A, f"{KOHYA}.lora_up.weight": B} | extra, clip / "lora.safetensors")
    (problem,) = check(clip / "base", [clip / "lora.safetensors"]).problems
    assert said in problem


def test_a_lora_file_is_no_base_and_peft_needs_its_config(clip: Path) -> None:
    save_file({f"{KOHYA}.lora_down.weight": A, f"{KOHYA}.lora_up.weight": B}, clip / "lora.safetensors")
    with pytest.raises(InputError, match="is a LoRA adapter, which cannot be the base"):
        check(clip / "lora.safetensors", [clip / "base"])
    save_adapter(clip / "peft", "llama", 1)
    (clip / "peft" / "adapter_config.json").unlink()
    with pytest.raises(CheckpointError, match=r"without its adapter_config\.json"):
        open_checkpoint(clip / "peft")


def test_an_adapter_one_folder_down_is_opened(tmp_path: Path) -> None:
    build("llama").save_pretrained(tmp_path / "base")
    save_adapter(tmp_path / "run" / "checkpoint-5", "llama", 1)
    assert open_checkpoint(tmp_path / "run").path == (tmp_path / "run" / "checkpoint-5").resolve()
    save_adapter(tmp_path / "run" / "checkpoint-10", "llama", 2)
    with pytest.raises(CheckpointError, match="It holds several adapters: pick one of checkpoint-10, checkpoint-5"):
        open_checkpoint(tmp_path / "run")


SIZES: dict[str, Any] = {"vocab_size": 30, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
SIZES |= {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}
EXPERTS = {
    "qwen3_moe": ("Qwen3Moe", {"moe_intermediate_size": 12, "num_experts": 3, "num_experts_per_tok": 2}),
    "mixtral": ("Mixtral", {"num_local_experts": 3, "num_experts_per_tok": 2}),
    "gpt_oss": ("GptOss", {"num_local_experts": 3, "num_experts_per_tok": 2}),
}


@pytest.mark.parametrize("family", EXPERTS)
def test_adapters_on_experts_equal_pefts_own_merge(family: str, tmp_path: Path) -> None:
    """Base files have one matrix per expert, or a stack (GPT-OSS: stored transposed)."""
    name, settings = EXPERTS[family]
    torch.manual_seed(0)
    model_class = getattr(hf, f"{name}ForCausalLM")
    model_class(getattr(hf, f"{name}Config")(**SIZES, **settings)).save_pretrained(tmp_path / "base")
    parameters = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    config = LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj"], target_parameters=parameters)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = get_peft_model(model_class.from_pretrained(tmp_path / "base"), config)
        with torch.no_grad():
            for key, weight in model.named_parameters():
                if "lora_" in key:
                    weight.add_(0.2 * torch.randn_like(weight))
        model.save_pretrained(tmp_path / "task")
        expected = model.merge_and_unload().state_dict()
    changed(tmp_path, tmp_path / "task")
    found = model_class.from_pretrained(tmp_path / "out").state_dict()
    for key, tensor in expected.items():
        assert_close(found[key], tensor, msg=key)


def test_a_text_adapter_fits_the_language_model_of_a_vision_language_model(tmp_path: Path) -> None:
    text = hf.LlamaConfig(**SIZES)
    vision = hf.CLIPVisionConfig(
        hidden_size=8, intermediate_size=12, num_hidden_layers=1, num_attention_heads=2, image_size=8, patch_size=4
    )
    torch.manual_seed(0)
    config = hf.LlavaConfig(text_config=text, vision_config=vision, image_token_index=29)
    hf.LlavaForConditionalGeneration(config).save_pretrained(tmp_path / "base")
    hf.LlamaForCausalLM(text).save_pretrained(tmp_path / "llama")
    model = get_peft_model(hf.LlamaForCausalLM(text), LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj"]))
    with torch.no_grad():
        for key, weight in model.named_parameters():
            if "lora_" in key:
                weight.normal_()
    model.save_pretrained(tmp_path / "task")
    found = changed(tmp_path, tmp_path / "task")
    factors = load_file(tmp_path / "task" / "adapter_model.safetensors")
    path = "base_model.model.model.layers.{}.self_attn.q_proj.lora_{}.weight"
    assert len(found) == 2
    for name, change in found.items():
        layer = name.partition("layers.")[2][0]
        assert "language_model" in name
        assert_close(change, 2.0 * factors[path.format(layer, "B")] @ factors[path.format(layer, "A")])


def test_modules_that_the_files_hold_in_one_matrix(tmp_path: Path) -> None:
    """transformers splits Nomic BERT's Wqkv in three; pairs on two of them change their rows."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = hf.AutoModel.from_config(hf.AutoConfig.for_model("nomic_bert", vocab_size=20, **sizes))
    model.save_pretrained(tmp_path / "base")
    (name,) = (name for name in load_file(tmp_path / "base" / "model.safetensors") if name.endswith("Wqkv.weight"))
    linear = [path for path, _ in model.named_modules() if path.endswith(("self_attn.q_proj", "self_attn.v_proj"))]
    factors, expected = {}, torch.zeros(48, 16)
    for path in linear:
        A, B = torch.randn(2, 16), torch.randn(16, 2)
        factors |= {f"base_model.model.{path}.lora_A.weight": A, f"base_model.model.{path}.lora_B.weight": B}
        start = 0 if path.endswith("q_proj") else 32
        expected[start : start + 16] = 2.0 * B @ A
    (tmp_path / "task").mkdir()
    save_file(factors, tmp_path / "task" / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 4}
    (tmp_path / "task" / "adapter_config.json").write_text(json.dumps(settings))
    found = changed(tmp_path, tmp_path / "task")
    assert set(found) == {name}
    assert_close(found[name], expected)


def test_why_an_adapter_of_a_grouped_convolution_cannot_be_merged(tmp_path: Path) -> None:
    config = hf.MobileNetV1Config(depth_multiplier=0.25, image_size=8)
    hf.MobileNetV1Model(config).save_pretrained(tmp_path / "base")
    name = next(
        name
        for name, module in hf.MobileNetV1Model(config).named_modules()
        if isinstance(module, torch.nn.Conv2d) and module.groups > 1
    )
    weight = load_file(tmp_path / "base" / "model.safetensors")[f"{name}.weight"]
    channels = len(weight)
    pair = {"A": torch.zeros(channels, channels, 3, 3), "B": torch.zeros(channels, 1, 1, 1)}
    (tmp_path / "task").mkdir()
    save_file(
        {f"base_model.model.{name}.lora_{half}.weight": factor for half, factor in pair.items()},
        tmp_path / "task" / "adapter_model.safetensors",
    )
    settings = {"peft_type": "LORA", "r": channels, "lora_alpha": channels}
    (tmp_path / "task" / "adapter_config.json").write_text(json.dumps(settings))
    with pytest.raises(CompatibilityError, match=f"is a convolution in {channels} groups. PEFT's A there reads all"):
        merge(tmp_path / "base", [tmp_path / "task"], tmp_path / "out")
