"""The undocumented parts of transformers that the architecture relies on.

These tests fail first when a new version changes one of them. When they and tests/families pass with a newer version,
set CHECKED_WITH to it.
"""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import transformers
from transformers import GPT2Config, GPT2LMHeadModel, GPT2Model, PreTrainedModel, T5Config, T5ForConditionalGeneration
from transformers import core_model_loading as loading
from transformers.conversion_mapping import get_model_conversion_mapping

from sftm_app.architecture.transformers_internals import CHECKED_WITH, has_head, saving_order

MESSAGE = f"transformers {transformers.__version__} differs from {CHECKED_WITH}, which the architecture relies on"


@pytest.mark.parametrize(
    ("function", "parameters"),
    [
        (get_model_conversion_mapping, ["model", "add_legacy"]),
        (
            loading.rename_source_key,
            ["source_key", "weight_renamings", "weight_converters", "base_model_prefix", "meta_state_dict"],
        ),
        (loading.dot_natural_key, ["s"]),
    ],
)
def test_functions_take_what_they_are_given(function: Any, parameters: list[str]) -> None:
    found = list(inspect.signature(function).parameters)
    assert [name for name in found if name in parameters] == parameters, f"{MESSAGE}: {function.__name__} has {found}"


def test_rules_have_the_fields_that_are_read() -> None:
    assert issubclass(loading.PrefixChange, loading.WeightRenaming), MESSAGE
    assert hasattr(PreTrainedModel, "_keys_to_ignore_on_load_unexpected"), MESSAGE
    step = loading.Chunk(dim=0)
    rule = loading.WeightConverter("a", ["b", "c"], operations=[step])
    assert (rule.source_patterns, rule.target_patterns, rule.operations) == (["a"], ["b", "c"], [step]), MESSAGE
    assert (step.dim, loading.Transpose(check_dims=True).check_dims) == (0, True), MESSAGE
    assert {"Chunk", "Transpose", "MergeModulelist"} <= {operation.__name__ for operation in _operations()}, MESSAGE


def _operations() -> list[type]:
    return [found for _, found in inspect.getmembers(loading, inspect.isclass)]


def test_orders_and_heads_of_known_models() -> None:
    small = {"n_layer": 1, "n_head": 1, "n_embd": 4, "vocab_size": 5, "n_positions": 3}
    bare, headed = GPT2Model(GPT2Config(**small)), GPT2LMHeadModel(GPT2Config(**small))
    assert saving_order(bare, ["b", "a"]) == ["b", "a"]
    t5 = T5ForConditionalGeneration(T5Config(d_model=4, d_kv=2, d_ff=4, num_layers=1, num_heads=2, vocab_size=5))
    assert saving_order(headed, ["b", "a"]) == ["b", "a"]
    assert [has_head(model) for model in (bare, headed, t5)] == [False, True, True]
