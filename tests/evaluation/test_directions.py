"""Directions as tokens: which layers read and write the stream, and the scores against explicit matrix products."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from closeness import assert_close
from tiny_models import clip, direction, language, part_of, place_of, shaken, vit
from torch import nn

from sftm_app.architecture.owners import kind_of
from sftm_app.architecture.roles import Part
from sftm_app.evaluation.directions import (
    ELSEWHERE,
    N_SHOWN,
    NO_TOKENS,
    NOT_IN_TEXT,
    Meaning,
    read_meaning,
    token_lenses,
    write_meaning,
)
from sftm_app.evaluation.excitation import EXPERT, NOT_FOUND
from sftm_app.evaluation.residual_stream import gain_of, stream_of

# By the ends of the names of modules: what reads the stream through a norm, what reads it as it is, what writes to it.
LLAMA = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")
NEOX = ("query_key_value", "dense_h_to_4h")
BART = ("q_proj", "k_proj", "v_proj", "fc1")
ROLES: dict[str, tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]] = {
    "gpt2": (("c_attn", "c_fc", "lm_head"), (), ("c_proj",)),
    "llama": ((*LLAMA, "lm_head"), (), ("o_proj", "down_proj")),
    "gemma2": ((*LLAMA, "lm_head"), (), ("o_proj", "down_proj")),
    "olmo2": (("lm_head",), LLAMA, ("o_proj", "down_proj")),
    "neox": ((*NEOX, "lm_head"), (), ("attention.dense", "dense_4h_to_h")),
    "opt": (("q_proj", "k_proj", "v_proj", "fc1", "lm_head"), (), ("out_proj", "fc2")),
    "mixtral": (("q_proj", "k_proj", "v_proj", "gate", "lm_head"), (), ("o_proj",)),
    "bert": ((), ("query", "key", "value", "intermediate.dense", "pooler.dense"), ("output.dense",)),
    "encoder": ((), ("query", "key", "value", "intermediate.dense", "pooler.dense"), ("output.dense",)),
    "t5": (("q", "k", "v", "wi", "lm_head"), (), ("o", "wo")),
    "bart": ((), (*BART, "lm_head"), ("out_proj", "fc2")),
    "mbart": ((*BART, "lm_head"), (), ("out_proj", "fc2")),
}


def ends(path: str, names: tuple[str, ...]) -> bool:
    return any(f".{path}".endswith(f".{name}") for name in names)


@pytest.mark.parametrize("name", ROLES)
def test_which_layers_read_and_write_the_stream(name: str) -> None:
    model, (normed, plain, writers) = language(name), ROLES[name]
    n_seen = 0
    for path, module in model.model.named_modules():
        weight = getattr(module, "weight", None)
        if weight is None or not kind_of(module, "weight", tuple(weight.shape)).startswith("linear"):
            continue
        n_seen += 1
        stream = stream_of(model.model, module, part_of(path), len(model.tokenizer))
        assert stream.ran and stream.embedding is not None
        assert stream.reads == ends(path, normed + plain), path
        assert (stream.read_gain is not None) == ends(path, normed), path
        assert stream.writes == ends(path, writers), path
        assert stream.is_head == ends(path, ("lm_head",)), path
        assert len(stream.write_gains) == (name in ("gemma2", "olmo2") and stream.writes), path
        speaks = hasattr(model.model, "lm_head") and "encoder." not in path
        assert (stream.head is not None) == (stream.writes and speaks), path
        # In BART nothing stands between the stream and the output embedding.
        assert stream.head is None or (stream.head.gain is not None) == (name != "bart"), path
    assert n_seen >= 8


def test_parts_of_a_fused_matrix() -> None:
    """Query, key and value are as wide as the stream, and none of them is added to it."""
    model = language("gpt2")
    module = model.model.transformer.h[0].attn.c_attn
    for start in (0, 16, 32):
        part = Part("part", rows=(start, start + 16), transposed=True)
        stream = stream_of(model.model, module, part, len(model.tokenizer))
        assert stream.reads and not stream.writes
        assert not stream_of(model.model, module, Part(transposed=True), 27).writes


def test_detection_leaves_no_hooks() -> None:
    model = language("t5")
    token_lenses(model, place_of(model, "lm_head"), Part())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.model.modules())


# Scores


def best(scores: np.ndarray, tokenizer: Any) -> tuple[list[str], np.ndarray]:
    order = np.argsort(-scores)[:N_SHOWN]
    return [tokenizer.decode([i]) for i in order.tolist()], scores[order]


def scores_of(table: torch.Tensor, carried: torch.Tensor) -> np.ndarray:
    """By the formula of meaning(), in float64."""
    rows, direction = (tensor.detach().double().numpy() for tensor in (table, carried))
    rows = rows - rows.mean(0)
    return rows @ direction / np.linalg.norm(direction) / np.sqrt((rows**2).sum(1).mean())


def check(found: Meaning, wanted: np.ndarray, tokenizer: Any) -> None:
    assert found.positive is not None and found.negative is not None
    for shown, sign in ((found.positive, 1), (found.negative, -1)):
        tokens, scores = best(sign * wanted, tokenizer)
        assert list(shown.tokens) == tokens
        assert_close(shown.scores, sign * scores, 1e-4)


def test_what_gpt2_reads_goes_back_through_its_layer_norm() -> None:
    model = language("gpt2")
    v, block = direction(16), model.model.transformer.h[1]
    table = model.model.transformer.wte.weight
    for path, norm in (("attn.c_attn", block.ln_1), ("mlp.c_fc", block.ln_2)):
        lenses = token_lenses(model, place_of(model, f"transformer.h.1.{path}"), Part(transposed=True))
        back = norm.weight * v
        found = read_meaning(lenses, v)
        check(found, scores_of(table, back - back.mean()), model.tokenizer)
        assert (
            found.how
            == "Compared with the token vectors of the input embedding, through the norm in front of the layer."
        )
        assert write_meaning(lenses, direction(48)) == Meaning(None, None, f"The write direction {ELSEWHERE}")


def test_what_gpt2_writes_is_what_it_makes_the_model_say() -> None:
    model = language("gpt2")
    u, last = direction(16), model.model.transformer.ln_f
    lenses = token_lenses(model, place_of(model, "transformer.h.0.mlp.c_proj"), Part(transposed=True))
    found = write_meaning(lenses, u)
    check(found, scores_of(model.model.lm_head.weight, (u - u.mean()) * last.weight), model.tokenizer)
    assert found.how == "Compared with the token vectors of the output embedding, through the last norm."
    assert read_meaning(lenses, direction(64)) == Meaning(None, None, f"The read direction {ELSEWHERE}")


def test_a_layer_norm_lets_no_common_part_through() -> None:
    """What is the same in all entries is taken off by the norm, so a direction means the same with it and without."""
    model = language("gpt2")
    lenses = token_lenses(model, place_of(model, "transformer.h.0.mlp.c_proj"), Part(transposed=True))
    u = direction(16)
    plain, shifted = write_meaning(lenses, u), write_meaning(lenses, u + 3)
    assert plain.positive is not None and shifted.positive is not None
    assert plain.positive.tokens == shifted.positive.tokens
    assert_close(plain.positive.scores, shifted.positive.scores)


def test_llama_has_two_tables_and_norms_that_do_not_centre() -> None:
    model = language("llama")
    v, network = direction(16), model.model
    assert network.lm_head.weight is not network.model.embed_tokens.weight
    lenses = token_lenses(model, place_of(model, "model.layers.0.mlp.up_proj"), Part())
    back = network.model.layers[0].post_attention_layernorm.weight * v
    check(read_meaning(lenses, v), scores_of(network.model.embed_tokens.weight, back), model.tokenizer)
    lenses = token_lenses(model, place_of(model, "model.layers.0.self_attn.o_proj"), Part())
    check(write_meaning(lenses, v), scores_of(network.lm_head.weight, network.model.norm.weight * v), model.tokenizer)


def test_gemma2_writes_through_a_norm_of_the_block_and_counts_gains_from_one() -> None:
    model = language("gemma2")
    u, network = direction(16), model.model.model
    lenses = token_lenses(model, place_of(model, "model.layers.1.mlp.down_proj"), Part())
    gain = (1 + network.layers[1].post_feedforward_layernorm.weight) * (1 + network.norm.weight)
    check(write_meaning(lenses, u), scores_of(model.model.lm_head.weight, gain * u), model.tokenizer)


def test_in_bert_the_stream_is_what_the_norms_give() -> None:
    model = language("bert")
    v = direction(16)
    table = model.model.bert.embeddings.word_embeddings.weight
    lenses = token_lenses(model, place_of(model, "bert.encoder.layer.1.attention.self.key"), Part())
    found = read_meaning(lenses, v)
    check(found, scores_of(table, v), model.tokenizer)
    assert found.how == "Compared with the token vectors of the input embedding."
    lenses = token_lenses(model, place_of(model, "bert.encoder.layer.1.output.dense"), Part())
    check(write_meaning(lenses, v), scores_of(table, v), model.tokenizer)


def test_t5_says_nothing_from_its_encoder() -> None:
    model = language("t5")
    v, network = direction(16), model.model
    table = network.shared.weight
    lenses = token_lenses(model, place_of(model, "encoder.block.1.layer.1.DenseReluDense.wo"), Part())
    found = write_meaning(lenses, v)
    check(found, scores_of(table, v), model.tokenizer)
    assert "input embedding" in found.how
    lenses = token_lenses(model, place_of(model, "decoder.block.1.layer.2.DenseReluDense.wo"), Part())
    found = write_meaning(lenses, v)
    last = network.decoder.final_layer_norm.weight
    check(found, scores_of(network.lm_head.weight, last * v), model.tokenizer)
    assert "output embedding" in found.how
    # Keys of the cross-attention read what the encoder gives, behind its own last norm.
    lenses = token_lenses(model, place_of(model, "decoder.block.1.layer.1.EncDecAttention.k"), Part())
    check(read_meaning(lenses, v), scores_of(table, network.encoder.final_layer_norm.weight * v), model.tokenizer)


def test_an_output_embedding_writes_tokens_themselves() -> None:
    model = language("llama")
    lenses = token_lenses(model, place_of(model, "lm_head"), Part())
    u = direction(len(model.tokenizer))
    found = write_meaning(lenses, u)
    check(found, u.double().numpy(), model.tokenizer)
    assert "one number for each token" in found.how


@pytest.mark.parametrize("width", [16, 15])
@pytest.mark.parametrize("centred", [True, False])
def test_gains_are_read_off_any_norm(width: int, centred: bool) -> None:
    norm = shaken(nn.LayerNorm(width) if centred else nn.RMSNorm(width, eps=1e-6))
    found = gain_of(norm, width)
    assert found.centred == centred
    assert_close(found.weight, norm.weight, 1e-4)


# Nothing to say


def test_models_and_layers_without_tokens() -> None:
    images = vit()
    seen = token_lenses(images, place_of(images, "vit.layers.0.mlp.fc1"), Part())
    assert read_meaning(seen, direction(16)) == Meaning(None, None, NO_TOKENS)
    assert write_meaning(seen, direction(24)) == Meaning(None, None, NO_TOKENS)
    both = clip()
    seen = token_lenses(both, place_of(both, "vision_model.encoder.layers.0.mlp.fc1"), Part())
    assert read_meaning(seen, direction(16)) == Meaning(None, None, NOT_IN_TEXT)
    model = language("mixtral")
    assert read_meaning(token_lenses(model, None, Part()), direction(16)).how == NOT_FOUND
    experts = place_of(model, "model.layers.0.mlp.experts", "down_proj")
    assert read_meaning(token_lenses(model, experts, Part("expert 1", expert=1)), direction(16)).how == EXPERT


def test_the_text_tower_of_clip_has_tokens() -> None:
    model = clip()
    v, tower = direction(16), model.model.text_model
    lenses = token_lenses(model, place_of(model, "text_model.encoder.layers.1.self_attn.q_proj"), Part())
    back = tower.encoder.layers[1].layer_norm1.weight * v
    check(
        read_meaning(lenses, v), scores_of(tower.embeddings.token_embedding.weight, back - back.mean()), model.tokenizer
    )


def test_a_table_of_another_width_than_the_stream() -> None:
    """OPT-350m looks its tokens up in a narrower table."""
    model = language("opt", word_embed_proj_dim=8)
    lenses = token_lenses(model, place_of(model, "model.decoder.layers.0.fc1"), Part())
    assert read_meaning(lenses, direction(16)).how == f"The read direction {ELSEWHERE}"


def test_tokens_that_no_tokenizer_knows_are_not_shown() -> None:
    """Tables are often padded to a round number of rows."""
    model = language("llama", vocab_size=40)
    lenses = token_lenses(model, place_of(model, "model.layers.0.mlp.up_proj"), Part())
    v, network = direction(16), model.model.model
    table = network.embed_tokens.weight[: len(model.tokenizer)]
    back = network.layers[0].post_attention_layernorm.weight * v
    check(read_meaning(lenses, v), scores_of(table, back), model.tokenizer)
