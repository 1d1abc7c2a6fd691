"""How answers are scored: accuracy and macro-F1 where a model chooses, exact match, ROUGE-L and BLEU where it writes.

Every measure gives one score from 0 to 1 for a sheet of answers, and the same for samples drawn from it, for intervals.

    macro-F1   mean over the classes of 2 TP / (2 TP + FP + FN)
    ROUGE-L    mean over the samples of the F-measure of the longest common subsequence of words (Lin 2004)
    BLEU       of the whole set, up to four words at a time (Papineni et al. 2002), tokens as sacreBLEU (Post 2018)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean, median

import numpy as np
from torchmetrics.functional.text.rouge import rouge_score
from torchmetrics.text import SacreBLEUScore

from sftm_app.errors import InputError
from sftm_app.evaluation.answer_sheet import AnswerSheet
from sftm_app.evaluation.intervals import Draws, Vector

# Longer answers are seldom the same to the letter, so they are scored by the words that they share.
MOST_WORDS_MATCHED = 3


@dataclass(frozen=True)
class Measure:
    """A way to score.

    Attributes:
        name: its key.
        title: its name on screen.
        help: what it says.
        chosen: whether it is for answers that were chosen; False for text that was written freely.
        score: of a sheet with at least one answer, 0..1.
        drawn: the score in every draw, float64 (draws,): (sheet, draws, position of the task in the draws).
    """

    name: str
    title: str
    help: str
    chosen: bool
    score: Callable[[AnswerSheet], float]
    drawn: Callable[[AnswerSheet, Draws, int], Vector]


def _share(sheet: AnswerSheet) -> float:
    return fmean(sheet.correct)


def _drawn_share(sheet: AnswerSheet, draws: Draws, task: int) -> Vector:
    found: Vector = draws.counts[task] @ np.asarray(sheet.correct, np.float64)
    return found


def _macro_f1(sheet: AnswerSheet) -> float:
    one = np.full((1, len(sheet)), 1 / len(sheet))
    return float(_f1_of(sheet, one)[0])


def _drawn_macro_f1(sheet: AnswerSheet, draws: Draws, task: int) -> Vector:
    return _f1_of(sheet, draws.counts[task])


def _f1_of(sheet: AnswerSheet, counts: Vector) -> Vector:
    """Macro-F1 of the samples of each draw (see `Draws.counts`); classes that do not occur in it are left out."""
    # Apart from outer white space, as everywhere: a choice may begin with a space.
    said, true = ([text.strip() for text in texts] for texts in (sheet.answers, sheet.targets))
    total: Vector = np.zeros(len(counts))
    n_classes: Vector = np.zeros(len(counts))
    right = np.asarray(sheet.correct, np.float64)
    for one in dict.fromkeys([*true, *said]):
        is_true, is_said = (np.array([text == one for text in texts], np.float64) for texts in (true, said))
        either = counts @ (is_true + is_said)
        both = 2 * (counts @ (is_true * right))
        there = either > 0
        total += np.divide(both, either, out=np.zeros_like(either), where=there)
        n_classes += there
    return total / n_classes


def _rouge_each(sheet: AnswerSheet) -> Vector:
    # Words are what stands between spaces: the original's tokens are Latin letters and digits only.
    scores = [
        rouge_score(said, true, rouge_keys="rougeL", normalizer=str.lower, tokenizer=str.split)["rougeL_fmeasure"]
        for said, true in zip(sheet.answers, sheet.targets, strict=True)
    ]
    return np.array([float(score) for score in scores])


def _rouge(sheet: AnswerSheet) -> float:
    return float(_rouge_each(sheet).mean())


def _drawn_rouge(sheet: AnswerSheet, draws: Draws, task: int) -> Vector:
    found: Vector = draws.counts[task] @ _rouge_each(sheet)
    return found


def _bleu(sheet: AnswerSheet) -> float:
    metric = SacreBLEUScore()
    metric.update(list(sheet.answers), [[target] for target in sheet.targets])
    return float(metric.compute())


def _drawn_bleu(sheet: AnswerSheet, draws: Draws, task: int) -> Vector:
    """BLEU of every draw: what the metric counts is summed over the samples, so a draw is a weighted sum of counts."""
    metric = SacreBLEUScore()
    counted = []
    for said, true in zip(sheet.answers, sheet.targets, strict=True):
        metric.reset()
        metric.update([said], [[true]])
        counted.append([*metric.numerator.tolist(), *metric.denominator.tolist(), metric.preds_len, metric.target_len])
    sums = draws.counts[task] @ np.array(counted, np.float64) * len(sheet)
    n = metric.n_gram
    found = np.zeros(len(sums))
    for place, row in enumerate(sums):
        metric.reset()
        states = (row[:n], row[n : 2 * n], row[-2], row[-1])
        for name, value in zip(("numerator", "denominator", "preds_len", "target_len"), states, strict=True):
            setattr(metric, name, getattr(metric, name).new_tensor(value))
        metric._update_count = 1  # the sums stand for updates
        found[place] = float(metric.compute())
    return found


MEASURES: tuple[Measure, ...] = (
    Measure("accuracy", "Accuracy", "The share of right answers.", True, _share, _drawn_share),
    Measure(
        "macro_f1",
        "Macro-F1",
        "The mean F1 over the classes: every class counts the same, however rare it is.",
        True,
        _macro_f1,
        _drawn_macro_f1,
    ),
    Measure(
        "exact_match",
        "Exact match",
        "The share of answers that equal the target, apart from outer white space.",
        False,
        _share,
        _drawn_share,
    ),
    Measure(
        "rouge_l", "ROUGE-L", "How much of the target's words an answer has, in order.", False, _rouge, _drawn_rouge
    ),
    Measure("bleu", "BLEU", "How many runs of up to four words answers and targets share.", False, _bleu, _drawn_bleu),
)


def measure_named(name: str) -> Measure:
    """The measure of this name. Raises InputError: there is none."""
    found = next((measure for measure in MEASURES if measure.name == name), None)
    if found is None:
        raise InputError(f"There is no measure {name!r}. Choose one of {', '.join(one.name for one in MEASURES)}.")
    return found


def measure_for(sheet: AnswerSheet, name: str = "") -> Measure:
    """The measure of this name if it suits the answers; otherwise the one that suits them best.

    Args:
        sheet: the answers to a task.
        name: of a measure; empty for the one that suits best.

    Raises:
        InputError: there is no such measure.
    """
    asked = measure_named(name) if name else None
    if asked is not None and asked.chosen == sheet.chosen:
        return asked
    if sheet.chosen:
        return measure_named("accuracy")
    words = median(len(target.split()) for target in sheet.targets) if sheet.targets else 0
    return measure_named("exact_match" if words <= MOST_WORDS_MATCHED else "rouge_l")
