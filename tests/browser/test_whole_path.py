"""What a person does, in a real Chromium: demo, inspect, merge, reload, draw, save, load elsewhere."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from browser_page import App, Watched
from playwright.sync_api import Page, expect
from safetensors.torch import load_file
from transformers import AutoConfig, AutoImageProcessor, ViTForImageClassification

from sftm_app.evaluation.packs import find_packs, load_samples
from sftm_app.jobs.folder import RunFolder, list_runs
from sftm_app.jobs.status import status
from sftm_app.resources import asset_path

pytestmark = pytest.mark.browser

N_SAMPLES = 200
PATIENCE_S = 90


def open_tab(page: Page, name: str) -> None:
    page.get_by_role("tab", name=name, exact=True).click()


def load_demo(page: Page, app: App) -> None:
    page.goto(app.url)
    page.locator("#try-glyphs").click()
    expect(page.locator("#preflight")).to_contain_text("8 tasks fit the base")


def click_cell(page: Page, row: int, column: int) -> str:
    """Click a cell of the layer map and return the tensor's name that the figure holds for it."""
    place: dict[str, Any] = page.evaluate(
        """([row, column]) => {
            const plot = document.querySelector('#layer-map .js-plotly-plot');
            const x = plot._fullLayout.xaxis, y = plot._fullLayout.yaxis;
            const box = plot.getBoundingClientRect();
            return {x: box.left + x._offset + x.c2p(column), y: box.top + y._offset + y.c2p(row),
                    name: plot.data[0].customdata[row][column]};
        }""",
        [row, column],
    )
    page.mouse.click(place["x"], place["y"])
    return str(place["name"])


def wait_for_full_map(page: Page) -> None:
    """Until every layer of the map has its number."""
    page.wait_for_function(
        """() => {
            const data = document.querySelector('#layer-map .js-plotly-plot')?._fullData?.[0];
            if (!data) return false;
            const names = data.customdata.flat().filter((name) => name !== null);
            return Array.from(data.z).flatMap((row) => Array.from(row)).filter(Number.isFinite).length === names.length;
        }"""
    )


def wait_for_run(page: Page, app: App, before: list[RunFolder]) -> RunFolder:
    """The run that was just started. The page may show it only after a short merge has ended."""
    deadline = time.monotonic() + PATIENCE_S
    while len(list_runs(app.output_dir / "runs")) == len(before) and time.monotonic() < deadline:
        page.wait_for_timeout(20)
    (run,) = set(list_runs(app.output_dir / "runs")) - set(before)
    return run


def draw_seven(page: Page) -> None:
    box = page.locator("#pad canvas").bounding_box()
    assert box is not None

    def at(x: float, y: float) -> tuple[float, float]:
        return box["x"] + x * box["width"], box["y"] + y * box["height"]

    page.mouse.move(*at(0.3, 0.25))
    page.mouse.down()
    page.mouse.move(*at(0.7, 0.25), steps=8)
    page.mouse.move(*at(0.45, 0.8), steps=12)
    page.mouse.up()


def accuracy_with_transformers(saved: Path, task: str) -> float:
    """The saved folder and a saved head, loaded by transformers alone, on the samples that the table is filled with."""
    config = AutoConfig.from_pretrained(saved / "heads" / f"{task}.json")
    model = ViTForImageClassification.from_pretrained(saved, config=config)
    missing, unexpected = model.load_state_dict(load_file(saved / "heads" / f"{task}.safetensors"), strict=False)
    assert not unexpected and not [name for name in missing if name.startswith("classifier")]
    pack = next(pack for pack in find_packs(asset_path("demo")) if pack.name == "glyphs")
    samples = load_samples(next(item for item in pack.tasks if item.name == task)).subset(N_SAMPLES)
    processor = AutoImageProcessor.from_pretrained(saved, backend="pil")
    images = list(samples.images[:, None])
    pixels = processor(images=images, return_tensors="pt", input_data_format="channels_first")["pixel_values"]
    with torch.inference_mode():
        answers = model.float().eval()(pixel_values=pixels).logits.argmax(-1)
    return float((answers.numpy() == samples.labels).mean())


