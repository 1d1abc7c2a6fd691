"""What the leaderboard looks like."""

from __future__ import annotations

import base64
from collections.abc import Sequence

from sftm_app.ui.evaluate.leaderboard import MEAN, NAME, SIZE, TIME, Leaderboard, Order, to_csv
from sftm_app.ui.evaluate.score_view import SAME, look
from sftm_app.ui.merges import Merge
from sftm_app.ui.widgets import view_link
from sftm_app.ui.widgets.html import Html, code, empty_state, hint, join, small, stack, strong, swatch, table
from sftm_app.units import format_bytes, format_duration

# The element that a click on a merge scrolls to, and the one that stays in sight when it is sorted.
ABOUT, BOARD = "about-merge", "leaderboard"
MOST_NOTES_SHOWN = 90


def board_html(board: Leaderboard, merges: Sequence[Merge], order: Order, chosen: str) -> Html:
    """The table.

    Args:
        board: its scores.
        merges: the lines, in their order.
        order: how they are sorted.
        chosen: the id of the merge whose name and notes are shown below.
    """
    if not board.merges:
        return empty_state("No merges yet", "Every merge of these models is listed here, with its scores.")
    if not merges:
        return empty_state("No merge fits the filter", "Clear it to see all of them.")
    columns = [_title("merge", NAME, order), _title("mean", MEAN, order)]
    columns += [_title(task, f"task:{task}", order) for task in board.tasks]
    columns += [_title("time", TIME, order), _title("size", SIZE, order)]
    rows = [_row(board, one, chosen) for one in merges]
    n = f"Scores of up to {board.n_samples} samples per task, as chosen above." if board.n_samples else ""
    missing = f" {len(board.unmeasured)} of {len(board.merges)} are not measured on these samples." if n else ""
    caption = f"{n}{missing if board.unmeasured else ''}"
    help_line = "A column's title sorts. Click a merge to name it, to add notes, to try it or to delete it."
    return stack(table(columns, rows, range(1, len(columns)), caption), hint(help_line))


def _title(text: str, column: str, order: Order) -> Html:
    mark = (" ▾" if order.descending else " ▴") if column == order.column else ""
    return view_link(f"{text}{mark}", BOARD, ("sort", column))


def _row(board: Leaderboard, merge: Merge, chosen: str) -> list[object]:
    name: object = view_link(merge.name, ABOUT, ("merge", merge.id))
    if merge.id == chosen:
        name = strong(name)
    lines: list[object] = [join([swatch(*look(merge.candidate)), name], " ")]
    lines += [small(merge.settings_name)] if merge.about.name else []
    notes = " ".join(merge.about.notes.split())
    lines += [small(notes if len(notes) <= MOST_NOTES_SHOWN else f"{notes[:MOST_NOTES_SHOWN]}…")] if notes else []
    saved = ", ".join(folder.name for folder in merge.saved)
    lines += [small(f"saved as {saved}")] if saved else []
    tasks = [score.value if (score := board.score(merge, task)) else None for task in board.tasks]
    return [
        join(lines, "<br>"),
        _mean(board, merge),
        *("·" if value is None else f"{value:.1%}" for value in tasks),
        format_duration(merge.report.seconds).removeprefix("about "),
        format_bytes(merge.report.output_bytes),
    ]


def _mean(board: Leaderboard, merge: Merge) -> object:
    mean, best = board.mean(merge), board.best
    if mean is None or best is None:
        return "·"
    value = f"{mean.value:.1%}"
    between = small(f"{mean.interval.low:.0%} to {mean.interval.high:.0%}")
    if merge.id == best.id:
        return join([strong(value), between], "<br>")
    difference = board.scores.difference(merge.candidate.key, best.candidate.key)
    same = [small(f"{SAME} from the best")] if difference is not None and difference.holds_zero else []
    return join([value, between, *same], "<br>")


def csv_link(board: Leaderboard, merges: Sequence[Merge]) -> Html:
    """A link that downloads the lines as CSV, without a file on the server; "" where there are none."""
    if not merges:
        return Html("")
    content = base64.b64encode(to_csv(board, merges).encode("utf-8-sig")).decode()
    link = '<a class="sf-button" download="merges.csv" href="data:text/csv;base64,{}">Export CSV</a>'
    return Html(link).format(content)


def deletion_html(merge: Merge) -> Html:
    """What would be deleted."""
    folders = [*([merge.run.path] if merge.run else []), *merge.saved]
    size = format_bytes(merge.report.output_bytes * len(folders))
    listed = join([code(folder) for folder in folders], ", ")
    sentence = "Delete {}? This removes {} ({}). It cannot be undone."
    return hint(Html(sentence).format(strong(merge.name), listed, size))
