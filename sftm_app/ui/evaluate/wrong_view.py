"""The wrong answers of one model to one task, each of which opens next to what the other models say."""

from __future__ import annotations

from sftm_app.evaluation.answer_sheet import AnswerSheet
from sftm_app.evaluation.samples import ImageSamples, Samples
from sftm_app.ui.inspect.pictures import picture_uri
from sftm_app.ui.widgets import view_link
from sftm_app.ui.widgets.html import Html, heading, hint, join, small, stack
from sftm_app.units import format_count

# The element above what an opened sample is shown in.
SAMPLE = "task"
MOST_SHOWN, MOST_CHARACTERS = 60, 120


def wrong_html(title: str, task: str, sheet: AnswerSheet, samples: Samples) -> Html:
    """The samples that a model gets wrong.

    Args:
        title: of the model.
        task: the task.
        sheet: the model's answers.
        samples: what it answered to.
    """
    wrong = sheet.wrong
    name = f"{title} on {task}"
    if not wrong:
        return stack(heading(name), hint(f"All {len(sheet)} answers are right."))
    more = f" The first {MOST_SHOWN} are shown." if len(wrong) > MOST_SHOWN else ""
    said = f"{len(wrong)} of {format_count(len(sheet), 'answer')} are wrong.{more} Click one to ask all ticked models."
    items = [view_link(_one(sheet, samples, place), SAMPLE, ("sample", task, place)) for place in wrong[:MOST_SHOWN]]
    return stack(heading(name, said), Html('<div class="sf-wrongs">{}</div>').format(join(items)))


def _one(sheet: AnswerSheet, samples: Samples, place: int) -> Html:
    verdict = join([sheet.answers[place].strip()[:MOST_CHARACTERS] or "(nothing)", small("instead of"), ""], " ")
    right = sheet.targets[place].strip()[:MOST_CHARACTERS]
    if isinstance(samples, ImageSamples):
        picture = Html('<img src="{}" alt="sample {}">').format(picture_uri(samples.images[place], None), place + 1)
        return join([picture, Html("<span>{}{}</span>").format(verdict, right)])
    text = samples.inputs[place].strip()
    shown = text if len(text) <= MOST_CHARACTERS else f"{text[:MOST_CHARACTERS]}…"
    return Html("<span>{}<br>{}{}</span>").format(small(shown), verdict, right)
