"""Models whose tokenizers differ: every row of the merged model is checked against the tokens, one by one (A15)."""

from __future__ import annotations

import html
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tiny_checkpoints import change_config
from tiny_vocabularies import EMBEDDING, HEAD, WORDS, row, save_model, save_tokenizer, save_tuned, weights
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from sftm_app import check, merge
from sftm_app.errors import CompatibilityError, RecipeError
from sftm_app.output.report import load_report
from sftm_app.output.resume import made_from
from sftm_app.pipeline import prepare
from sftm_app.planning.recipe import make_recipe
from sftm_app.session import open_session

QUERY = "model.layers.0.self_attn.q_proj.weight"
ARITHMETIC: dict[str, Any] = {"method": "task_arithmetic", "scaling": 1.0}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    save_model(tmp_path / "base")
    return tmp_path


def tuned(root: Path, name: str, seed: int, added: tuple[str, ...] = (), rows: int | None = None, **more: Any) -> Path:
    folder = save_tuned(root / name, root / "base", seed, rows)
    save_tokenizer(folder, added=added, **more)
    return folder


def merged(root: Path, *tasks: str, **changes: Any) -> Path:
    merge(root / "base", [root / task for task in tasks], root / "out", device="cpu", **{**ARITHMETIC, **changes})
    model, info = AutoModelForCausalLM.from_pretrained(root / "out", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    assert model.config.vocab_size == len(weights(root / "out")[EMBEDDING])
    return root / "out"


def is_sum(root: Path, token: str, *tasks: str, out: str = "out") -> None:
    """The token's rows are the base's plus every task's change of them, or the mean of the tasks' where it is new."""
    known = token in AutoTokenizer.from_pretrained(root / "base").get_vocab()
    for table in (EMBEDDING, HEAD):
        rows = [row(root / task, token, table) for task in tasks]
        if known:
            base = row(root / "base", token, table)
            expected = base + sum(task - base for task in rows)
        else:
            expected = torch.stack(rows).mean(0)
        torch.testing.assert_close(row(root / out, token, table), expected)


def test_equal_tokenizers_change_nothing(root: Path) -> None:
    tuned(root, "a", 1)
    found = check(root / "base", [root / "a"])
    assert not found.base.rows and not found.tokenizers.choosable and not found.tokenizers.notes


def test_a_token_in_the_padding_is_taken_from_its_task(root: Path) -> None:
    tuned(root, "a", 1, ("<tool>",))
    tuned(root, "b", 2)
    out = merged(root, "a", "b")
    for token in WORDS:
        is_sum(root, token, "a", "b")
    is_sum(root, "<tool>", "a")
    assert AutoTokenizer.from_pretrained(out).get_vocab() == AutoTokenizer.from_pretrained(root / "a").get_vocab()
    # Padding without a token is merged as before.
    base, a, b = (weights(root / name)[EMBEDDING][15] for name in ("base", "a", "b"))
    torch.testing.assert_close(weights(out)[EMBEDDING][15], a + b - base)


@pytest.mark.parametrize("method", ["sftm", "average", "ties"])
def test_no_method_mixes_new_rows(root: Path, method: str) -> None:
    tuned(root, "a", 1, ("<tool>",))
    tuned(root, "b", 2)
    merge(root / "base", [root / "a", root / "b"], root / "out", method, "cpu")
    for table in (EMBEDDING, HEAD):
        torch.testing.assert_close(row(root / "out", "<tool>", table), row(root / "a", "<tool>", table))


def test_one_row_with_two_meanings_is_refused_by_name_or_joined(root: Path) -> None:
    tuned(root, "a", 1, ("<tool>",))
    tuned(root, "b", 2, ("<think>",))
    with pytest.raises(CompatibilityError, match=r"row 10 is '<tool>' in a, '<think>' in b.*`tokenizer: union`"):
        merged(root, "a", "b")
    merged(root, "a", "b", tokenizer="union")
    for token in WORDS:
        is_sum(root, token, "a", "b")
    is_sum(root, "<tool>", "a")
    is_sum(root, "<think>", "b")
    tokenizer = AutoTokenizer.from_pretrained(root / "out")
    assert tokenizer.get_vocab() == {**{word: i for i, word in enumerate(WORDS)}, "<tool>": 10, "<think>": 11}
    assert tokenizer.tokenize("w1 <think> w2 <tool>") == ["w1", "<think>", "w2", "<tool>"]
    assert tokenizer.added_tokens_decoder[11].special


def test_the_choice_of_the_base_leaves_new_tokens_out(root: Path) -> None:
    tuned(root, "a", 1, ("<tool>",))
    tuned(root, "b", 2, ("<think>",))
    out = merged(root, "a", "b", tokenizer="base")
    for token in WORDS:
        is_sum(root, token, "a", "b")
    assert torch.equal(weights(out)[EMBEDDING][10], weights(root / "base")[EMBEDDING][10])
    assert len(AutoTokenizer.from_pretrained(out)) == len(WORDS)


@pytest.mark.parametrize("choice", ["base", "union", "task shuffled", "task a"])
def test_words_in_another_order_are_matched_by_word(root: Path, choice: str) -> None:
    tuned(root, "a", 1)
    save_tokenizer(save_tuned(root / "shuffled", root / "base", 2), WORDS[::-1])
    with pytest.raises(CompatibilityError, match="and 5 more"):
        merged(root, "a", "shuffled")
    out = merged(root, "a", "shuffled", tokenizer=choice)
    for token in WORDS:
        is_sum(root, token, "a", "shuffled")
    order = WORDS[::-1] if choice == "task shuffled" else WORDS
    assert AutoTokenizer.from_pretrained(out).convert_ids_to_tokens(range(10)) == order


def test_the_merged_model_says_the_same_in_either_order_of_rows(root: Path) -> None:
    tuned(root, "a", 1)
    save_tokenizer(save_tuned(root / "shuffled", root / "base", 2), WORDS[::-1])
    change_config(root / "shuffled", bos_token_id=1, eos_token_id=0)
    answers = []
    for choice in ("base", "task shuffled"):
        out = merged(root, "a", "shuffled", tokenizer=choice)
        tokenizer, model = AutoTokenizer.from_pretrained(out), AutoModelForCausalLM.from_pretrained(out)
        with torch.no_grad():
            logits = model(**tokenizer("w1 w5 w2", return_tensors="pt")).logits[0, -1]
        answers.append(torch.stack([logits[tokenizer.get_vocab()[word]] for word in WORDS]))
        assert tokenizer.convert_ids_to_tokens(model.config.bos_token_id) == "<s>"
        shutil.rmtree(out)
    torch.testing.assert_close(*answers)


def test_an_enlarged_vocabulary_is_united(root: Path) -> None:
    save_model(root / "base", rows=10)
    tuned(root, "a", 1, ("<tool>",), rows=11)
    tuned(root, "b", 2, ("<tool>", "<think>"), rows=12)
    out = merged(root, "a", "b")
    for token in WORDS:
        is_sum(root, token, "a", "b")
    is_sum(root, "<tool>", "a", "b")
    is_sum(root, "<think>", "b")
    assert len(AutoTokenizer.from_pretrained(out)) == len(weights(out)[EMBEDDING]) == 12


def test_rows_of_tasks_that_did_not_train_them_do_not_count(root: Path) -> None:
    tuned(root, "a", 1, ("<tool>",))
    tuned(root, "b", 2, ("<tool>",))
    values, base = weights(root / "b"), weights(root / "base")
    for table in (EMBEDDING, HEAD):
        values[table][10] = base[table][10]
    save_file(values, root / "b" / "model.safetensors", {"format": "pt"})
    merged(root, "a", "b")
    is_sum(root, "<tool>", "a")


def test_rows_as_a_resize_makes_them_do_not_count(root: Path) -> None:
    save_model(root / "base", rows=10)
    tuned(root, "a", 1, ("<tool>",), rows=11)
    tuned(root, "b", 2, ("<tool>",), rows=11)
    values, base = weights(root / "b"), weights(root / "base")
    for table in (EMBEDDING, HEAD):
        values[table][10] = base[table].mean(0).bfloat16().float()
    save_file(values, root / "b" / "model.safetensors", {"format": "pt"})
    merged(root, "a", "b")
    is_sum(root, "<tool>", "a")


def test_tied_tables_follow_together(tmp_path: Path) -> None:
    save_model(tmp_path / "base", rows=10, tied=True)
    for seed, (name, token) in enumerate({"a": "<tool>", "b": "<think>"}.items(), start=1):
        tuned(tmp_path, name, seed, (token,), rows=11)
    out = merged(tmp_path, "a", "b", tokenizer="union")
    assert HEAD not in weights(out)
    for token, of in {"<tool>": "a", "<think>": "b"}.items():
        torch.testing.assert_close(row(out, token), row(tmp_path / of, token))
    model = AutoModelForCausalLM.from_pretrained(out)
    assert model.lm_head.weight.data_ptr() == model.get_input_embeddings().weight.data_ptr()
    assert model.lm_head.weight.shape[0] == 12


def test_new_rows_are_weighted_and_half_precision_is_not_rounded_twice(root: Path) -> None:
    save_model(root / "base", rows=10)
    for seed, name in enumerate("ab", start=1):
        tuned(root, name, seed, ("<tool>",), rows=11)
    values = {name: tensor.bfloat16() for name, tensor in weights(root / "b").items()}
    save_file(values, root / "b" / "model.safetensors", {"format": "pt"})
    tasks = [{"path": str(root / "a"), "weight": 3.0}, {"path": str(root / "b"), "weight": 1.0}]
    merge(root / "base", tasks, root / "out", device="cpu", **{**ARITHMETIC, "scaling": 0.25})
    expected = (3 * row(root / "a", "<tool>") + row(root / "b", "<tool>").float()) / 4
    torch.testing.assert_close(row(root / "out", "<tool>"), expected)


def test_a_task_that_only_trained_its_new_token_is_merged(root: Path) -> None:
    shutil.copytree(root / "base", root / "a")
    values = weights(root / "a")
    for table in (EMBEDDING, HEAD):
        values[table][10] = 1.0
    save_file(values, root / "a" / "model.safetensors", {"format": "pt"})
    save_tokenizer(root / "a", added=("<tool>",))
    assert torch.equal(weights(merged(root, "a"))[EMBEDDING], values[EMBEDDING])


def test_an_adapter_of_the_base_cannot_hold_new_rows(root: Path) -> None:
    tuned(root, "a", 1, ("<tool>",))
    with pytest.raises(RecipeError, match="tokens that the base lacks, so an adapter of the base cannot hold it"):
        merge(root / "base", [root / "a"], root / "out", "average", "cpu", kind="adapter", adapter_rank=2)


def test_settings_that_all_tasks_share_are_carried_over(root: Path) -> None:
    template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    for seed, name in enumerate("ab", start=1):
        tuned(root, name, seed, eos_token="w7", chat_template=template)
        GenerationConfig(bos_token_id=8, eos_token_id=[7, 9]).save_pretrained(root / name)
    found = check(root / "base", [root / "a", root / "b"])
    assert found.tokenizers.choosable
    (note,) = found.tokenizers.notes
    assert "chat template, eos_token w7 (base: </s>), eos_token_id of generation_config.json [7, 9]" in note
    out = merged(root, "a", "b")
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert tokenizer.chat_template == template and tokenizer.eos_token == "w7"
    assert GenerationConfig.from_pretrained(out).eos_token_id == [7, 9]
    assert html.escape(note, quote=False) in (out / "README.md").read_text()
    assert note in load_report(out / "sftm_report.json").account
    shutil.rmtree(out)
    out = merged(root, "a", "b", tokenizer="base")
    assert AutoTokenizer.from_pretrained(out).chat_template is None
    assert GenerationConfig.from_pretrained(out).eos_token_id == 9
    for file in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (out / file).read_bytes() == (root / "base" / file).read_bytes()


def test_the_bases_settings_stay_where_the_files_come_from_a_task_that_lacks_them(root: Path) -> None:
    save_tokenizer(root / "base", chat_template="base's")
    tuned(root, "a", 1, ("<tool>",))
    out = merged(root, "a")
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert "<tool>" in tokenizer.get_vocab() and tokenizer.chat_template == "base's"


def test_settings_in_the_older_files_alone(root: Path) -> None:
    tuned(root, "a", 1)
    (root / "a" / "tokenizer_config.json").unlink()
    (root / "a" / "special_tokens_map.json").write_text(json.dumps({"eos_token": "w7"}))
    (note,) = check(root / "base", [root / "a"]).tokenizers.notes
    assert "eos_token w7 (base: </s>)" in note


def test_numbers_of_tokens_follow_their_rows(root: Path) -> None:
    for seed, (name, token) in enumerate({"a": "<tool>", "b": "<end>"}.items(), start=1):
        tuned(root, name, seed, (token,))
        GenerationConfig(bos_token_id=8, eos_token_id=10).save_pretrained(root / name)
    # The same number means two tokens, so the tasks do not share it.
    assert GenerationConfig.from_pretrained(merged(root, "a", "b", tokenizer="union")).eos_token_id == 9
    shutil.rmtree(root / "out")
    out = merged(root, "a", "b", tokenizer="task b")
    eos = GenerationConfig.from_pretrained(out).eos_token_id
    assert AutoTokenizer.from_pretrained(out).convert_ids_to_tokens(eos) == "<end>"


def test_settings_about_which_tasks_disagree_stay_the_bases_unless_one_is_chosen(root: Path) -> None:
    tuned(root, "a", 1, eos_token="w7", chat_template="a")
    tuned(root, "b", 2, chat_template="b")
    (note,) = check(root / "base", [root / "a", root / "b"]).tokenizers.notes
    assert note.startswith("The tasks disagree about the chat template, eos_token")
    out = merged(root, "a", "b")
    assert AutoTokenizer.from_pretrained(out).chat_template is None
    shutil.rmtree(out)
    tokenizer = AutoTokenizer.from_pretrained(merged(root, "a", "b", tokenizer="task a"))
    assert tokenizer.chat_template == "a" and tokenizer.eos_token == "w7"


def test_the_tasks_tokenizer_is_used_where_the_base_has_none(root: Path) -> None:
    tuned(root, "a", 1, ("<tool>",))
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (root / "base" / file).unlink()
    out = merged(root, "a")
    assert "<tool>" in AutoTokenizer.from_pretrained(out).get_vocab()


def test_a_resumed_merge_refuses_another_tokenizer(root: Path) -> None:
    save_tokenizer(save_tuned(root / "shuffled", root / "base", 1), WORDS[::-1])
    made = []
    for words in (WORDS[::-1], [*WORDS[:2], *WORDS[:1:-1]]):
        save_tokenizer(root / "shuffled", words)
        recipe = make_recipe(root / "base", [root / "shuffled"], device="cpu", tokenizer="base")
        session = open_session()
        made.append(made_from(prepare(recipe, session), session)["the plan"])
    assert made[0] != made[1]


def test_the_choice_is_in_the_recipe_and_checked(root: Path) -> None:
    tuned(root, "a", 1, ("<tool>",))
    out = merged(root, "a")
    recipe = (out / "sftm_recipe.yaml").read_text()
    assert "tokenizer: null" in recipe
    with pytest.raises(RecipeError, match="'task z' is not one of base, union, task a"):
        merge(root / "base", [root / "a"], root / "again", device="cpu", tokenizer="task z")
    assert json.loads((out / "config.json").read_text())["vocab_size"] == 16
    assert load_file(out / "model.safetensors")[EMBEDDING].shape == (16, 8)


BERT = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}


