"""Models are built in a process with limits, which is offline and runs no code. (FAULTS A13, A20, D5)"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from tiny_checkpoints import change_config

from sftm_app.architecture.architecture import UnknownModelType
from sftm_app.architecture.builder import ArchitectureBuilder
from sftm_app.architecture.reading import read_architecture
from sftm_app.errors import CheckpointError
from sftm_app.weights.checkpoint import open_checkpoint
from sftm_app.weights.json_files import read_json

pytestmark = pytest.mark.apart
BERT = {"model_type": "bert", "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24, "vocab_size": 30}


@pytest.fixture(scope="module")
def builder() -> Iterator[ArchitectureBuilder]:
    builder = ArchitectureBuilder(build_limit_s=20, memory_limit_bytes=1 << 30)
    yield builder
    builder.close()


def read(builder: ArchitectureBuilder, config: dict[str, Any]) -> Any:
    return builder.read(config, [], frozenset())


def test_the_process_answers_as_this_one_would(builder: ArchitectureBuilder, tiny_models: Path) -> None:
    base = open_checkpoint(tiny_models / "base")
    found, expected = builder.read(base.config, base.tensors, frozenset()), read_architecture(base.config, base.tensors)
    assert found == expected and list(found.owners) == list(expected.owners)


def test_refusals_keep_their_kind(builder: ArchitectureBuilder) -> None:
    with pytest.raises(UnknownModelType, match="not known to transformers"):
        read(builder, {"model_type": "no-such-model"})
    with pytest.raises(CheckpointError, match="quantis"):
        read(builder, {**BERT, "quantization_config": {"bits": 4}})


def test_a_config_that_takes_too_much_memory_or_time_is_refused(builder: ArchitectureBuilder) -> None:
    with pytest.raises(CheckpointError, match=r"cannot be built within 20 seconds and 1 GB of memory"):
        read(builder, {**BERT, "num_labels": 10**8})
    quick = ArchitectureBuilder(build_limit_s=0.2)
    started = time.perf_counter()
    with pytest.raises(CheckpointError, match=r"'bert' model of config.json cannot be built"):
        read(quick, {**BERT, "num_hidden_layers": 10**6})
    assert quick._process is None, "nothing is left running"
    assert time.perf_counter() - started < 120
    assert read(builder, {**BERT, "num_hidden_layers": 1}).keys, "the next question is answered by a new process"


def test_names_that_would_load_code_or_weights_load_nothing(builder: ArchitectureBuilder) -> None:
    plain = read(builder, {**BERT, "num_hidden_layers": 1})
    for odd in (
        {"attn_implementation": "kernels-community/flash-attn2"},
        {"_attn_implementation": "owner/repo"},
        {"auto_map": {"AutoModel": "modeling.Evil"}},
        {"trust_remote_code": True},
        {"use_pretrained_backbone": True, "backbone": "owner/repo"},
    ):
        found = read(builder, {**BERT, "num_hidden_layers": 1, **odd})
        # An entry that loads nothing may still differ from the base's, which is said.
        assert replace(found, settings=plain.settings) == plain, odd


def test_the_process_ends_with_its_builder() -> None:
    builder = ArchitectureBuilder()
    read(builder, {**BERT, "num_hidden_layers": 1})
    assert builder._process is not None
    pid = builder._process.pid
    builder.close()
    assert not psutil.pid_exists(pid)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"num_hidden_layers": 10**4}, "'num_hidden_layers' is 10000, above the limit of 2000"),
        ({"num_hidden_layers": 10**400}, "'num_hidden_layers' is 1000"),
        ({"num_labels": 10**8}, "'num_labels' is 100000000, above the limit of 1000000"),
        ({"text_config": {"n_layer": 10**9}}, "'n_layer' is 1000000000"),
        ({"depths": [2, 10**7]}, "'depths' is 10000000"),
        ({"num_local_experts": 10**5}, "'num_local_experts' is 100000"),
        ({"hidden_size": 10**18}, "'hidden_size' is 1000000000000000000"),
        ({"pad_token_id": -(10**30)}, "'pad_token_id' is -1000"),
    ],
)
def test_sizes_are_bounded_before_anything_is_built(models: Path, values: dict[str, Any], said: str) -> None:
    change_config(models / "base", **values)
    with pytest.raises(CheckpointError, match=said):
        open_checkpoint(models / "base")


def test_json_that_would_take_gigabytes_is_refused(models: Path) -> None:
    file = models / "base" / "config.json"
    nest: Any = 1
    for _ in range(60):
        nest = {"text_config": nest}
    file.write_text(json.dumps({"model_type": "vit", **nest}))
    with pytest.raises(CheckpointError, match="nests tables more than 40 deep"):
        open_checkpoint(models / "base")
    file.write_text('{"a": [' + "[]," * 1_000_001 + "0]}")
    started = time.perf_counter()
    with pytest.raises(CheckpointError, match="lists and tables, more than 1000000"):
        read_json(file)
    assert time.perf_counter() - started < 2


def test_a_backbone_is_never_fetched() -> None:
    """Some classes fetch a backbone's weights unless they are told not to."""
    from transformers import AutoConfig

    from sftm_app.architecture.transformers_internals import parse_config

    given = AutoConfig.for_model("maskformer").to_dict() | {"use_pretrained_backbone": True}
    assert not getattr(parse_config(given), "use_pretrained_backbone", False)
    assert not getattr(parse_config({"model_type": "detr"}), "use_pretrained_backbone", False)