def test_from_the_demo_to_a_saved_model(app: App, watched: Watched) -> None:
    page = watched.page
    load_demo(page, app)

    open_tab(page, "Inspect")
    expect(page.locator("#spectra .js-plotly-plot")).to_be_visible()
    wait_for_full_map(page)
    name = click_cell(page, 3, 2)
    expect(page.locator("#layer-title")).to_contain_text(name.removesuffix(".weight"))
    expect(page.locator("#pair-read .js-plotly-plot")).to_be_visible()
    expect(page.locator("#pair-write .js-plotly-plot")).to_be_visible()

    open_tab(page, "Merge")
    before = list_runs(app.output_dir / "runs")
    page.locator("#start").click()
    run = wait_for_run(page, app, before)
    assert status(run).active, "the reload must come while the merge is running"
    page.reload()
    open_tab(page, "Merge")
    expect(page.locator("#result")).to_contain_text("Memory")
    assert list_runs(app.output_dir / "runs") == [run, *before], "the reload shows the same run and starts no other"

    # The result opens with what the merge can do, measured at once.
    expect(page.locator("#run-bars .js-plotly-plot")).to_be_visible()
    expect(page.locator("#measure-cancel")).to_be_hidden()
    expect(page.locator("#run-scores thead th")).to_have_text(
        ["task", "Base", "Individual", "Plain average", "This merge"]
    )
    expect(page.locator("#preservation")).to_be_hidden()
    mean = page.locator("#run-scores tr", has_text="Mean").locator("td").last.locator("strong").inner_text()

    page.locator("#evaluate-merge").click()
    expect(page.get_by_role("tab", name="Evaluate", exact=True)).to_have_attribute("aria-selected", "true")
    mine = page.locator("#accuracies tbody tr", has_text="Your merge: SFTM")
    expect(mine).to_contain_text(mean)
    expect(page.locator("#accuracies")).not_to_contain_text("·")
    draw_seven(page)
    expect(page.locator("#verdict")).to_contain_text("Your merge")
    expect(page.locator("#verdict")).to_contain_text("sure")
    # The samples behind a score, and what each model says of one that the merge gets wrong.
    header = page.locator("#accuracies thead th").all_inner_texts()
    mine.locator("td").nth(header.index("hebrew")).get_by_role("button").click()
    expect(page.locator("#wrong-answers")).to_contain_text("Your merge: SFTM on hebrew")
    page.locator("#wrong-answers button").first.click()
    expect(page.locator("#task input")).to_have_value("hebrew")
    expect(page.locator("#verdict")).to_contain_text("The right answer is")
    expect(page.locator("#verdict .sf-stat-error").first).to_be_visible()

    open_tab(page, "Merge")
    page.locator("#save-name input, #save-name textarea").first.fill("from the browser")
    page.locator("#save").click()
    expect(page.locator("#saved")).to_contain_text("Saved from the browser")

    saved = app.output_dir / "models" / "from the browser"
    shown = dict(zip(header, mine.locator("td").all_text_contents(), strict=True))
    for head in sorted((saved / "heads").glob("*.safetensors")):
        assert shown[head.stem].startswith(f"{accuracy_with_transformers(saved, head.stem):.1%}")
    report = json.loads((saved / "sftm_report.json").read_text(encoding="utf-8"))
    assert report["method"] == "sftm" and len(report["inputs"]) == 9

    assert watched.errors == []
    assert watched.outside == []