def bert() -> Any:
    return transformers.BertForMaskedLM(transformers.BertConfig(vocab_size=10, **BERT))


def llava() -> Any:
    vision = transformers.CLIPVisionConfig(**BERT, image_size=8, patch_size=4)
    text = transformers.LlamaConfig(vocab_size=10, num_key_value_heads=1, **BERT)
    config = transformers.LlavaConfig(vision_config=vision, text_config=text, image_token_index=3)
    return transformers.LlavaForConditionalGeneration(config)


@pytest.mark.parametrize("make", [bert, llava])
def test_every_table_of_tokens_follows_whatever_the_architecture(tmp_path: Path, make: Callable[[], Any]) -> None:
    torch.manual_seed(0)
    base = make()
    base.save_pretrained(tmp_path / "base")
    save_tokenizer(tmp_path / "base")
    for seed, (name, token) in enumerate({"a": "<tool>", "b": "<think>"}.items(), start=1):
        save_tokenizer(save_tuned(tmp_path / name, tmp_path / "base", seed, 11, type(base)), added=(token,))
    merge(tmp_path / "base", [tmp_path / "a", tmp_path / "b"], tmp_path / "out", **ARITHMETIC, tokenizer="union")
    model, info = type(base).from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert model.config.get_text_config().vocab_size == 12
    found = {name: weights(tmp_path / name) for name in ("base", "a", "b", "out")}
    tables = [name for name, tensor in found["out"].items() if tensor.shape != found["base"][name].shape]
    assert len(tables) == 2, tables  # an embedding, and the output's bias or its own matrix
    for name in tables:
        a, b, of_base = (found[one][name] for one in ("a", "b", "base"))
        expected = torch.cat([a[:10] + b[:10] - of_base, a[10:], b[10:]])
        torch.testing.assert_close(found["out"][name], expected)


