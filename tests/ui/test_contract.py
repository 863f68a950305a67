"""The fake server and the real one say the same: every request that the console makes fits the
real API's schema, and so does every answer of the fake."""

from collections.abc import Iterator
from typing import Any

import httpx
import jsonschema
import pytest
from fastapi import FastAPI

from chatbot.server.admin import admin_router
from tests.ui.fake_api import PASSWORD, World, build, populate, serving
from ui.answers import RetentionOwn, Site
from ui.api import AdminApi, ApiError, open_client

Json = dict[str, Any]


@pytest.fixture(scope="module")
def schema() -> Json:
    """The real server's OpenAPI description of the admin API."""
    app = FastAPI()
    app.include_router(admin_router())
    return app.openapi()


def operation(schema: Json, method: str, path: str) -> Json:
    """The real API's operation for a concrete path; literal segments win over parameters."""
    wanted = path.split("/")
    fitting = []
    for template, operations in schema["paths"].items():
        parts = template.split("/")
        fits = len(parts) == len(wanted) and all(
            part.startswith("{") or part == segment
            for part, segment in zip(parts, wanted, strict=True)
        )
        if fits and method.lower() in operations:
            fitting.append((template.count("{"), operations[method.lower()]))
    assert fitting, f"the real API has no {method} {path}"
    return dict(min(fitting, key=lambda found: found[0])[1])


def check(schema: Json, value: Any, part: Json) -> None:
    jsonschema.validate(value, {**part, "components": schema["components"]})


class Recorder:
    """Checks each exchange of a client against the real schema."""

    def __init__(self, schema: Json) -> None:
        self.schema = schema
        self.seen: set[str] = set()

    def check(self, response: httpx.Response) -> None:
        request = response.request
        found = operation(self.schema, request.method, request.url.path)
        self.seen.add(str(found["operationId"]))
        known = {p["name"] for p in found.get("parameters", []) if p["in"] == "query"}
        assert set(request.url.params) <= known, request.url
        if request.content:
            body = found["requestBody"]["content"]["application/json"]["schema"]
            check(self.schema, httpx.Response(200, content=request.content).json(), body)
        if response.is_success:
            response.read()
            self._check_answer(found, response)

    def _check_answer(self, found: Json, response: httpx.Response) -> None:
        assert str(response.status_code) in found["responses"] or response.status_code == 200
        described = found["responses"].get(str(response.status_code), {}).get("content", {})
        answer = described.get("application/json", {}).get("schema")
        if answer and response.headers.get("content-type") == "application/json":
            check(self.schema, response.json(), answer)


@pytest.fixture
def recorder(schema: Json) -> Recorder:
    return Recorder(schema)


@pytest.fixture
def api(recorder: Recorder) -> Iterator[AdminApi]:
    with serving(build(populate(World()))) as address, open_client(address) as client:
        client.event_hooks["response"].append(recorder.check)
        yield AdminApi(client, "ada")


def test_every_call_of_the_console_fits_the_real_api(api: AdminApi, recorder: Recorder) -> None:
    api.login("ada", PASSWORD)
    api.overview()
    _use_conversations(api)
    _use_training(api)
    _use_models(api)
    _use_the_rest(api)
    _use_data(api)
    calls = [name for name in vars(AdminApi) if name[0] != "_" and name != "address"]
    assert len(recorder.seen) == len(calls), "each method of the client is one call of the API"


def _use_conversations(api: AdminApi) -> None:
    page = api.conversations(
        status="bot", site="demo", q="order", version="v2", rating=None, reviewed=False, limit=3
    )
    assert page.items
    api.conversations(rating=5, cursor=page.next_cursor)
    detail = api.conversation("c-000")
    assert {event.type for event in detail.events} >= {"reply.completed", "note.created"}
    api.review("c-000", 2, verdict="bad", correction="better", comment="")
    api.review("c-000", 2, verdict=None, correction=None, comment="")
    api.exclude("c-000", True, "a test")


def _use_training(api: AdminApi) -> None:
    api.training_preview()
    settings = {"epochs": 1.0, "learning_rate": 1e-3, "rank": 8, "limit": 5, "max_steps": 9}
    run = api.start_run("request-1", {**settings, "auto_promote": True})
    assert api.start_run("request-1", settings).id == run.id
    with pytest.raises(ApiError) as refused:
        api.start_run("request-2", settings)
    assert refused.value.code == "run_active"
    assert refused.value.data["run_id"] == run.id
    api.runs()
    api.run(run.id)
    api.run_progress(run.id, 0)
    api.cancel_run(run.id)


def _use_models(api: AdminApi) -> None:
    api.versions()
    api.version("v3")
    api.report_html("v3")
    with pytest.raises(ApiError) as refused:
        api.promote("v4", "I like it")
    assert refused.value.code == "promotion_refused"
    assert refused.value.data["reasons"] == ["stop rate 41.0% is below 95.0%"]
    api.promote("v3", "better")
    api.roll_back("worse")
    messages = [{"role": "user", "content": "hello"}]
    lines = list(api.playground("v2", messages, "Be brief."))
    assert [lines[0].type, lines[-1].type] == ["started", "done"]


def _use_the_rest(api: AdminApi) -> None:
    [site] = api.sites()
    api.save_site(site)
    api.save_site(Site(name="new", origins=[], title="", welcome="", system_prompt=""))
    assert len(api.staff()) == 3
    api.add_staff("kim", "a long password", "agent")
    api.remove_staff("kim")
    api.audit(api.audit(limit=5).next_cursor, limit=5)


def _use_data(api: AdminApi) -> None:
    api.retention("demo")
    own = RetentionOwn(idle_close_hours=None, log_days=7, record_days=0)
    assert api.save_retention("demo", own).effective.log_days == 7
    person = api.find_person({"visitor": "visitor-1"})
    api.find_person({"site": "demo", "subject": "customer-7"})
    hold = api.place_hold(person.site, person.visitor, "case 12")
    with pytest.raises(ApiError) as refused:
        api.erase_person("request-3", person.site, person.visitor, "asked")
    assert (refused.value.code, refused.value.data["hold_id"]) == ("held", hold.id)
    assert api.lift_hold(hold.id, "settled") in api.holds()
    receipt = api.erase_person("request-3", person.site, person.visitor, "asked")
    assert [item.id for item in api.erasures()] == [receipt.id]
    assert api.erasure(receipt.id) == receipt
    wanted = {"site": "demo", "visitor": "", "status": None, "since": 1, "until": None}
    export = api.start_export("request-4", "csv", True, wanted)
    assert api.exports() == [export]
    assert api.export_file(export.id)
    assert api.delete_export(export.id).state == "deleted"
