"""What is used of transformers beyond its documented interface, as it was found in the version CHECKED_WITH."""

from __future__ import annotations

import torch
import transformers
from transformers import BertConfig, BertForSequenceClassification, GPT2Config, T5Config, ViTConfig

from sftm_app.evaluation.transformers_internals import CHECKED_WITH, bare_class, class_for_task, model_from_tensors

VERSIONS = f"checked with transformers {CHECKED_WITH}, this is {transformers.__version__}"
SMALL = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8, "vocab_size": 11}


def test_a_model_is_built_from_tensors_in_memory() -> None:
    config = BertConfig(**SMALL, num_labels=3)
    wanted = BertForSequenceClassification(config)
    # In half precision, and with a name that older files have.
    state = wanted.state_dict()
    tensors = {name.replace("LayerNorm.weight", "LayerNorm.gamma"): tensor.half() for name, tensor in state.items()}
    model, problems = model_from_tensors(BertForSequenceClassification, config, tensors)
    assert problems == {"missing": [], "unexpected": [], "mismatched": []}, VERSIONS
    for name, parameter in model.named_parameters():
        assert parameter.dtype == torch.float32, VERSIONS
        torch.testing.assert_close(parameter, wanted.get_parameter(name).half().float(), rtol=0, atol=0)


def test_names_that_do_not_fit_are_reported() -> None:
    config = BertConfig(**SMALL, num_labels=3)
    tensors = dict(BertForSequenceClassification(config).state_dict())
    tensors.pop("bert.pooler.dense.bias")
    tensors |= {"classifier.weight": torch.zeros(5, 8), "extra": torch.zeros(2)}
    _, problems = model_from_tensors(BertForSequenceClassification, config, tensors)
    assert problems == {
        "missing": ["bert.pooler.dense.bias"],
        "unexpected": ["extra"],
        "mismatched": ["classifier.weight"],
    }, VERSIONS


def test_the_auto_classes_have_tables_from_configs_to_classes() -> None:
    found = [
        class_for_task("SEQ_CLS", BertConfig()),
        class_for_task("CAUSAL_LM", GPT2Config()),
        class_for_task("SEQ_2_SEQ_LM", T5Config()),
        class_for_task("FEATURE_EXTRACTION", BertConfig()),
        bare_class(ViTConfig()),
    ]
    wanted = ["BertForSequenceClassification", "GPT2LMHeadModel", "T5ForConditionalGeneration", "BertModel", "ViTModel"]
    assert found == wanted, VERSIONS
    assert class_for_task("SEQ_2_SEQ_LM", ViTConfig()) is None and class_for_task("something", BertConfig()) is None