def test_an_adapter_with_a_table_that_was_cut_or_never_trained(root: Path) -> None:
    base = weights(root / "base")
    adapter = save_adapter_of(root, "cut", 12, train=False)
    notes = check(root / "base", [adapter]).notes
    assert not any("classes" in note for note in notes), "an output matrix has no classes"
    (note,) = [note for note in notes if "tables" in note]
    assert note == "cut: its tables have 12 rows and the base's 16; it changes nothing in the rows that it lacks."
    out = merged(root, "cut")
    for table in (EMBEDDING, HEAD):
        assert torch.equal(weights(out)[table], base[table])
    assert not torch.equal(weights(out)[QUERY], base[QUERY])


def test_an_adapter_with_new_rows(root: Path) -> None:
    adapter = save_adapter_of(root, "grown", 17, train=True)
    out = merged(root, "grown")
    whole = load_file(adapter / "adapter_model.safetensors")
    for table in (EMBEDDING, HEAD):
        theirs = next(tensor for name, tensor in whole.items() if name.endswith(table))
        torch.testing.assert_close(weights(out)[table], theirs)
    # Two adapters with rows that no tokenizer names may mean different tokens.
    save_adapter_of(root, "other", 17, train=True)
    with pytest.raises(CompatibilityError, match=r"grown and other have rows after the base's 16, and no tokenizer"):
        check(root / "base", [root / "grown", root / "other"]).require()
    shutil.rmtree(out)
    out = merged(root, "grown", "other", tokenizer="base")
    assert len(weights(out)[EMBEDDING]) == 16
    shutil.rmtree(out)
    # With tokenizers the rows have names.
    for name in ("grown", "other"):
        save_tokenizer(root / name, [*WORDS, *(f"<pad{i}>" for i in range(6))], added=["<new>"])
    save_tokenizer(root / "base", [*WORDS, *(f"<pad{i}>" for i in range(6))])
    out = merged(root, "grown", "other")
    assert "<new>" in AutoTokenizer.from_pretrained(out).get_vocab() and len(weights(out)[EMBEDDING]) == 17


