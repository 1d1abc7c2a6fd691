"""Scores and their draws against torchmetrics on the samples that each draw takes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from closeness import assert_close
from torchmetrics.functional.classification import multiclass_f1_score
from torchmetrics.text import ROUGEScore, SacreBLEUScore

from sftm_app.errors import InputError, SampleError
from sftm_app.evaluation.answer_sheet import AnswerSheet
from sftm_app.evaluation.family import Answer
from sftm_app.evaluation.intervals import draw
from sftm_app.evaluation.measures import MEASURES, measure_for, measure_named
from sftm_app.evaluation.scores import score_table

RANDOM = np.random.default_rng(5)
WORDS = ("the", "cat", "sat", "on", "a", "mat", "ok", "кошка")


def choices(said: Sequence[int], true: Sequence[int]) -> AnswerSheet:
    """Answers of a model that chooses; classes by number."""
    return AnswerSheet(tuple(map(str, said)), tuple(map(str, true)), tuple(np.equal(said, true).tolist()))


def written(n: int, n_words: int = 7) -> AnswerSheet:
    """Answers that share some words with their targets."""
    targets = [list(RANDOM.choice(WORDS, n_words)) for _ in range(n)]
    answers = [
        [word if RANDOM.random() < 0.7 else "dog" for word in target][: RANDOM.integers(3, 9)] for target in targets
    ]
    texts = [tuple(" ".join(words) for words in texts) for texts in (answers, targets)]
    return AnswerSheet(texts[0], texts[1], tuple(a == t for a, t in zip(*texts, strict=True)), chosen=False)


def taken(sheet: AnswerSheet, positions: Sequence[int]) -> AnswerSheet:
    return AnswerSheet(
        tuple(sheet.answers[i] for i in positions),
        tuple(sheet.targets[i] for i in positions),
        tuple(sheet.correct[i] for i in positions),
        sheet.chosen,
    )


def test_macro_f1_and_its_draws_are_torchmetrics() -> None:
    sheet = choices(RANDOM.integers(0, 5, 30), RANDOM.integers(0, 4, 30))
    draws = draw([4, 30], n_draws=40)

    def reference(positions: Sequence[int]) -> float:
        said, true = (torch.tensor([int(texts[i]) for i in positions]) for texts in (sheet.answers, sheet.targets))
        return float(multiclass_f1_score(said, true, num_classes=5, average="macro"))

    measure = measure_named("macro_f1")
    assert measure.score(sheet) == pytest.approx(reference(range(30)), abs=1e-6)
    assert_close(measure.drawn(sheet, draws, 1), [reference(drawn) for drawn in draws.positions(1)], 1e-6)


def test_bleu_and_its_draws_are_those_of_the_drawn_texts() -> None:
    sheet, draws = written(12), draw([12], n_draws=20)

    def reference(positions: Sequence[int]) -> float:
        metric = SacreBLEUScore()
        one = taken(sheet, positions)
        return float(metric(list(one.answers), [[target] for target in one.targets]))

    measure = measure_named("bleu")
    assert measure.score(sheet) == pytest.approx(reference(range(12)), abs=1e-6)
    assert_close(measure.drawn(sheet, draws, 0), [reference(drawn) for drawn in draws.positions(0)], 1e-6)


def test_rouge_knows_every_script_and_its_draws_are_means() -> None:
    sheet, draws = written(12), draw([12], n_draws=20)
    measure = measure_named("rouge_l")
    drawn = [measure.score(taken(sheet, positions)) for positions in draws.positions(0)]
    assert_close(measure.drawn(sheet, draws, 0), drawn, 1e-6)
    latin = AnswerSheet(("the cat sat",), ("the cat sat down",), (False,), chosen=False)
    own = ROUGEScore(rouge_keys="rougeL")(["the cat sat"], ["the cat sat down"])["rougeL_fmeasure"]
    assert measure.score(latin) == pytest.approx(float(own))
    cyrillic = AnswerSheet(("чёрная кошка",), ("чёрная собака",), (False,), chosen=False)
    assert measure.score(cyrillic) == pytest.approx(0.5)


def test_perfect_and_empty_answers_are_at_the_ends() -> None:
    for measure in MEASURES:
        right = AnswerSheet(("a b c d e",) * 3, ("a b c d e",) * 3, (True,) * 3, measure.chosen)
        wrong = AnswerSheet(("",) * 3, ("a b c d e",) * 3, (False,) * 3, measure.chosen)
        assert measure.score(right) == pytest.approx(1.0) and measure.score(wrong) == 0.0
        draws = draw([3], n_draws=5)
        assert_close(measure.drawn(right, draws, 0), [1.0] * 5, 1e-6)
        assert_close(measure.drawn(wrong, draws, 0), [0.0] * 5, 1e-6)


def test_the_measure_suits_the_answers() -> None:
    short = AnswerSheet(("sat",), ("ran off",), (False,), chosen=False)
    long = AnswerSheet(("sat",), ("the cat ran off then",), (False,), chosen=False)
    assert [measure_for(one).name for one in (choices([1], [1]), short, long)] == ["accuracy", "exact_match", "rouge_l"]
    assert measure_for(choices([1], [1]), "macro_f1").name == "macro_f1"
    assert measure_for(long, "macro_f1").name == "rouge_l" and measure_for(long, "bleu").name == "bleu"
    with pytest.raises(InputError, match="no measure 'best'"):
        measure_for(short, "best")


def test_a_sheet_grows_by_answers_whose_targets_are_known() -> None:
    first = AnswerSheet().followed_by([Answer("x", ("x", "y"), (0.9, 0.1), "x", True)])
    both = first.followed_by([Answer("x", ("x", "y"), (0.6, 0.4), "y", False)])
    assert (both.answers, both.targets, both.correct, both.chosen) == (("x", "x"), ("x", "y"), (True, False), True)
    assert both.wrong == (1,) and not first.followed_by([Answer("free", target="x", correct=False)]).chosen
    with pytest.raises(SampleError, match="all known"):
        first.followed_by([Answer("x", ("x", "y"), (0.6, 0.4))])


def test_a_table_has_means_shares_and_paired_differences() -> None:
    def sheet(*right: int) -> AnswerSheet:
        return choices([1 if one else 0 for one in right], [1] * len(right))

    half, most, full = sheet(1, 0), sheet(1, 1, 1, 0), sheet(1, 1)
    sheets = {"own": {"a": full, "b": most}, "merge": {"a": half, "b": most}, "new": {"a": full}}
    table = score_table(sheets)
    assert table.tasks == ("a", "b")
    mean, share = table.mean("merge"), table.normalised("merge", "own")
    assert mean is not None and mean.value == pytest.approx((0.5 + 0.75) / 2)
    assert share is not None and share.value == pytest.approx((0.5 + 1.0) / 2)
    assert table.mean("new") is None and table.normalised("new", "own") is None and table.score("new", "b") is None
    same = table.difference("own", "own")
    assert same is not None and (same.value, same.low, same.high) == (0, 0, 0) and same.holds_zero
    ours = table.difference("own", "merge")
    # Only task a differs, by one of its two samples: in a quarter of the draws it is never drawn.
    assert ours is not None and ours.value == pytest.approx(0.25) and ours.holds_zero and ours.high == 0.5
    assert table.difference("own", "new") is None


def test_a_model_that_is_always_better_is_told_apart() -> None:
    n = 200
    good, bad = choices([1] * n, [1] * n), choices([i % 2 for i in range(n)], [1] * n)
    found = score_table({"good": {"a": good}, "bad": {"a": bad}}).difference("good", "bad")
    assert found is not None and not found.holds_zero and found.low > 0.4
