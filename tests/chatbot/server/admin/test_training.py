"""Training runs and their preview over HTTP."""

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from chatbot.errors import TrainingError
from chatbot.record.database import Database
from chatbot.record.tables import Conversation, Site
from chatbot.server.admin import training
from chatbot.server.admin.counting import SharedCount, data_mark
from chatbot.server.admin.training import load_preview, site_prompts
from chatbot.services import Services
from chatbot.settings import Settings
from chatbot.training_runs import TrainingRuns
from tests.chatbot.recorded import record_conversation, reply, review, visitor


async def _start(http: httpx.AsyncClient, request_id: str = "r-1", **body: Any) -> httpx.Response:
    return await http.post("/training/runs", json={"request_id": request_id, **body})


async def test_a_run_begins_and_is_listed(
    admin: httpx.AsyncClient, reviewer: httpx.AsyncClient
) -> None:
    answer = await _start(admin, epochs=2, learning_rate=1e-3, auto_promote=True)
    assert answer.status_code == 201
    run = answer.json()
    assert (run["state"], run["requested_by"]) == ("queued", "admin")
    assert run["settings"] == {"epochs": 2, "learning_rate": 1e-3, "auto_promote": True}
    assert (await reviewer.get(f"/training/runs/{run['id']}")).json() == run
    assert (await reviewer.get("/training/runs")).json() == {"items": [run]}


async def test_a_double_click_makes_one_run(admin: httpx.AsyncClient) -> None:
    answers = await asyncio.gather(_start(admin), _start(admin))
    assert sorted(answer.status_code for answer in answers) == [200, 201]
    assert answers[0].json()["id"] == answers[1].json()["id"]


async def test_another_run_is_refused_and_named(admin: httpx.AsyncClient) -> None:
    run = (await _start(admin)).json()
    answer = await _start(admin, "r-2")
    assert answer.status_code == 409
    error = answer.json()["error"]
    assert (error["code"], error["run_id"]) == ("run_active", run["id"])


@pytest.mark.parametrize(
    "body",
    [
        {"request_id": ""},
        {"request_id": "a b"},
        {"epochs": 0},
        {"epochs": "many"},
        {"rank": 0},
        {"learning_rate": 2},
        {"limit": -1},
        {"max_step": 5},
    ],
)
async def test_bad_settings_are_refused(admin: httpx.AsyncClient, body: dict[str, Any]) -> None:
    answer = await admin.post("/training/runs", json={"request_id": "r-1", **body})
    assert answer.status_code == 422
    assert answer.json()["error"]["message"].startswith(next(iter(body)))
    assert (await admin.get("/training/runs")).json() == {"items": []}


async def test_progress_is_followed_by_number(
    services: Services, admin: httpx.AsyncClient, reviewer: httpx.AsyncClient
) -> None:
    run = (await _start(admin)).json()
    path = f"/training/runs/{run['id']}/progress"
    empty = {"items": [], "last": 0, "state": "queued"}
    assert (await reviewer.get(path)).json() == empty
    services.runs.begin(run["id"])
    for step in (1, 2, 3):
        services.runs.progress(run["id"], phase="train", step=step, total_steps=3, loss=3.0 / step)
    data = (await reviewer.get(path, params={"after": 1})).json()
    assert [item["step"] for item in data["items"]] == [2, 3]
    assert (data["last"], data["state"]) == (3, "running")
    assert (await reviewer.get(path, params={"after": 3})).json()["items"] == []
    services.runs.complete(run["id"], "v-1")
    done = (await reviewer.get(f"/training/runs/{run['id']}")).json()
    assert (done["state"], done["version_id"], done["loss"]) == ("completed", "v-1", 1.0)


async def test_a_run_is_cancelled(services: Services, admin: httpx.AsyncClient) -> None:
    run = (await _start(admin)).json()
    services.runs.begin(run["id"])
    answer = await admin.post(f"/training/runs/{run['id']}/cancel")
    assert answer.status_code == 200
    assert (answer.json()["state"], answer.json()["cancel_requested"]) == ("running", True)
    services.runs.complete(run["id"], "v-1")
    late = await admin.post(f"/training/runs/{run['id']}/cancel")
    assert late.status_code == 409