def test_lora_on_a_table_follows_the_rows_of_the_others(root: Path) -> None:
    model = peft.get_peft_model(
        AutoModelForCausalLM.from_pretrained(root / "base"),
        peft.LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "embed_tokens", "lm_head"]),
    )
    for name, parameter in model.named_parameters():
        if "lora" in name:
            parameter.data.normal_(generator=torch.Generator().manual_seed(len(name)))
    model.save_pretrained(root / "lora", save_embedding_layers=False)
    tuned(root, "a", 1, ("<tool>",), rows=17)
    out = merged(root, "lora", "a")
    single = model.merge_and_unload().state_dict()
    base, a, found = weights(root / "base"), weights(root / "a"), weights(out)
    for table in (EMBEDDING, HEAD):
        expected = torch.cat([single[table][:10] + a[table][:10] - base[table][:10], a[table][10:11]])
        torch.testing.assert_close(found[table][:11], expected)


def save_adapter_of(root: Path, name: str, rows: int, train: bool) -> Path:
    """A LoRA adapter whose tool resized the tables before training, and saved them whole."""
    model = AutoModelForCausalLM.from_pretrained(root / "base")
    model.resize_token_embeddings(rows, mean_resizing=False)
    whole = {"modules_to_save": ["embed_tokens", "lm_head"]} if train else {}
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj"], **whole))
    generator = torch.Generator().manual_seed(len(name))
    for parameter_name, parameter in adapted.named_parameters():
        if "lora" in parameter_name or (train and "modules_to_save" in parameter_name):
            parameter.data.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    adapted.save_pretrained(root / name, save_embedding_layers=True)
    return root / name