def test_the_leaderboard_names_sorts_and_deletes(app: App, watched: Watched) -> None:
    page = watched.page
    page.on("console", lambda message: watched.errors.append(message.text) if message.type == "error" else None)
    load_demo(page, app)
    for method in ("Plain average", "Task arithmetic"):
        open_tab(page, "Merge")
        page.locator("#method input").click()
        page.get_by_role("option", name=method, exact=True).click()
        expect(page.locator("#plan")).to_contain_text(method)
        expect(page.locator("#start")).to_be_enabled()
        before = list_runs(app.output_dir / "runs")
        page.locator("#start").click()
        wait_for_run(page, app, before)
        expect(page.locator("#result")).to_contain_text(method)
        expect(page.locator("#measure-cancel")).to_be_hidden()
    open_tab(page, "Evaluate")
    rows = page.locator("#board tbody tr")
    expect(rows).to_have_count(2)
    expect(rows.first).to_contain_text("Task arithmetic")
    page.locator("#board thead").get_by_text("merge").click()
    expect(rows.first).to_contain_text("Plain average")
    rows.first.get_by_role("button").click()
    page.locator("#merge-name input, #merge-name textarea").first.fill("my <b>plain</b> one")
    page.locator("#merge-keep").click()
    expect(page.locator("#board")).to_contain_text("my <b>plain</b> one")
    filter_box = page.locator("#board-filter input, #board-filter textarea").first
    filter_box.fill("arithmetic")
    expect(rows).to_have_count(1)
    filter_box.fill("")
    expect(rows).to_have_count(2)
    page.locator("#merge-delete").click()
    expect(page.locator("#merge-sure")).to_contain_text("It cannot be undone")
    page.locator("#merge-spare").click()
    expect(page.locator("#merge-delete-sure")).to_be_hidden()
    assert len(list_runs(app.output_dir / "runs")) == 2
    page.locator("#merge-delete").click()
    page.locator("#merge-delete-sure").click()
    expect(rows).to_have_count(1)
    assert len(list_runs(app.output_dir / "runs")) == 1
    assert watched.errors == []
    page.reload()
    open_tab(page, "Evaluate")
    expect(rows).to_have_count(1)
    expect(rows).to_contain_text("Task arithmetic")
    expect(rows).not_to_contain_text("·")
    assert watched.outside == []


def test_cancel_in_the_browser(app: App, watched: Watched) -> None:
    page = watched.page
    load_demo(page, app)
    open_tab(page, "Merge")
    before = list_runs(app.output_dir / "runs")
    page.locator("#start").click()
    run = wait_for_run(page, app, before)
    expect(page.locator("#start")).to_be_disabled()
    page.locator("#cancel:not([disabled])").click()
    expect(page.locator("#progress")).to_contain_text("was cancelled", timeout=5_000)
    expect(page.locator("#start")).to_be_enabled()
    assert not list(run.path.glob("model*"))
    assert watched.errors == []


def test_start_waits_for_settings_that_work(app: App, watched: Watched) -> None:
    page = watched.page
    load_demo(page, app)
    open_tab(page, "Merge")
    start, plan = page.locator("#start"), page.locator("#plan")
    expect(start).to_be_enabled()
    page.get_by_text("Device and output").click()
    for memory, said, works in [
        ("1MB", "This merge cannot start", False),
        ("8GB", "fits the budget", True),
        ("lots", "These settings do not work", False),
        ("any", "needs about", True),
    ]:
        page.locator("#memory input, #memory textarea").fill(memory)
        expect(plan).to_contain_text(said)
        expect(start).to_be_enabled(enabled=works)
    assert watched.errors == []


def test_own_checkpoints_and_refusals(app: App, watched: Watched, tiny_models: Path) -> None:
    """Paste paths; a base of its own is refused with a sentence, a sound set is loaded."""
    page = watched.page
    page.goto(app.url)

    def paste(selector: str, *paths: Path) -> None:
        box = page.locator(f"{selector} input").first
        for path in paths:
            box.fill(str(path))
            box.press("Enter")
        box.press("Tab")

    paste("#base-path", tiny_models / "base")
    paste("#task-paths", tiny_models / "base")
    page.locator("#load-own").click()
    expect(page.locator("#preflight")).to_contain_text("is the base itself")
    paste("#base-path", Path("/etc"))
    page.locator("#load-own").click()
    expect(page.locator("#preflight")).to_contain_text("outside the models folder")

    page.reload()
    paste("#base-path", tiny_models / "base")
    paste("#task-paths", tiny_models / "a", tiny_models / "b")
    page.locator("#load-own").click()
    expect(page.locator("#preflight")).to_contain_text("2 tasks fit the base")
    assert watched.errors == []
    assert watched.outside == []
