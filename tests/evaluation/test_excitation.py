"""Excitations against hooks and products written out here, one sample at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from closeness import assert_close
from tiny_models import BUILT, clip, direction, language, part_of, place_of, resnet, tokenizer_of, vit
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from sftm_app.architecture.roles import Part
from sftm_app.errors import SampleError
from sftm_app.evaluation.excitation import EXPERT, MEANS, NOT_FOUND, NOT_RUN, NOT_TOLD, Excitations, excitations
from sftm_app.evaluation.family import NO_SAMPLE
from sftm_app.evaluation.samples import ImageSamples, TextSamples
from sftm_app.evaluation.text_model import TEXTS_PER_PASS
from sftm_app.evaluation.tokens import token_texts

TEXTS = ("the cat sat on the mat", "a big red bird flew", "dog", "the small dog ran under a blue sky and sat")
IMAGES = np.random.default_rng(0).integers(0, 256, (70, 8, 8)).astype(np.uint8)
UNKNOWN = np.full(70, -1)


def texts_of(*inputs: str, **settings: Any) -> TextSamples:
    return TextSamples(inputs, (None,) * len(inputs), **settings)


def asked(model: Any, path: str, samples: Any, v: Tensor, **settings: Any) -> Excitations:
    return excitations(model, place_of(model, path), part_of(path), v, samples, **settings)


def inputs_of(module: nn.Module, run: Any) -> list[Tensor]:
    """What goes into a module while `run` runs."""
    seen: list[Tensor] = []
    handle = module.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    try:
        with torch.no_grad():
            run()
    finally:
        handle.remove()
    return seen


def pixels_of(image: np.ndarray) -> Tensor:
    return ((torch.from_numpy(image).float() / 255 - 0.5) / 0.5)[None, None]


def strongest(values: list[np.ndarray]) -> list[int]:
    """Positions by the largest |value|, the largest first."""
    return sorted(range(len(values)), key=lambda i: -abs(values[i]).max())


# Images


def test_a_heat_map_has_a_value_for_each_patch() -> None:
    model, v = vit(), direction(16)
    path = "vit.layers.1.attention.k_proj"
    found = asked(model, path, ImageSamples(IMAGES, UNKNOWN), v, n=70)
    assert found.sentence == MEANS and found.n_samples == 70
    wanted = []
    for image in IMAGES:
        (x,) = inputs_of(model.model.get_submodule(path), lambda image=image: model.model(pixels_of(image)))
        assert x.shape == (1, 5, 16), "the class token and 2 x 2 patches"
        wanted.append((x[0] @ v).numpy())
    order = strongest(wanted)
    assert [shown.sample for shown in found.strongest] == order
    n_class = 0
    for shown in found.strongest:
        values = wanted[shown.sample]
        assert_close(shown.heat, values[1:].reshape(2, 2), 1e-4)
        assert shown.heat.dtype == np.float32 and shown.image.dtype == np.uint8
        np.testing.assert_array_equal(shown.image, IMAGES[shown.sample])
        place = int(abs(values).argmax())
        assert shown.score == pytest.approx(values[place], rel=1e-4) and shown.words is None
        at = (place - 1) // 2 + 1, (place - 1) % 2 + 1
        said = "the class token" if place == 0 else f"row {at[0]}, column {at[1]} of 2 x 2 places"
        assert said in shown.sentence and f"{shown.score:+.3g}" in shown.sentence
        n_class += place == 0
    assert 0 < n_class < 70, "both kinds of sentences were seen"
    assert [shown.sample for shown in asked(model, path, ImageSamples(IMAGES, UNKNOWN), v).strongest] == order[:6]


def test_one_own_image_is_a_set_of_one() -> None:
    model, v = vit(), direction(24)
    samples = ImageSamples(IMAGES[3:4], np.array([-1]))
    (shown,) = asked(model, "vit.layers.0.mlp.fc2", samples, v).strongest
    (x,) = inputs_of(model.model.vit.layers[0].mlp.fc2, lambda: model.model(pixels_of(IMAGES[3])))
    assert_close(shown.heat, (x[0, 1:] @ v).reshape(2, 2), 1e-4)
    assert shown.sample == 0


def test_the_patch_embedding_is_a_convolution_with_the_direction() -> None:
    model, v = vit(), direction(16)
    found = asked(model, "vit.embeddings.patch_embeddings.projection", ImageSamples(IMAGES, UNKNOWN), v, n=2)
    for shown in found.strongest:
        pixels, wanted = pixels_of(IMAGES[shown.sample])[0, 0], torch.zeros(2, 2)
        for row in range(2):
            for column in range(2):
                patch = pixels[4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
                wanted[row, column] = patch.reshape(-1) @ v
        assert_close(shown.heat, wanted, 1e-4)


def test_a_convolution_keeps_its_stride_and_padding() -> None:
    model = resnet()
    path = next(p for p, m in model.model.named_modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (7, 7))
    module = model.model.get_submodule(path)
    assert module.stride == (2, 2) and module.padding == (3, 3)
    v = direction(49)
    for shown in asked(model, path, ImageSamples(IMAGES[:5], UNKNOWN[:5]), v).strongest:
        columns = nn.functional.unfold(pixels_of(IMAGES[shown.sample]), (7, 7), padding=3, stride=2)
        assert_close(shown.heat, (v @ columns[0]).reshape(4, 4), 1e-4)
        assert "of 4 x 4 places" in shown.sentence


def test_a_layer_that_reads_the_whole_image_tells_no_place() -> None:
    model, v = vit(), direction(16)
    found = asked(model, "classifier", ImageSamples(IMAGES[:3], UNKNOWN[:3]), v)
    for shown in found.strongest:
        (x,) = inputs_of(model.model.classifier, lambda shown=shown: model.model(pixels_of(IMAGES[shown.sample])))
        assert shown.score == pytest.approx(float(x[0] @ v), rel=1e-4)
        assert shown.heat is None and "one vector for the whole image" in shown.sentence


def test_only_so_many_samples_are_read_and_of_all_classes() -> None:
    model, v = vit(), direction(16)
    labels = np.repeat([0, 1, 2], [60, 5, 5])
    found = asked(model, "vit.layers.0.mlp.fc1", ImageSamples(IMAGES, labels), v, n=99, limit=6)
    assert found.n_samples == 6
    assert sorted(shown.sample for shown in found.strongest) == [0, 1, 60, 61, 65, 66]
    for shown in found.strongest:
        np.testing.assert_array_equal(shown.image, IMAGES[shown.sample])


# Texts


def joined(words: tuple[tuple[str, float], ...]) -> str:
    return "".join(piece for piece, _ in words)


@pytest.mark.parametrize(
    ("name", "path", "size"),
    [
        ("gpt2", "transformer.h.1.attn.c_attn", 16),
        ("gpt2", "transformer.h.0.mlp.c_proj", 64),
        ("llama", "model.layers.1.mlp.gate_proj", 16),
        ("opt", "model.decoder.layers.1.fc1", 16),
        ("mixtral", "model.layers.1.mlp.gate", 16),
        ("bert", "bert.encoder.layer.1.attention.self.query", 16),
    ],
)
def test_every_token_has_its_value(name: str, path: str, size: int) -> None:
    """Whatever the batch: shorter texts in its batch are padded."""
    model, v = language(name), direction(size)
    found = asked(model, path, texts_of(*TEXTS), v, n=4)
    wanted = []
    for text in TEXTS:
        ids = torch.tensor([model.tokenizer(text)["input_ids"]])
        (x,) = inputs_of(model.model.get_submodule(path), lambda ids=ids: model.model(input_ids=ids))
        wanted.append((x.reshape(-1, size) @ v).numpy())
    assert [shown.sample for shown in found.strongest] == strongest(wanted)
    starts = {"bert": ("<cls>", "<sep>"), "llama": ("<s>", "")}
    for shown in found.strongest:
        assert shown.words is not None and shown.image is None and shown.heat is None
        assert_close([value for _, value in shown.words], wanted[shown.sample], 1e-4)
        start, end = starts.get(name, ("", ""))
        assert joined(shown.words) == start + TEXTS[shown.sample] + end
        assert shown.score == max((value for _, value in shown.words), key=abs)


def test_a_layer_that_is_called_again_shows_its_strongest_call() -> None:
    """ALBERT has one block, which it goes through again and again; and there is more than one batch."""
    model = language("albert")
    path = "encoder.albert_layer_groups.0.albert_layers.0.ffn"
    v, texts = direction(16), TEXTS * 8
    found = asked(model, path, texts_of(*texts), v, n=99)
    assert len(found.strongest) == len(texts) > TEXTS_PER_PASS
    for shown in found.strongest:
        ids = torch.tensor([model.tokenizer(texts[shown.sample])["input_ids"]])
        calls = inputs_of(model.model.get_submodule(path), lambda ids=ids: model.model(input_ids=ids))
        assert len(calls) == 2
        wanted = max(((x[0] @ v).numpy() for x in calls), key=lambda values: abs(values).max())
        assert_close([value for _, value in shown.words], wanted, 1e-4)


def test_a_pass_ends_at_the_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    """From the second batch on, when it is known that the layer is called no second time."""
    model, v = language("gpt2"), direction(16)
    n_heads: list[int] = []
    forward = nn.Linear.forward
    monkeypatch.setattr(nn.Linear, "forward", lambda self, x: n_heads.append(len(x)) or forward(self, x))
    found = asked(model, "transformer.h.1.mlp.c_fc", texts_of(*TEXTS * 12), v, n=99)
    assert len(found.strongest) == 48 and n_heads == [TEXTS_PER_PASS]


def test_a_causal_model_reads_the_right_answer_behind_the_text() -> None:
    model, v = language("gpt2"), direction(16)
    samples = TextSamples(TEXTS[:2], (" red", None))
    found = asked(model, "transformer.h.0.mlp.c_fc", samples, v)
    assert {joined(shown.words) for shown in found.strongest} == {f"{TEXTS[0]} red", TEXTS[1]}
    (empty,) = asked(model, "transformer.h.0.mlp.c_fc", texts_of(""), v).strongest
    assert joined(empty.words) == "<s>"


def test_a_chat_is_read_in_its_template() -> None:
    model, v = language("gpt2"), direction(16)
    template = "{% for m in messages %}<s>red {{ m['content'] }}{% endfor %}"
    chats = type(model)(model.model, tokenizer_of("$A", chat_template=template))
    (shown,) = asked(chats, "transformer.h.0.mlp.c_fc", texts_of("dog", chat=True), v).strongest
    assert joined(shown.words) == "<s>red dog"
    with pytest.raises(SampleError, match="no chat template"):
        asked(model, "transformer.h.0.mlp.c_fc", texts_of("dog", chat=True), v)


@pytest.mark.parametrize("name", ["t5", "bart"])
@pytest.mark.parametrize("target", ["red bird flew on", "red", None])
def test_encoder_and_decoder_are_told_apart(name: str, target: str | None) -> None:
    """Also where both read equally many tokens; keys of the cross-attention read what the encoder gives."""
    model = language(name)
    paths = {
        "t5": ("encoder.block.0.layer.1.DenseReluDense.wi", "decoder.block.0.layer.1.EncDecAttention.k")
        + ("decoder.block.0.layer.1.EncDecAttention.q", "decoder.block.1.layer.2.DenseReluDense.wi"),
        "bart": ("model.encoder.layers.0.fc1", "model.decoder.layers.0.encoder_attn.k_proj")
        + ("model.decoder.layers.0.encoder_attn.q_proj", "model.decoder.layers.1.fc1"),
    }[name]
    text, v = "the cat sat on", direction(16)
    samples = TextSamples((text, "dog"), (target, target))
    tokenizer, start = model.tokenizer, model.model.generation_config.decoder_start_token_id
    said = target if target is not None else model.answer(texts_of(text))[0].text
    answer = tokenizer(text_target=said)["input_ids"]
    ids = [tokenizer(text)["input_ids"], [start, *answer[:-1]]]
    if target is None:
        ids[1] = ids[1][:20]
    for position, path in enumerate(paths):
        found = asked(model, path, samples, v)
        shown = next(e for e in found.strongest if e.sample == 0)
        run = {"input_ids": torch.tensor([ids[0]]), "decoder_input_ids": torch.tensor([ids[1]])}
        (x,) = inputs_of(model.model.get_submodule(path), lambda run=run: model.model(**run))
        if target is None and position > 1:
            # Its own answer is cut; what was read of it are the same tokens.
            n = min(len(shown.words), x.shape[1])
        else:
            n = len(shown.words)
            assert n == len(ids[position > 1])
        wanted = (x[0] @ v)[:n]
        assert_close([value for _, value in shown.words][:n], wanted, 1e-4)
        assert f"what the {'decoder' if position > 1 else 'encoder'} reads" in shown.sentence
        if target is not None and position > 1:
            first = tokenizer.convert_ids_to_tokens(start)
            assert joined(shown.words).startswith(first) and target in joined(shown.words)


def test_a_layer_that_reads_the_whole_text_tells_no_word() -> None:
    model, v = language("bert"), direction(16)
    found = asked(model, "bert.pooler.dense", texts_of(*TEXTS), v, n=4)
    for shown in found.strongest:
        ids = torch.tensor([model.tokenizer(TEXTS[shown.sample])["input_ids"]])
        (x,) = inputs_of(model.model.bert.pooler.dense, lambda ids=ids: model.model(input_ids=ids))
        assert shown.score == pytest.approx(float(x[0] @ v), rel=1e-4)
        assert shown.words is None and "one vector for the whole text" in shown.sentence


def test_a_sentence_encoder_reads_a_query_and_its_candidates() -> None:
    model, v = language("encoder"), direction(16)
    path = "encoder.layer.0.attention.self.value"
    both = asked(model, path, texts_of("\n".join(TEXTS[:2]), TEXTS[2]), v)
    apart = asked(model, path, texts_of(*TEXTS[:3]), v)
    scores = {shown.sample: shown.score for shown in apart.strongest}
    assert {shown.sample: shown.score for shown in both.strongest} == pytest.approx(
        {0: max(scores[0], scores[1], key=abs), 1: scores[2]}, rel=1e-5
    )
    chosen = asked(model, path, texts_of(TEXTS[0], choices=("dog", "sky")), v)
    assert joined(chosen.strongest[0].words) == f"<cls>{TEXTS[0]}<sep>"


def test_the_towers_of_clip_read_images_and_names() -> None:
    model, v = clip(), direction(16)
    images = np.random.default_rng(1).integers(0, 256, (3, 8, 8, 3)).astype(np.uint8)
    samples = ImageSamples(images, np.full(3, -1), ("cat", "big_dog"))
    path = "vision_model.encoder.layers.0.self_attn.q_proj"
    found = asked(model, path, samples, v)
    for shown in found.strongest:
        pixels = torch.from_numpy(images[shown.sample]).permute(2, 0, 1)[None].float() / 127.5 - 1
        (x,) = inputs_of(model.model.get_submodule(path), lambda p=pixels: model.model.get_image_features(p))
        assert_close(shown.heat, (x[0, 1:] @ v).reshape(2, 2), 1e-4)
    path = "text_model.encoder.layers.0.mlp.fc1"
    found = asked(model, path, samples, v)
    assert len(found.strongest) == 2 and all(shown.sample == NO_SAMPLE for shown in found.strongest)
    for shown in found.strongest:
        assert shown.image is None and joined(shown.words).startswith("<s>a<unk>")
        ids = torch.tensor([model.tokenizer("a photo of a cat.")["input_ids"]])
        (x,) = inputs_of(model.model.get_submodule(path), lambda ids=ids: model.model.get_text_features(ids))
        if "cat" in joined(shown.words):
            assert shown.score == pytest.approx(max((x[0] @ v).tolist(), key=abs), rel=1e-4)
    nameless = asked(model, path, ImageSamples(images, np.full(3, -1)), v)
    assert nameless.strongest == () and nameless.sentence == NOT_RUN


# Nothing to see, and what is left behind


def test_what_cannot_be_seen_is_said() -> None:
    model, v = language("mixtral"), direction(16)
    samples = texts_of(*TEXTS)
    assert excitations(model, None, Part(), v, samples).sentence == NOT_FOUND
    place = place_of(model, "model.layers.0.mlp.experts", "down_proj")
    found = excitations(model, place, Part("expert 0", expert=0), v, samples)
    assert (found.strongest, found.sentence, found.n_samples) == ((), EXPERT, 0)
    found = excitations(model, place, Part(), direction(7), samples)
    assert (found.strongest, found.sentence) == ((), NOT_TOLD)
    with pytest.raises(SampleError, match="reads text; these samples are images"):
        asked(model, "lm_head", ImageSamples(IMAGES, UNKNOWN), v)
    model = vit()
    with pytest.raises(SampleError, match="reads images; these samples are texts"):
        asked(model, "classifier", samples, v)


@pytest.mark.parametrize("name", ["gpt2", "t5"])
def test_the_model_itself_keeps_no_hooks(name: str) -> None:
    """Others may be asking it at the same moment."""
    model = language(name)
    before = model.answer(texts_of(*TEXTS))
    asked(model, "lm_head", texts_of(*TEXTS), direction(16))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.model.modules())
    assert model.answer(texts_of(*TEXTS)) == before
    assert BUILT[name][1] == type(model.model).__name__


# Pieces


def bytes_tokenizer() -> Any:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: number for number, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


@pytest.mark.parametrize("text", ["a cat", "naïve 日本", "\U0001f600!", "two\nlines ", "a\ufffdb"])
def test_pieces_put_together_are_the_text(text: str) -> None:
    tokenizer = bytes_tokenizer()
    ids = tokenizer(text)["input_ids"]
    found = token_texts(tokenizer, ids)
    assert len(found) == len(ids) == len(text.encode()) and "".join(found) == text


def test_special_tokens_are_pieces_of_their_own() -> None:
    tokenizer = tokenizer_of("<s> $A </s>")
    assert token_texts(tokenizer, tokenizer("the cat")["input_ids"]) == ["<s>", "the", " cat", "</s>"]
