"""Compares the tokens of base and tasks, row by row, and decides the vocabulary of the merged model.

Tables are merged row by row, so a row must mean one token in all models. Rows that only tasks name are taken from these
tasks. Where one row means different tokens, a person decides whose vocabulary the merged model has.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sftm_app.weights.vocabulary import Vocabulary

MAX_NAMED = 5
_MAX_TOKEN = 40
# Kinds whose own tokens can be added to: those of the others depend on merges or scores.
_OPEN_KINDS = ("WordLevel", "WordPiece")
BASE, UNION, TASK = "base", "union", "task "


@dataclass(frozen=True)
class Member:
    """One model: its name in sentences ("the base" or a task's), its tokens, and the number of rows of its tables.

    Attributes:
        name: see above.
        tokens: the tokens; None where it has no tokenizer that can be read.
        size: rows of its tables, or of the base's where it has none.
    """

    name: str
    tokens: Vocabulary | None
    size: int


@dataclass(frozen=True)
class MergedVocabulary:
    """The vocabulary of the merged model, and where its rows are in base and tasks.

    Attributes:
        names: the token of every row, None for rows without one; of rows that no tokenizer names, a made-up name.
        rows: for the base and each task, the row of its tables for every row of the merged ones, -1 where it has none.
        files: the member whose tokenizer files the output gets, 0 for the base.
        additions: tokens that these files lack -> their rows and their entries in tokenizer.json.
        taken: for each task, the tokens that the base lacks and whose rows it gives.
        notes: sentences.
    """

    names: tuple[str | None, ...]
    rows: tuple[tuple[int, ...], ...]
    files: int
    additions: Mapping[str, tuple[int, dict[str, Any]]] = field(default_factory=dict)
    taken: tuple[tuple[str, ...], ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """The number of rows."""
        return len(self.names)

    def is_identity(self, member: int, size: int) -> bool:
        """Whether a member's tables of `size` rows are already in this order."""
        return size == self.size and self.rows[member] == tuple(range(size))


@dataclass(frozen=True)
class Comparison:
    """What comparing the tokens gave.

    Attributes:
        merged: the merged vocabulary; None where every model has the base's rows, or where `problems` refuse it.
        problems: sentences that refuse the merge.
        differ: whether the models' tokens differ, so that a choice makes a difference.
    """

    merged: MergedVocabulary | None = None
    problems: tuple[str, ...] = ()
    differ: bool = False


def compare(members: Sequence[Member], choice: str | None = None) -> Comparison:
    """Compare the tokens of the base and the tasks.

    Args:
        members: the base, then the tasks.
        choice: whose vocabulary the merged model has: "base", "union" or "task NAME"; None takes the union where no
            row means different tokens, and refuses otherwise.
    """
    base = members[0]
    told = [member.tokens for member in members if member.tokens]
    sizes = {member.size for member in members}
    if len(sizes) == 1 and all(tokens.digest == told[0].digest for tokens in told):
        return Comparison()
    names = _names(members)
    conflicts = list(_conflicts(members, names))
    nameless = [m.name for m, own in zip(members, names, strict=True) if any(n and n[0] == "\0" for n in own)]
    new = [row for row in range(max(map(len, names))) if _at(names[0], row) is None and any(_at(n, row) for n in names)]
    differ = bool(conflicts or new or len(sizes) > 1)
    if not differ:
        return Comparison()
    if len(nameless) > 1 and choice in (None, UNION):
        return Comparison(problems=(_nameless_problem(nameless, base.size),), differ=True)
    if conflicts and choice is None:
        return Comparison(problems=(_conflict_problem(conflicts, members),), differ=True)
    if choice == BASE:
        return _made(members, names, names[0], 0, {}, choice)
    if choice and choice.startswith(TASK):
        index = next(i for i, member in enumerate(members) if i and member.name == choice.removeprefix(TASK))
        return _made(members, names, names[index], index, {}, choice)
    return _union(members, names, choice)


def _names(members: Sequence[Member]) -> list[list[str | None]]:
    """The token of every row of every member's tables. A model without a tokenizer has the base's."""
    known = [member.tokens.names(member.size) if member.tokens else None for member in members]
    base = known[0]
    if base is None:  # what all tasks agree on
        told = [own for own in known if own is not None]
        rows = ({_at(own, row) for own in told} - {None} for row in range(members[0].size))
        base = [next(iter(found)) if len(found) == 1 else None for found in rows]
    return [
        own if own is not None else [*base[: member.size], *(f"\0{row}" for row in range(len(base), member.size))]
        for member, own in zip(members, [base, *known[1:]], strict=True)
    ]


def _at(names: Sequence[str | None], row: int) -> str | None:
    return names[row] if row < len(names) else None


def _conflicts(members: Sequence[Member], names: Sequence[Sequence[str | None]]) -> Iterator[str]:
    """What is wrong with each row that means different tokens, and with each token that has different rows."""
    for row in range(max(map(len, names))):
        of: dict[str, list[str]] = {}
        for member, own in zip(members, names, strict=True):
            if (token := _at(own, row)) is not None:
                of.setdefault(token, []).append(member.name)
        if len(of) > 1:
            yield f"row {row} is {', '.join(f'{quote(t)} in {_join(who)}' for t, who in of.items())}"
    places: dict[str, tuple[int, str]] = {}
    for member, own in zip(members, names, strict=True):
        for row, token in enumerate(own):
            if token is None:
                continue
            first, whose = places.setdefault(token, (row, member.name))
            if first != row and whose != member.name and _is_free(names, row, token):
                yield f"{quote(token)} is row {first} in {whose} and row {row} in {member.name}"


def _is_free(names: Sequence[Sequence[str | None]], row: int, token: str) -> bool:
    """Whether no other token has a row, so that it is not named as a conflict already."""
    return all(_at(own, row) in (None, token) for own in names)


def _conflict_problem(conflicts: Sequence[str], members: Sequence[Member]) -> str:
    more = f", and {len(conflicts) - MAX_NAMED} more" if len(conflicts) > MAX_NAMED else ""
    tasks = ", ".join(f"`{TASK}{member.name}`" for member in members[1:] if member.tokens)
    return (
        f"The tokenizers give one row different meanings: {'; '.join(conflicts[:MAX_NAMED])}{more}. Merged row by row, "
        "these words would be mixed up. Say whose tokenizer the merged model has: `tokenizer: union` keeps all tokens, "
        f"`base` or {tasks} those of one model; rows are then matched by token."
    )


def _nameless_problem(nameless: Sequence[str], size: int) -> str:
    return (
        f"{_join(nameless)} have rows after the base's {size}, and no tokenizer that says what they stand for. Put "
        f"their tokenizer files next to the weights, or keep the rows of one (`tokenizer: {TASK}{nameless[0]}`) or of "
        "none (`tokenizer: base`)."
    )


def _union(members: Sequence[Member], names: Sequence[Sequence[str | None]], choice: str | None) -> Comparison:
    """The vocabulary with all tokens: that of one model if it has them all, otherwise the base's, enlarged."""
    places = [{token: row for row, token in reversed(list(enumerate(own))) if token} for own in names]
    everything = dict.fromkeys(token for own in places for token in own)
    for index, (member, own) in enumerate(zip(members, places, strict=True)):
        has_base = all(own.get(token) == row for token, row in places[0].items())
        if len(own) == len(everything) and has_base and (member.tokens or index == 0):
            target = [*names[index], *[None] * (members[0].size - member.size)]
            return _made(members, names, target, index, {}, choice)
    if members[0].tokens is None and any(member.tokens for member in members):
        return Comparison(
            problems=(
                "The base has no tokenizer, and the tasks' tokens differ. Say whose tokenizer the merged model has: "
                f"{', '.join(f'`tokenizer: {TASK}{member.name}`' for member in members[1:] if member.tokens)}.",
            ),
            differ=True,
        )
    row = members[0].tokens.n_rows if members[0].tokens else 0
    if row > members[0].size:
        problem = (
            f"The base's tokenizer names row {row - 1}, but its tables have {members[0].size} rows, so no tokens can "
            f"be added to it. Keep one model's tokenizer: `tokenizer: base` or `tokenizer: {TASK}{members[1].name}`."
        )
        return Comparison(problems=(problem,), differ=True)
    target = list(names[0])
    new = [token for token in everything if token not in places[0]]
    for token in (token for token in new if token[0] == "\0"):
        place = int(token[1:])
        target += [None] * (place + 1 - len(target))
        target[place] = token
    additions: dict[str, tuple[int, dict[str, Any]]] = {}
    closed: list[str] = []
    real = sorted((t for t in new if t[0] != "\0"), key=lambda token: min(own.get(token, 1 << 60) for own in places))
    for token in real:
        while _at(target, row) is not None:
            row += 1
        target += [None] * (row + 1 - len(target))
        target[row] = token
        source = next(m.tokens for m, own in zip(members, places, strict=True) if token in own and m.tokens)
        entry = source.added.get(token)
        if entry is None and source.file == "tokenizer.json" and source.kind not in _OPEN_KINDS:
            closed.append(token)
        additions[token] = (row, dict(entry or {}))
    if closed:
        problem = (
            f"{tokens_in_words(closed)} belong to a tokenizer's own model (BPE or Unigram), and two such models cannot "
            f"be joined. Keep one model's tokenizer: `tokenizer: base` or `tokenizer: {TASK}{members[1].name}`."
        )
        return Comparison(problems=(problem,), differ=True)
    fits = [member.size for member in members if member.size >= len(target)]
    target += [None] * (min(fits, default=len(target)) - len(target))
    return _made(members, names, target, 0, additions, choice)


def _made(
    members: Sequence[Member],
    names: Sequence[Sequence[str | None]],
    target: Sequence[str | None],
    files: int,
    additions: Mapping[str, tuple[int, dict[str, Any]]],
    choice: str | None,
) -> Comparison:
    """The merged vocabulary with these tokens in its rows."""
    rows = [_rows(own, target) for own in names]
    taken = tuple(
        tuple(str(t) for t, ours, theirs in zip(target, rows[0], own, strict=True) if t and ours < 0 <= theirs)
        for own in rows[1:]
    )
    if files and members[0].tokens and choice is None and {*target} <= {*names[0], None}:
        files = 0
    notes = _notes(members, names, target, taken, choice)
    merged = MergedVocabulary(tuple(target), tuple(rows), files, additions, taken, tuple(notes))
    return Comparison(merged, differ=True)


def _rows(own: Sequence[str | None], target: Sequence[str | None]) -> tuple[int, ...]:
    """For every row of the target the row of a member's tables with the same token, or the same row if none has one."""
    places = {token: row for row, token in reversed(list(enumerate(own))) if token is not None}
    return tuple(
        places.get(token, -1) if token is not None else (row if row < len(own) and own[row] is None else -1)
        for row, token in enumerate(target)
    )


def _notes(
    members: Sequence[Member],
    names: Sequence[Sequence[str | None]],
    target: Sequence[str | None],
    taken: Sequence[Sequence[str]],
    choice: str | None,
) -> Iterator[str]:
    has = set(target)
    gained: dict[str, list[str]] = {}
    lost: dict[str, list[str]] = {}
    for member, new in zip(members[1:], taken, strict=True):
        for token in new:
            gained.setdefault(token, []).append(member.name)
    for member, own in zip(members, names, strict=True):
        for name in own:
            if name is not None and name not in has:
                lost.setdefault(name, []).append(member.name)
    for who, tokens in _by_owner(gained).items():
        several = len(who) > 1
        yield (
            f"{tokens_in_words(tokens)}: the base has no such {_plural('token', tokens)}, so "
            f"{'their rows are' if len(tokens) > 1 else 'its row is'} "
            f"{'the mean of those of ' if several else 'taken from '}{_join(who)}"
            f"{', as far as they were trained' if several else ''}."
        )
    for who, tokens in _by_owner(lost).items():
        yield f"{tokens_in_words(tokens)} of {_join(who)}: left out, since the recipe says `tokenizer: {choice}`."
    if len(target) != members[0].size:
        yield f"The vocabulary has {len(target)} rows in the merged model, and {members[0].size} in the base."
    smaller = [member for member in members[1:] if member.size < members[0].size]
    for member in smaller:
        yield (
            f"{member.name}: its tables have {member.size} rows and the base's {members[0].size}; it changes nothing "
            "in the rows that it lacks."
        )
    if choice is not None:
        yield f"`tokenizer: {choice}`: rows are matched by token."


def _by_owner(found: Mapping[str, Sequence[str]]) -> dict[tuple[str, ...], list[str]]:
    """The same the other way round: the tokens that the same models have."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for token, who in found.items():
        groups.setdefault(tuple(who), []).append(token)
    return groups


def tokens_in_words(tokens: Sequence[str]) -> str:
    """The first tokens, and how many more there are."""
    named = [token for token in tokens if token[0] != "\0"]
    if not named:
        first, last = tokens[0][1:], tokens[-1][1:]
        return f"Row {first}" if first == last else f"Rows {first} to {last}"
    more = f" and {len(tokens) - MAX_NAMED} more" if len(tokens) > MAX_NAMED else ""
    return f"{_plural('Token', tokens)} {', '.join(map(quote, named[:MAX_NAMED]))}{more}"


def quote(token: str) -> str:
    """A token as it is shown: in quotes, without control characters, and not too long."""
    shown = token if len(token) <= _MAX_TOKEN else f"{token[: _MAX_TOKEN - 3]}..."
    return f"row {shown[1:]} (no name)" if token[:1] == "\0" else repr(shown)


def _plural(word: str, things: Sequence[Any]) -> str:
    return word if len(things) == 1 else f"{word}s"


def _join(names: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
