"""Whose tokens the merged model has, and which row of which model they come from (A15)."""

from __future__ import annotations

from collections.abc import Sequence

from sftm_app.preflight.vocabularies import Comparison, Member, MergedVocabulary, compare
from sftm_app.weights.vocabulary import Vocabulary

WORDS = ["a", "b", "c"]


def member(name: str, words: Sequence[str | None] | None, size: int = 5, kind: str = "WordLevel") -> Member:
    if words is None:
        return Member(name, None, size)
    rows = {word: row for row, word in enumerate(words) if word}
    return Member(name, Vocabulary(rows, kind, "tokenizer.json", digest=repr(rows)), size)


def united(found: Comparison) -> MergedVocabulary:
    assert found.merged is not None, found.problems
    return found.merged


def test_equal_tokens_and_models_without_tokenizers_are_left_alone() -> None:
    for tasks in ([member("x", WORDS)], [member("x", None)], [member("x", None), member("y", WORDS)]):
        assert compare([member("the base", WORDS), *tasks]) == Comparison()
        assert compare([member("the base", None), *tasks], "union") == Comparison()


def test_the_union_is_the_vocabulary_of_a_model_that_has_all_tokens() -> None:
    found = united(compare([member("the base", WORDS), member("x", [*WORDS, "d"]), member("y", [*WORDS, "d", "e"])]))
    assert found.names == ("a", "b", "c", "d", "e")
    assert found.rows == ((0, 1, 2, -1, -1), (0, 1, 2, 3, -1), (0, 1, 2, 3, 4))
    assert found.files == 2 and not found.additions and found.taken == (("d",), ("d", "e"))
    assert found.notes == (
        "Token 'd': the base has no such token, so its row is the mean of those of x and y, as far as they were "
        "trained.",
        "Token 'e': the base has no such token, so its row is taken from y.",
    )


def test_tokens_of_several_tasks_are_added_to_the_base() -> None:
    members = [member("the base", WORDS, 3), member("x", [*WORDS, "d"], 4), member("y", [*WORDS, None, "e"], 8)]
    found = united(compare(members))
    assert found.names == ("a", "b", "c", "d", "e", None, None, None), "the size of a table that has room for all"
    assert found.rows[2][:5] == (0, 1, 2, -1, 4)
    assert found.files == 0 and found.additions == {"d": (3, {}), "e": (4, {})}


def test_a_token_in_another_row_is_a_conflict_too() -> None:
    members = [member("the base", WORDS), member("x", ["a", "b", None, "c"])]
    (problem,) = compare(members).problems
    assert "'c' is row 2 in the base and row 3 in x" in problem and "`task x`" in problem
    assert united(compare(members, "base")).rows == ((0, 1, 2, 3, 4), (0, 1, 3, -1, 4))
    assert united(compare(members, "task x")).rows == ((0, 1, -1, 2, 4), (0, 1, 2, 3, 4))


def test_a_base_without_a_tokenizer_takes_what_the_tasks_agree_on() -> None:
    members = [member("the base", None), member("x", [*WORDS, "d"]), member("y", [*WORDS, "e"])]
    (problem,) = compare(members).problems
    assert "row 3 is 'd' in x, 'e' in y" in problem and "base" not in problem.partition(".")[0]
    (problem,) = compare(members, "union").problems
    assert problem.startswith("The base has no tokenizer, and the tasks' tokens differ.")
    assert united(compare(members, "task y")).names == ("a", "b", "c", "e", None)


def test_tokens_of_a_closed_model_cannot_be_joined() -> None:
    tasks = [member("x", [*WORDS, "d"], kind="BPE"), member("y", [*WORDS, "e"], kind="BPE")]
    (problem,) = compare([member("the base", WORDS, kind="BPE"), *tasks], "union").problems
    assert problem.startswith("Tokens 'd', 'e' belong to a tokenizer's own model (BPE or Unigram)")


def test_a_tokenizer_that_names_rows_far_outside_its_tables() -> None:
    base = Member("the base", Vocabulary({"a": 0, "z": 1 << 26}, "WordLevel", "tokenizer.json", digest="1"), 5)
    members = [base, member("x", ["a", "b"]), member("y", ["a", None, "c"])]
    (problem,) = compare(members, "union").problems
    assert "names row 67108864, but its tables have 5 rows" in problem


def test_tokens_are_shown_short_and_without_control_characters() -> None:
    members = [member("the base", WORDS), member("x", ["\x1b[31m", "y" * 500, "c"])]
    (problem,) = compare(members).problems
    assert "\x1b" not in problem and len(problem) < 600
