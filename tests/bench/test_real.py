"""The parts of the real benches that need no weights: samples, intervals, objectives, the report's marks."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from bench.real.choose import best_without, gaps
from bench.real.classifiers import batches
from bench.real.correlation import spearman
from bench.real.objectives import make_yardstick, of_layer
from bench.real.report import between, mean_of
from bench.real.texts import same_text, text_task
from sftm_app.evaluation.intervals import Interval, draw, gap_closed


def labelled(n: int) -> dict[str, str]:
    """Sentences of two classes, each twice: the copies differ in case, a link and the mark of a retweet."""
    plain = {f"sentence number {i}": "odd" if i % 2 else "even" for i in range(n)}
    return plain | {
        f"RT @someone: Sentence NUMBER {i} https://t.co/{i}!": label for i, label in enumerate(plain.values())
    }


def test_no_sentence_is_in_two_sets() -> None:
    task = text_task("numbers", "Numbers", labelled(100), n_train=30, n_test=20, n_validation=10)
    parts = [[same_text(text) for text in split.inputs] for split in (task.train, task.test, task.validation)]
    assert [len(part) for part in parts] == [30, 20, 10]
    assert len({text for part in parts for text in part}) == 60
    for split in (task.train, task.test, task.validation):
        for text, label in zip(split.inputs, split.labels, strict=True):
            assert task.labels[label] == ("odd" if int(same_text(text).split()[-1]) % 2 else "even")


def test_a_seed_draws_other_training_sentences_and_the_same_test_sentences() -> None:
    first, second = (text_task("numbers", "Numbers", labelled(100), 30, 20, 10, seed) for seed in (0, 1))
    assert list(first.test.inputs) == list(second.test.inputs)
    assert list(first.validation.inputs) == list(second.validation.inputs)
    assert set(first.train.inputs) != set(second.train.inputs)


def test_batches_hold_every_sample_once_and_similar_lengths() -> None:
    torch.manual_seed(0)
    lengths = torch.randint(1, 100, (330,)).tolist()
    found = batches(lengths, 16)
    assert len(found) == 21
    assert sorted(torch.cat(found).tolist()) == list(range(330))
    mixed = [lengths[place] for place in torch.randperm(330).tolist()]
    spread = np.mean([np.ptp([lengths[place] for place in batch.tolist()]) for batch in found])
    assert spread < 0.4 * np.mean([np.ptp(mixed[start : start + 16]) for start in range(0, 330, 16)])


def test_the_share_of_the_gap_and_its_interval() -> None:
    generator = np.random.default_rng(1)

    def right(share: float) -> list[list[np.ndarray]]:
        return [[generator.random(400) < share for _ in range(3)] for _ in range(2)]

    base, individual, model = right(0.5), right(0.9), right(0.8)
    low, middle, high = (
        np.mean([[task.mean() for task in tasks] for tasks in one]) for one in (base, model, individual)
    )
    found = gap_closed(model, base, individual, draw([400] * 3, 2))
    assert found.value == pytest.approx((middle - low) / (high - low))
    assert found.low < found.value < found.high
    # The standard error of a mean of 1,200 independent samples of each model, the seeds' samples taken as independent.
    error = np.sqrt(0.8 * 0.2 / 2400) / (high - low)
    assert error < found.half < 8 * error


def test_identical_models_close_none_or_all_of_the_gap_in_every_draw() -> None:
    generator = np.random.default_rng(2)
    base, individual = ([[generator.random(100) < share]] for share in (0.3, 0.8))
    draws = draw([100], 1)
    assert gap_closed(base, base, individual, draws) == Interval(0.0, 0.0, 0.0)
    whole = gap_closed(individual, base, individual, draws)
    assert [whole.value, whole.low, whole.high] == pytest.approx([1.0, 1.0, 1.0])


def test_rank_correlation() -> None:
    assert spearman([1, 2, 3, 4], [10, 20, 35, 90]) == pytest.approx(1)
    assert spearman([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1)
    # 1 - 6 sum d^2 / (n (n^2 - 1)) with d = 0, -1, 1, 0.
    assert spearman([1, 2, 3, 4], [1, 3, 2, 4]) == pytest.approx(1 - 6 * 2 / (4 * 15))
    # Equal values share their mean rank: 0.5, 0.5, 2 against 0, 1, 2.
    assert spearman([5, 5, 6], [1, 2, 3]) == pytest.approx(np.corrcoef([0.5, 0.5, 2], [0, 1, 2])[0, 1])


@pytest.mark.parametrize("shape", [(5, 4), (4, 5), (9, 4)])
def test_objectives_are_the_formulas(shape: tuple[int, int]) -> None:
    torch.manual_seed(3)
    m, n = shape
    deltas = [torch.randn(m, n) for _ in range(3)]
    merged = torch.randn(m, n)
    found = of_layer(merged, deltas, make_yardstick(deltas))
    norms = [float(torch.linalg.matrix_norm(D)) ** 2 for D in deltas]
    M = n / 3 * sum(D.T @ D / norm for D, norm in zip(deltas, norms, strict=True)) + 3 * torch.eye(n)
    N = m / 3 * sum(D @ D.T / norm for D, norm in zip(deltas, norms, strict=True)) + 3 * torch.eye(m)
    variances = [float(torch.trace(N @ D @ M @ D.T)) for D in (merged, *deltas)]
    assert found["variance"] == pytest.approx(variances[0] / np.mean(variances[1:]), rel=1e-4)
    missed = sum(
        float(torch.linalg.matrix_norm((merged - D) @ D.T)) ** 2 / norm for D, norm in zip(deltas, norms, strict=True)
    )
    there = sum(float(torch.linalg.matrix_norm(D @ D.T)) ** 2 / norm for D, norm in zip(deltas, norms, strict=True))
    assert found["interference"] == pytest.approx(missed / there, rel=1e-4)
    distance = sum(float(torch.linalg.matrix_norm(merged - D)) ** 2 for D in deltas) / sum(norms)
    assert found["distance"] == pytest.approx(distance, rel=1e-4)


def test_a_section_is_replaced_between_its_marks_and_nowhere_else() -> None:
    text = "# Title\n<!-- measured: text -->\n\nold\n\n<!-- end: text -->\nrest\n"
    replaced = between(text, "text", "new")
    assert replaced == "# Title\n<!-- measured: text -->\n\nnew\n\n<!-- end: text -->\nrest\n"
    with pytest.raises(ValueError, match="measured: vision"):
        between(text, "vision", "new")


def test_orders_are_averaged() -> None:
    found = mean_of([Interval(0.2, 0.0, 0.4), Interval(0.4, 0.3, 0.6)])
    assert [found.value, found.low, found.high] == pytest.approx([0.3, 0.15, 0.5])


def test_gaps_are_read_for_merges_of_all_tasks(tmp_path: Path) -> None:
    correct = {"base": ("1000", "1100"), "individual": ("1111", "1110"), "x": ("1110", "1110"), "y": ("1111", "1111")}
    merges = {"sftm": ("x", ["a", "b"]), "average": ("y", ["a"])}
    (tmp_path / "correct").mkdir()
    (tmp_path / "merges").mkdir()
    for name, (a, b) in correct.items():
        kept = {"a.test": a, "b.test": b, "a.validation": "0000"}
        (tmp_path / "correct" / f"{name}.json").write_text(json.dumps(kept))
    for text, (model, tasks) in merges.items():
        about = {"settings": text, "model": model, "tasks": tasks}
        (tmp_path / "merges" / f"{text}.json").write_text(json.dumps(about))
    # Means over the two tasks: base 3/8, individual 7/8, x 6/8. The average merged one task only.
    assert gaps(tmp_path) == pytest.approx({"sftm": (6 - 3) / (7 - 3)})


def test_a_default_is_chosen_without_the_bench_it_is_reported_for() -> None:
    found = {"one": {"p": 0.9, "q": 0.1}, "two": {"p": 0.2, "q": 0.5}, "three": {"p": 0.3, "q": 0.4}}
    assert best_without(found, "one", ["p", "q"]) == "q"
    assert best_without(found, "two", ["p", "q"]) == "p"
