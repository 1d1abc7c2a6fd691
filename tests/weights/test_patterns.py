"""Regular expressions from files: read as PEFT reads them, in linear time, or refused. (FAULTS A20)"""

from __future__ import annotations

import pickle
import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from peft.utils.other import get_pattern_key

from sftm_app.weights.adapter_config import AdapterConfig, parse_adapter_config
from sftm_app.weights.patterns import MAX_PATTERN, Pattern, PatternTable

MODULES = (
    "model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj", "model.layers.1.mlp.up", "xq_proj",
    "model.layers.11.mlp", "model.layers.0.mlp", "a.mlp.up", "down", "model.h.0", "h.0", "q_proj.x", "h.01",
)  # fmt: skip


@pytest.mark.parametrize(
    "text",
    [
        "q_proj",
        r"layers\.1\..*",
        "^model.layers.0.mlp",
        "mlp.up|down",
        "h.0",
        r".*\.(q|k|v)_proj",
        r"layers\.\d+\.mlp",
        r"^model\.layers\.(?:0|1)\.",
        "[qx]+_proj",
        "h.[^0]{1,2}",
        "up)|(down",
        "",
        "q_proj$",
        r"\bdown",
        "(?:model.)?h.0",
    ],
)
def test_patterns_are_read_as_peft_reads_them(text: str) -> None:
    assert not Pattern(text).fault
    assert [PatternTable({text: 5}).at(module, 8) for module in MODULES] == [
        5 if get_pattern_key([text], module) == text else 8 for module in MODULES
    ]


PIECES = [
    "a",
    "b",
    ".",
    "*",
    "+",
    "?",
    "(",
    ")",
    "|",
    "^",
    "$",
    "\\.",
    "[ab]",
    "[^a]",
    "{2}",
    "{1,}",
    "\\d",
    "\\b",
    "(?:",
    "{",
    "\\",
]


@given(st.lists(st.sampled_from(PIECES), max_size=6).map("".join), st.text("ab.0-_", min_size=1, max_size=6))
def test_what_is_accepted_matches_what_python_matches(text: str, module: str) -> None:
    pattern = Pattern(text)
    if not pattern.fault:
        assert pattern.matches(module) == (re.match(rf"(.*\.)?({text})$", module) is not None)


@pytest.mark.parametrize(
    "text",
    [".?" * 60 + "!", "(a+)+b", "(a|a)*b", "(.*.*)*x", ".*" * 40 + "x", "(.*a){30}!", "(((a*)*)*)*!", "((.*a)*)*q"],
)
def test_a_pattern_that_backtracks_takes_no_time(text: str) -> None:
    """`.?.?...!` froze the whole app: Python's `re` holds the interpreter's lock."""
    started = time.perf_counter()
    config = parse_adapter_config({"r": 1, "lora_alpha": 1, "rank_pattern": {text: 2}})
    found = config.rank_at("a" * 500)
    assert time.perf_counter() - started < 2
    assert found == 1 or config.problems


@pytest.mark.parametrize(
    "text",
    [
        "(?=q)q",
        r"(q)\1",
        "(?i)q",
        "(?P<x>q)",
        r"\p{L}",
        "[[:alpha:]]",
        "q**",
        "q*+",
        "q{,3}",
        "*q",
        "(*q)",
        "q)(*",
        "é",
        "q(",
        "[q",
        "[z-a]",
        "((a{100}){100}){100}",
        "a{1000}",
        "\x00",
        r"\Qa\E",
        "a" * (MAX_PATTERN + 1),
    ],
)
def test_a_pattern_that_is_not_understood_is_refused_with_a_sentence(text: str) -> None:
    assert Pattern(text).fault
    (problem,) = parse_adapter_config({"r": 1, "lora_alpha": 1, "alpha_pattern": {text: 2}}).problems
    assert problem.startswith("alpha_pattern: the pattern ") and "Correct adapter_config.json" in problem


def test_thousands_of_patterns_are_bounded_and_quick() -> None:
    many = {f"model.layers.{index}.mlp": 2 for index in range(4000)}
    started = time.perf_counter()
    config = AdapterConfig(8, 1.0, rank_pattern=many)
    assert [config.rank_at(f"model.layers.{index}.mlp") for index in (0, 3999, 4000)] == [2, 2, 8]
    assert time.perf_counter() - started < 5
    assert parse_adapter_config({"r": 1, "lora_alpha": 1, "rank_pattern": many | {"x": 2}}).problems


def test_a_config_with_compiled_patterns_can_be_sent_to_another_process() -> None:
    config = AdapterConfig(8, 1.0, rank_pattern={"q": 2})
    assert config.rank_at("q") == 2
    assert pickle.loads(pickle.dumps(config)).rank_at("q") == 2
