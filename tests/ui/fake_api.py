"""A small server that answers `/v1/admin` as docs/architecture.md says, from memory.

Tests reach into :class:`World` to arrange what they need and to see what was asked.
"""

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, StreamingResponse

NOW = 1_764_000_000_000
PASSWORD = "correct horse"
ROLES = {"ada": "admin", "rae": "reviewer", "guy": "agent"}
SCRIPT = "<script>window.hacked=1</script><img src=x onerror='window.hacked=1'> **bold** [a](b)"

Json = dict[str, Any]


class Refused(Exception):
    def __init__(self, status: int, code: str, message: str, **data: Any) -> None:
        self.status, self.body = status, {"code": code, "message": message, **data}


@dataclass
class World:
    """Everything the server knows, and the calls that it got."""

    conversations: list[Json] = field(default_factory=list)
    events: dict[str, list[Json]] = field(default_factory=dict)
    reviews: dict[str, list[Json]] = field(default_factory=dict)
    runs: list[Json] = field(default_factory=list)  # newest first
    requests: dict[str, Json] = field(default_factory=dict)  # request_id -> run
    progress: dict[str, list[Json]] = field(default_factory=dict)
    versions: list[Json] = field(default_factory=list)
    history: list[Json] = field(default_factory=list)
    sites: dict[str, Json] = field(default_factory=dict)
    staff: list[Json] = field(default_factory=list)
    audit: list[Json] = field(default_factory=list)
    retention: dict[str, Json] = field(default_factory=dict)
    holds: list[Json] = field(default_factory=list)
    erasures: list[Json] = field(default_factory=list)
    exports: list[Json] = field(default_factory=list)
    can_start: bool = True
    preview_error: str = ""
    site_problem: str = ""
    counted: threading.Event = field(default_factory=threading.Event)  # clear: still counting
    rival: bool = False  # somebody else starts a run just before the next call does
    tokens_valid: bool = True
    reply: str = "Hello there."
    reply_error: Json | None = None
    delta_seconds: float = 0.0
    calls: list[tuple[str, str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.counted.set()

    def called(self, method: str, path: str) -> list[Any]:
        """Bodies of the calls to ``path``."""
        return [body for m, p, body in self.calls if (m, p) == (method, path)]

    def begin_run(self, steps: int = 0, total: int = 120, **settings: Any) -> Json:
        run = {
            "id": f"run-{len(self.runs) + 1}", "state": "running" if steps else "queued",
            "requested_by": "ada", "settings": settings, "step": steps, "total_steps": total,
            "loss": None, "tokens_per_s": None, "seconds_left": None, "phase": "prepare",
            "version_id": "", "error": "", "cancel_requested": False, "created_at": NOW,
            "started_at": None, "ended_at": None,
        }  # fmt: skip
        self.runs.insert(0, run)
        self.progress[run["id"]] = []
        for step in range(1, steps + 1):
            self.train_step(run, step)
        return run

    def train_step(self, run: Json, step: int) -> None:
        loss = 0.7 + 1.6 / (1 + step / 12) + 0.06 * ((step * 7919) % 13 - 6) / 6
        left = (run["total_steps"] - step) * 2.0
        rate = {"loss": loss, "tokens_per_s": 268.0, "seconds_left": left}
        run.update(state="running", phase="train", step=step, started_at=NOW, **rate)
        lines = self.progress[run["id"]]
        lines.append(
            {"n": len(lines) + 1, "phase": "train", "step": step, "message": "", "at": NOW,
             "total_steps": run["total_steps"], "learning_rate": 1e-3, **rate}
        )  # fmt: skip

    def active(self) -> Json | None:
        return next((r for r in self.runs if r["state"] in ("queued", "running")), None)

    def live(self) -> str | None:
        return next((v["id"] for v in self.versions if v["state"] == "live"), None)


def populate(world: World) -> World:
    """What a console of some weeks shows."""
    _some_conversations(world)
    _some_versions(world)
    world.sites["demo"] = {
        "name": "demo", "origins": ["http://localhost:*"], "title": "Juniper & Pine",
        "welcome": "Hello! How can I help?", "system_prompt": "",
        "widget": {"quick_replies": ["Where is my order?"], "timezone": "UTC", "hours": {},
                   "holidays": [], "link_hosts": [], "consent": False, "privacy_url": "",
                   "offline_form": True},
        "identifies": False,
    }  # fmt: skip
    world.staff = [
        {"username": name, "role": role, "created_at": NOW} for name, role in ROLES.items()
    ]
    world.audit = [
        {"id": n, "actor": "ada", "action": "version.promote", "subject": f"v{n}",
         "reason": "better on refunds", "data": {"n": n}, "at": NOW - n * 1000}
        for n in range(60, 0, -1)
    ]  # fmt: skip
    return world


def add_conversation(world: World, name: str, says: str, **given: Any) -> str:
    """A conversation of one question and one reply (at offset 2)."""
    world.conversations.append(
        {"id": name, "site": "demo", "status": "bot", "started_at": NOW, "updated_at": NOW,
         "messages": 2, "versions": ["v2"], "score": None, "reviewed": False, "excluded": False,
         "preview": says, "exclusion_reason": "",
         "visitor": "visitor-1", "agent": "", **given}
    )  # fmt: skip
    reply = given.get("reply", "Your parcel left our house today.")
    world.events[name] = [
        {"offset": 1, "type": "message.created", "at": NOW, "role": "visitor", "text": says,
         "client_message_id": "m1", "author": ""},
        {"offset": 2, "type": "reply.completed", "at": NOW + 2000, "reply_id": "r1", "text": reply,
         "finish_reason": "end", "version": "v2", "seconds": 1.4, "confidence": 0.83,
         "usage": {"prompt_tokens": 80, "cached_tokens": 60, "completion_tokens": 12}},
    ]  # fmt: skip
    world.reviews[name] = []
    return name


def _some_conversations(world: World) -> None:
    questions = [
        "Where is my order #4711? It should have come on Monday.", "Can I return a fern?",
        "My monstera arrived with broken leaves, what now?", "Do you ship to Norway?",
        "How often do I water a snake plant?", "I was charged twice!", "Is the blue pot back?",
    ]  # fmt: skip
    for n in range(30):
        add_conversation(
            world, f"c-{n:03}", questions[n % len(questions)], updated_at=NOW - n * 3_600_000,
            score=[None, 5, 4, None, 1][n % 5], status=["bot", "closed", "human"][n % 3],
        )  # fmt: skip
    world.events["c-000"] += [
        {"offset": 3, "type": "status.changed", "at": NOW + 3000, "status": "waiting",
         "previous": "bot", "reason": "the visitor asked for a person", "actor": "visitor"},
        {"offset": 4, "type": "note.created", "at": NOW + 4000, "author": "guy",
         "text": "Carrier says it is lost.\nSent a new one.", "client_message_id": "n1"},
        {"offset": 5, "type": "message.created", "at": NOW + 5000, "role": "agent",
         "text": "I am sorry! A new parcel leaves today.", "author": "guy",
         "client_message_id": "a1"},
        {"offset": 6, "type": "reply.failed", "at": NOW + 6000, "reply_id": "r2", "text": "You",
         "version": "v2", "reason": "the worker was lost three times"},
        {"offset": 7, "type": "rating.given", "at": NOW + 7000, "score": 4, "comment": "Quick!"},
    ]  # fmt: skip


def _numbers(perplexity: float, exact: float, chrf: float, stop: float) -> Json:
    return {
        "perplexity": perplexity, "exact_match": exact, "exact_match_template": exact * 1.2,
        "exact_match_custom": exact * 0.3, "chrf": chrf, "bleu": chrf / 2, "stop_rate": stop,
        "mean_tokens": 24.5, "seconds_per_reply": 1.2,
    }  # fmt: skip


def add_version(world: World, name: str, state: str, passed: bool | None, **given: Any) -> Json:
    metrics = given.pop("metrics", _numbers(2.1, 0.31, 48.0, 0.985))
    base, live = _numbers(8.31, 0.01, 18.2, 0.71), _numbers(2.2, 0.28, 46.0, 0.98)
    reasons: list[str] = []
    if passed is False:
        reasons = ["stop rate 41.0% is below 95.0%"]
    elif passed is None:
        reasons = ["the bare base model has no report"]
    version = {
        "id": name, "state": state, "base_model": "smollm2-135m", "created_at": NOW,
        "dataset_fingerprint": "5b7c9e" * 8, "metrics": metrics,
        "decision": {"passed": bool(passed), "reasons": reasons},
        "promoted_at": NOW if state != "candidate" else None,
        "promoted_by": "ada" if state != "candidate" else "", "reason": "",
        "manifest": {"settings": {"rank": 16}},
        "report": {"models": {"candidate": metrics, "live": live, "base": base}}
        if passed is not None
        else None,
        **given,
    }  # fmt: skip
    world.versions.insert(0, version)
    return version


def _some_versions(world: World) -> None:
    add_version(world, "base", "retired", None, metrics={}, dataset_fingerprint="")
    add_version(world, "v1", "retired", True, metrics=_numbers(2.4, 0.25, 43.0, 0.97))
    add_version(world, "v2", "live", True, metrics=_numbers(2.2, 0.28, 46.0, 0.98))
    add_version(world, "v3", "candidate", True)
    bad = _numbers(2.1, 0.31, 48.0, 0.41)
    add_version(world, "v4", "candidate", False, metrics=bad)
    world.history = [
        {"version_id": "base", "previous_id": "", "kind": "initial", "actor": "frontdesk",
         "reason": "first start", "at": NOW - 10_000_000},
        {"version_id": "v1", "previous_id": "base", "kind": "promote", "actor": "ada",
         "reason": "first of our own", "at": NOW - 9_000_000},
        {"version_id": "v2", "previous_id": "v1", "kind": "promote", "actor": "ada",
         "reason": "knows the new return policy", "at": NOW},
    ]  # fmt: skip


def build(world: World) -> FastAPI:
    app = FastAPI()

    @app.exception_handler(Refused)
    async def refused(_: Request, error: Refused) -> JSONResponse:
        return JSONResponse({"error": error.body}, error.status)

    @app.middleware("http")
    async def gate(request: Request, call_next: Any) -> Any:
        body = await request.body()
        path = request.url.path.removeprefix("/v1/admin")
        sent = json.loads(body) if body else dict(request.query_params)
        world.calls.append((request.method, path, sent))
        token = request.headers.get("authorization", "").removeprefix("Bearer ")
        if path != "/login" and (not world.tokens_valid or token not in ROLES):
            error = {"code": "not_authenticated", "message": "the token is wrong or expired"}
            return JSONResponse({"error": error}, 401)
        return await call_next(request)

    from tests.ui.fake_data import add_data_routes

    for register in (
        _login,
        _conversations,
        _training,
        _models,
        _playground,
        _administration,
        add_data_routes,
    ):
        register(app, world)
    return app


def _login(app: FastAPI, world: World) -> None:
    @app.post("/v1/admin/login")
    async def login(body: Json) -> Json:
        name = body["username"]
        if name not in ROLES or body["password"] != PASSWORD:
            raise Refused(401, "not_authenticated", "user name or password is wrong")
        user = {"username": name, "role": ROLES[name]}
        return {"token": name, "expires_at": int(time.time() * 1000) + 3_600_000, "user": user}

    @app.get("/v1/admin/overview")
    async def overview() -> Json:
        return {
            "conversations": len(world.conversations), "open": 3, "waiting": 1, "reviewed": 2,
            "corrections": 1, "live_version": world.live(), "active_run": world.active(),
        }  # fmt: skip


def _conversations(app: FastAPI, world: World) -> None:
    def one(name: str) -> Json:
        found = next((c for c in world.conversations if c["id"] == name), None)
        if found is None:
            raise Refused(404, "not_found", f"no conversation {name}")
        return found

    @app.get("/v1/admin/conversations")
    async def conversations(
        status: str = "", site: str = "", q: str = "", version: str = "",
        rating: int | None = None, reviewed: bool | None = None,
        cursor: int = 0, limit: int = 25,
    ) -> Json:  # fmt: skip
        found = [
            c for c in world.conversations
            if (not status or c["status"] == status)
            and (not site or c["site"] == site)
            and q.lower() in c["preview"].lower()
            and (not version or version in c["versions"])
            and (rating is None or c["score"] == rating)
            and (reviewed is None or c["reviewed"] == reviewed)
        ]  # fmt: skip
        more = cursor + limit
        return {
            "items": found[cursor:more],
            "next_cursor": str(more) if more < len(found) else None,
        }

    @app.get("/v1/admin/conversations/{name}")
    async def conversation(name: str) -> Json:
        return {
            "conversation": one(name),
            "events": world.events[name],
            "reviews": world.reviews[name],
        }

    @app.put("/v1/admin/conversations/{name}/reviews/{offset}")
    async def review(name: str, offset: int, body: Json, request: Request) -> Json:
        reviews = world.reviews[name]
        stamp = max([r["updated_at"] for r in reviews], default=NOW) + 1
        who = request.headers["authorization"].removeprefix("Bearer ")
        made = {"offset": offset, "reviewer": who, "updated_at": stamp, **body}
        world.reviews[name] = [r for r in reviews if r["offset"] != offset]
        if any(body.values()):  # a review that says nothing is taken back
            world.reviews[name].append(made)
        one(name)["reviewed"] = True
        return made

    @app.put("/v1/admin/conversations/{name}/exclusion")
    async def exclusion(name: str, body: Json) -> Json:
        one(name).update(excluded=body["excluded"], exclusion_reason=body["reason"])
        return one(name)


def _training(app: FastAPI, world: World) -> None:
    @app.get("/v1/admin/training/preview")
    def preview() -> Json:
        world.counted.wait(30)
        if world.preview_error:
            raise Refused(500, "training", world.preview_error)
        examples = [
            {"before": "I am Jo Doe, jo@example.com", "after": "I am [NAME], [EMAIL]"},
            {"before": f"call 020 7946 0000 {SCRIPT}", "after": f"call [PHONE] {SCRIPT}"},
        ]
        return {
            "dialogues": 412, "from_file": 400, "from_reviews": 12, "corrections": 5,
            "excluded": 2, "tokens": 182_340, "fingerprint": "a1b2c3" * 8,
            "redaction": {"counts": {"EMAIL": 31, "PHONE": 12}, "examples": examples},
            "can_start": world.can_start,
            "reason": None if world.can_start else "no train_data is set and nothing is reviewed",
        }  # fmt: skip

    @app.post("/v1/admin/training/runs")
    async def start(body: Json) -> JSONResponse:
        request_id = body.pop("request_id")
        if request_id in world.requests:
            return JSONResponse(world.requests[request_id], 200)
        if world.rival:
            world.begin_run(steps=5)
        if active := world.active():
            raise Refused(409, "run_active", "a run is active", run_id=active["id"])
        world.requests[request_id] = world.begin_run(**body)
        return JSONResponse(world.requests[request_id], 201)

    def one(run_id: str) -> Json:
        found = next((run for run in world.runs if run["id"] == run_id), None)
        if found is None:
            raise Refused(404, "not_found", f"no run {run_id}")
        return found

    @app.get("/v1/admin/training/runs")
    async def runs() -> Json:
        return {"items": world.runs}

    @app.get("/v1/admin/training/runs/{run_id}")
    async def run(run_id: str) -> Json:
        return one(run_id)

    @app.get("/v1/admin/training/runs/{run_id}/progress")
    async def progress(run_id: str, after: int = 0) -> Json:
        items = world.progress[run_id][after : after + 500]
        last = items[-1]["n"] if items else after
        return {"items": items, "last": last, "state": one(run_id)["state"]}

    @app.post("/v1/admin/training/runs/{run_id}/cancel")
    async def cancel(run_id: str) -> Json:
        one(run_id).update(state="cancelled", ended_at=NOW + 60_000)
        return one(run_id)


def _models(app: FastAPI, world: World) -> None:
    def one(version_id: str) -> Json:
        found = next((v for v in world.versions if v["id"] == version_id), None)
        if found is None:
            raise Refused(404, "not_found", f"no version {version_id}")
        return found

    def make_live(version_id: str, kind: str, reason: str) -> Json:
        previous = world.live()
        for version in world.versions:
            if version["state"] == "live":
                version["state"] = "retired"
        one(version_id)["state"] = "live"
        world.history.append(
            {"version_id": version_id, "previous_id": previous, "kind": kind, "actor": "ada",
             "reason": reason, "at": NOW + len(world.history)}
        )  # fmt: skip
        return one(version_id)

    @app.get("/v1/admin/versions")
    async def versions() -> Json:
        before = world.history[-1]["previous_id"] if world.history else ""
        return {"live": world.live(), "rollback_to": before or None, "items": world.versions}

    @app.post("/v1/admin/versions/rollback")
    async def rollback(body: Json) -> Json:
        return make_live(world.history[-1]["previous_id"], "rollback", body["reason"])

    @app.get("/v1/admin/versions/{version_id}")
    async def version(version_id: str) -> Json:
        history = [
            change
            for change in reversed(world.history)
            if version_id in (change["version_id"], change["previous_id"])
        ]
        return {**one(version_id), "history": history}

    @app.get("/v1/admin/versions/{version_id}/report.html")
    async def report(version_id: str) -> HTMLResponse:
        return HTMLResponse(f"<h1>Report of {version_id}</h1><script>window.hacked=1</script>")

    @app.post("/v1/admin/versions/{version_id}/promote")
    async def promote(version_id: str, body: Json) -> Json:
        decision = one(version_id)["decision"]
        if not body["override"] and not (decision and decision["passed"]):
            reasons = decision["reasons"] if decision else ["there is no report"]
            raise Refused(409, "promotion_refused", "the rule refuses", reasons=reasons)
        return make_live(version_id, "override" if body["override"] else "promote", body["reason"])


def _playground(app: FastAPI, world: World) -> None:
    @app.post("/v1/admin/playground")
    async def playground(body: Json) -> StreamingResponse:
        def lines() -> Iterator[str]:
            yield json.dumps({"type": "started", "version": body["version"]}) + "\n"
            if world.reply_error:
                yield json.dumps({"type": "error", **world.reply_error}) + "\n"
                return
            text = f"{world.reply} (by {body['version']})"
            for word in text.split(" "):
                time.sleep(world.delta_seconds)
                yield json.dumps({"type": "delta", "text": word + " "}) + "\n"
            usage = {"prompt_tokens": 50, "cached_tokens": 40, "completion_tokens": 9}
            done = {"type": "done", "text": text, "finish_reason": "end", "seconds": 0.9}
            yield json.dumps({**done, "usage": usage}) + "\n"

        return StreamingResponse(lines(), media_type="application/x-ndjson")


def _administration(app: FastAPI, world: World) -> None:
    @app.get("/v1/admin/sites")
    async def sites() -> Json:
        return {"items": list(world.sites.values())}

    @app.put("/v1/admin/sites/{name}")
    async def save_site(name: str, body: Json) -> Json:
        if world.site_problem:
            raise Refused(422, "bad_request", world.site_problem)
        world.sites[name] = {"name": name, "identifies": False, **body}
        return world.sites[name]

    @app.get("/v1/admin/staff")
    async def staff() -> Json:
        return {"items": world.staff}

    @app.post("/v1/admin/staff")
    async def add_staff(body: Json) -> JSONResponse:
        made = {"username": body["username"], "role": body["role"], "created_at": NOW}
        world.staff.append(made)
        return JSONResponse(made, 201)

    @app.delete("/v1/admin/staff/{username}", status_code=204)
    async def remove_staff(username: str) -> None:
        world.staff = [one for one in world.staff if one["username"] != username]

    @app.get("/v1/admin/audit")
    async def audit(cursor: int = 0, limit: int = 50) -> Json:
        more = cursor + limit
        return {
            "items": world.audit[cursor:more],
            "next_cursor": str(more) if more < len(world.audit) else None,
        }


@contextmanager
def serving(app: Any, port: int = 0) -> Iterator[str]:
    """Serve ``app`` on loopback in a thread; yields its base address."""
    listener = socket.create_server(("127.0.0.1", port))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="on"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    deadline = time.monotonic() + 10
    while not server.started:
        if time.monotonic() > deadline:
            raise RuntimeError("the fake server did not start within 10 s")
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)
        listener.close()


if __name__ == "__main__":  # `python -m tests.ui.fake_api`: something to look at by hand
    shown = populate(World(delta_seconds=0.15))
    shown.begin_run(steps=64)
    with serving(build(shown), 8099) as address:
        print(address, flush=True)
        threading.Event().wait()