async def test_unknown_runs_are_not_found(admin: httpx.AsyncClient) -> None:
    for method, path in (("GET", ""), ("GET", "/progress"), ("POST", "/cancel")):
        answer = await admin.request(method, f"/training/runs/run-none{path}")
        assert answer.status_code == 404


async def test_a_run_that_redis_did_not_take_is_told_and_kept(
    database: Database, services: Services, admin: httpx.AsyncClient
) -> None:
    from dataclasses import replace

    transport = admin._transport
    assert isinstance(transport, httpx.ASGITransport)
    app: Any = transport.app
    away = replace(services, runs=TrainingRuns(database, "redis://127.0.0.1:1"))
    app.state.services = away
    answer = await _start(admin)
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "store_unavailable"
    app.state.services = services
    again = await _start(admin)
    assert again.status_code == 200
    assert again.json()["state"] == "queued"


# -- the preview


def _stand_in(run_settings: dict[str, Any], reviewed: Any, settings: Settings) -> dict[str, Any]:
    """In place of finetune's part: it counts what the server hands over."""
    dialogues = list(reviewed)
    assert run_settings == {}
    return {
        "dialogues": len(dialogues),
        "from_file": 0,
        "from_reviews": len(dialogues),
        "corrections": sum(d["meta"]["correction"] for d in dialogues),
        "tokens": 7,
        "redaction": {"counts": {"EMAIL": 1}, "examples": [{"before": "a@b", "after": "[EMAIL]"}]},
        "fingerprint": "f",
        "can_start": True,
        "reason": None,
    }


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compute in this process, with the stand-in."""

    async def in_thread(settings: Settings, url: str) -> dict[str, Any]:
        return await asyncio.to_thread(training.compute_preview, settings, url)

    monkeypatch.setattr(training, "_in_child", in_thread)
    monkeypatch.setattr(training, "load_preview", lambda: _stand_in)
    monkeypatch.setattr(training, "NICE", 0)


@pytest.mark.usefixtures("here")
async def test_the_preview_counts_reviews_and_exclusions(
    database: Database, reviewer: httpx.AsyncClient, admin: httpx.AsyncClient
) -> None:
    for name in ("c-1", "c-2"):
        record_conversation(database, name, visitor("Hi"), reply("Hello"))
        review(database, name, 2, "bad", "Good day")
    with database.session() as session:
        row = session.get(Conversation, "c-2")
        assert row is not None
        row.excluded = True
    data = (await reviewer.get("/training/preview")).json()
    assert (data["from_reviews"], data["corrections"], data["excluded"]) == (1, 1, 1)
    assert data["redaction"]["examples"] == [{"before": "a@b", "after": "[EMAIL]"}]
    assert (data["can_start"], data["reason"]) == (True, None)
    run = (await _start(admin)).json()
    data = (await reviewer.get("/training/preview")).json()
    assert not data["can_start"]
    assert run["id"] in data["reason"]


class _Counted:
    """In place of the child: says how often it counted, and goes on when it is let."""

    def __init__(self) -> None:
        self.times = 0
        self.began = asyncio.Event()
        self.may_end = asyncio.Event()

    async def __call__(self, settings: Settings, url: str) -> dict[str, Any]:
        self.times += 1
        self.began.set()
        await self.may_end.wait()
        return {**_stand_in({}, [], settings), "excluded": 0, "tokens": self.times}


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> _Counted:
    counting = _Counted()
    monkeypatch.setattr(training, "_in_child", counting)
    return counting


async def test_all_who_ask_at_once_share_one_count(
    counted: _Counted, reviewer: httpx.AsyncClient, admin: httpx.AsyncClient
) -> None:
    asked = [asyncio.create_task(who.get("/training/preview")) for who in (reviewer, admin, admin)]
    await counted.began.wait()
    asked[0].cancel()  # who leaves the page takes the count along for nobody
    await asyncio.wait([asked[0]])
    counted.may_end.set()
    answers = await asyncio.gather(*asked[1:])
    assert [answer.json()["tokens"] for answer in answers] == [1, 1]
    assert counted.times == 1


async def test_the_count_is_kept_until_a_review_changes(
    counted: _Counted, database: Database, reviewer: httpx.AsyncClient
) -> None:
    counted.may_end.set()
    record_conversation(database, "c-1", visitor("Hi"), reply("Hello"))
    for _ in range(2):
        assert (await reviewer.get("/training/preview")).json()["tokens"] == 1
    review(database, "c-1", 2, "good")
    assert (await reviewer.get("/training/preview")).json()["tokens"] == 2


async def test_data_that_changes_meanwhile_is_counted_afterwards() -> None:
    shared, may_end, seen = SharedCount(), asyncio.Event(), list[str]()

    async def slow() -> dict[str, Any]:
        seen.append("old begins")
        await may_end.wait()
        seen.append("old ends")
        return {"n": 1}

    async def next_one() -> dict[str, Any]:
        seen.append("new begins")
        return {"n": 2}

    old = asyncio.create_task(shared.get("a", slow))
    await asyncio.sleep(0)
    new = asyncio.create_task(shared.get("b", next_one))
    await asyncio.sleep(0)
    may_end.set()
    assert await asyncio.gather(old, new) == [{"n": 1}, {"n": 2}]
    assert seen == ["old begins", "old ends", "new begins"]


async def test_a_count_that_failed_is_tried_again() -> None:
    shared = SharedCount()

    async def fails() -> dict[str, Any]:
        raise TrainingError("cut off")

    async def works() -> dict[str, Any]:
        return {"n": 1}

    with pytest.raises(TrainingError):
        await shared.get("a", fails)
    assert await shared.get("a", works) == {"n": 1}


def test_the_mark_of_the_data_follows_its_files(database: Database, tmp_path: Path) -> None:
    file = tmp_path / "train.jsonl"
    settings = Settings(train_data=str(file))
    marks = [data_mark(settings, database)]
    for text in ("a\n", "a\nb\n"):
        file.write_text(text)
        marks.append(data_mark(settings, database))
    assert len(set(marks)) == 3
    assert data_mark(settings, database) == marks[-1]


def test_sites_have_their_own_prompts(database: Database) -> None:
    with database.session() as session:
        for name, prompt in (("own", "Be brief."), ("none", "")):
            session.add(Site(name=name, origins=[], system_prompt=prompt, created_at=1))
    prompts = site_prompts(database, "Default.")
    assert [prompts(name) for name in ("own", "none", "gone")] == [
        "Be brief.",
        "Default.",
        "Default.",
    ]


def test_without_finetune_the_preview_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "entry_points", lambda **_: [])
    with pytest.raises(TrainingError, match="install the package finetune"):
        load_preview()


@pytest.mark.model
async def test_the_real_preview_in_its_own_process(
    services: Services,
    database: Database,
    reviewer: httpx.AsyncClient,
    data_dir_with_base: Path,
    tmp_path: Path,
) -> None:
    """The entry point, the child process, and finetune's own counting."""
    from dataclasses import replace

    line = {
        "messages": [
            {"role": "user", "content": "Write to me: jo@example.com"},
            {"role": "assistant", "content": "I will."},
        ]
    }
    file = tmp_path / "train.jsonl"
    file.write_text(json.dumps(line) + "\n")
    record_conversation(database, "c-1", visitor("Hi"), reply("Hello"))
    review(database, "c-1", 2, "good")
    settings = Settings(data_dir=data_dir_with_base, train_data=str(file))
    transport = reviewer._transport
    assert isinstance(transport, httpx.ASGITransport)
    app: Any = transport.app
    app.state.services = replace(services, settings=settings)
    answer = await reviewer.get("/training/preview", timeout=120)
    assert answer.status_code == 200, answer.text
    data = answer.json()
    assert (data["dialogues"], data["from_file"], data["from_reviews"]) == (2, 1, 1)
    assert data["redaction"]["counts"] == {"EMAIL": 1}
    assert data["redaction"]["examples"][0]["after"] == "Write to me: [EMAIL]"
    assert data["tokens"] > 20
    assert len(data["fingerprint"]) == 64
    assert data["can_start"]
