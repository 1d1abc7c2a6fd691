"""`--listen`: a token opens the app, and nobody sees, cancels or reads what others have. (FAULTS D2, D6)"""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import gradio as gr
import pytest
from fastapi.testclient import TestClient
from gradio.routes import App

from sftm_app.cli import main
from sftm_app.errors import InputError, JobError
from sftm_app.jobs.events import Started
from sftm_app.jobs.folder import create_run, open_run
from sftm_app.jobs.workers import Workers
from sftm_app.session import Session
from sftm_app.ui.launching import launch_options
from sftm_app.ui.listening import Door, Visitors, open_door
from sftm_app.ui.merging.run_panel import RunPanel
from sftm_app.ui.models.checkpoints import find_checkpoints
from sftm_app.ui.settings import Settings, allowed
from sftm_app.ui.studio import Studio
from sftm_app.ui.widgets.gradio_internals import visitor_of_event
from sftm_app.ui.widgets.html import without_folders

DOOR = Door("0.0.0.0", frozenset({"lab.example", "127.0.0.1"}), token="right")


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock, build = Clock(), Visitors.__init__
    monkeypatch.setattr(Visitors, "__init__", lambda self, app, token, uploads: build(self, app, token, uploads, clock))
    return clock


@pytest.fixture
def app(tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
    with gr.Blocks(analytics_enabled=False) as page:
        shown = gr.Textbox()
        gr.Button("At once").click(visitor_of_event, None, shown, api_name="at_once", queue=False)
    page.max_file_size = None  # as launch() sets it
    options = launch_options(Settings(tmp_path, tmp_path, tmp_path), DOOR)
    assert options["server_name"] == "0.0.0.0"
    return App.create_app(page, app_kwargs=options["app_kwargs"])


def browser(app: Any) -> TestClient:
    return TestClient(app, base_url="http://lab.example:7860", follow_redirects=False)


def visitor(app: Any) -> TestClient:
    """A browser that was let in."""
    client = browser(app)
    assert client.get("/?token=right").status_code == 303
    return client


def test_without_the_token_no_route_answers(app: Any) -> None:
    client = browser(app)
    for method, path in (("GET", "/"), ("GET", "/config"), ("POST", "/gradio_api/queue/join"), ("GET", "/theme.css")):
        assert client.request(method, path).status_code == 401
    assert client.get("/config?token=right").status_code == 401, "the token opens the page only"
    for cookie in ("", "x", "x.y", ".", "a" * 5000, "visitor." + "0" * 64):
        assert client.get("/config", headers={"cookie": f"sftm_visitor={cookie}"}).status_code == 401
    assert client.get("/", headers={"host": "evil.example"}).status_code == 403


def test_the_token_is_exchanged_for_a_cookie_and_leaves_the_address(app: Any) -> None:
    client = browser(app)
    answer = client.get("/?demo=letters&token=right&tab=merge")
    assert (answer.status_code, answer.headers["location"]) == (303, "/?demo=letters&tab=merge")
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie and "SameSite=Lax" in cookie and "right" not in cookie
    assert client.get("/config").status_code == 200
    stolen = client.cookies["sftm_visitor"]
    assert browser(app).get("/config", headers={"cookie": f"sftm_visitor={stolen[:-1]}x"}).status_code == 401
    assert visitor(app).cookies["sftm_visitor"] != stolen


def test_after_five_wrong_tries_one_has_to_wait(app: Any, clock: Clock) -> None:
    client = browser(app)
    codes = [client.get(f"/?token=wrong{index}").status_code for index in range(7)]
    assert codes == [403] * 5 + [429] * 2
    answer = client.get("/?token=right")
    assert answer.status_code == 429 and int(answer.headers["retry-after"]) <= 2
    waits = []
    for _ in range(12):
        while client.get("/?token=wrong").status_code == 429:
            clock.now += 1
        waits.append(clock.now)
    steps = [later - earlier for earlier, later in pairwise(waits)]
    assert steps == sorted(steps) and steps[-1] > 100, "the wait doubles"
    clock.now += 400
    assert client.get("/?token=right").status_code == 303
    assert client.get("/config?token=wrong").status_code == 200, "a visitor needs no token"


def test_uploads_are_apart(app: Any) -> None:
    first, second = visitor(app), visitor(app)
    (path,) = first.post("/gradio_api/upload", files={"files": ("a.txt", b"mine")}).json()
    assert first.get(f"/gradio_api/file={path}").text == "mine"
    assert second.get(f"/gradio_api/file={path}").status_code == 403
    around = f"{Path(path).parent}/../{Path(path).parent.name}/{Path(path).name}"
    assert second.get(f"/gradio_api/file={around}").status_code == 403
    posted = {"data": [{"path": path, "meta": {"_type": "gradio.FileData"}}], "fn_index": 0, "session_hash": "x"}
    assert second.post("/gradio_api/queue/join", json=posted).status_code == 403
    assert first.post("/gradio_api/queue/join", content=json.dumps(posted)).status_code != 403


def test_an_event_knows_whose_it_is(app: Any) -> None:
    """It is handled in another thread than its request."""
    for client in (visitor(app), visitor(app)):
        own = client.cookies["sftm_visitor"].partition(".")[0]
        assert client.post("/gradio_api/run/at_once", json={"data": []}).json()["data"] == [own]


@pytest.fixture
def shared(tiny_models: Path, tmp_path: Path, session: Session) -> tuple[Studio, list[str]]:
    """A Studio, and the list whose last entry is the visitor whose event is handled."""
    now = [""]
    output = tmp_path / "models" / "output"  # below the models, as by default
    output.mkdir(parents=True)
    return Studio(Settings(tmp_path / "models", output, tmp_path / "packs"), session, lambda: now[-1]), now


def test_visitors_see_and_cancel_their_own_runs_only(
    shared: tuple[Studio, list[str]], recipe_for: Callable[..., Any], no_server: None
) -> None:
    studio, now = shared
    now.append("anna")
    run = create_run(studio.settings.runs_dir, recipe_for("a"))
    run.append(Started(2**31 - 1, 1.0))
    with gr.Blocks(analytics_enabled=False):
        panel = RunPanel(studio)
        panel.lay_out_buttons()
        panel.lay_out()
    assert [value for _, value in panel.show(run.run_id)[panel.runs]["choices"]] == [run.run_id]
    now.append("bob")
    assert panel.show("")[panel.runs]["choices"] == []
    assert "There is no run" in str(panel.show(run.run_id)[panel.progress])
    for act in (panel.stop, panel.resume_run):
        with pytest.raises(JobError, match="There is no run"):
            act({panel.run_id: run.run_id})
    assert not run.cancel_flag.exists()
    assert studio.comparisons is not studio._all.comparisons
    now.append("anna")
    assert open_run(studio.settings.runs_dir, run.run_id) == run


def test_what_others_made_is_neither_found_nor_opened(shared: tuple[Studio, list[str]]) -> None:
    studio, now = shared
    now.append("anna")
    model = studio.settings.saved_dir / "mine"
    model.mkdir(parents=True)
    (model / "model.safetensors").write_bytes(b"x")
    assert allowed(studio.settings, str(model)) == model
    now.append("bob")
    with pytest.raises(InputError, match="hidden folder"):
        allowed(studio.settings, str(model))
    assert find_checkpoints(studio.settings.models_dir) == []


def test_others_merging_is_said() -> None:
    workers = Workers(at_once=0)
    with pytest.raises(JobError, match="others are merging"):
        workers.launch(None)  # type: ignore[arg-type]


def test_a_door_is_for_this_machines_names() -> None:
    door = open_door("0.0.0.0", ["Lab.Example"])
    assert {"lab.example", "localhost", "127.0.0.1"} <= door.hosts and len(door.token) >= 32
    assert open_door("0.0.0.0").token != door.token
    assert all(url.endswith(f":7861/?token={door.token}") for url in door.urls(7861))
    assert door.token not in repr(door)
    assert open_door("127.0.0.1").urls(1)[0].startswith("http://")
    with pytest.raises(InputError, match="is not an address"):
        open_door("evil example")


def test_a_host_without_a_door_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["ui", "--allow-host", "lab.example"])
    assert ended.value.code == 2 and "--allow-host is for --listen" in capsys.readouterr().err


def test_errors_shown_to_others_name_no_folders() -> None:
    said = "/home/anna/models/base/config.json: is empty. See `C:\\Users\\anna\\x.yaml`, a/b and 3/4 or http://x/y."
    assert without_folders(said) == "config.json: is empty. See `x.yaml`, a/b and 3/4 or http://x/y."
