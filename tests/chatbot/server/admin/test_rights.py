"""People, holds, exports and retention over HTTP."""

from typing import Any

import httpx
import pytest

from chatbot.conversation.archive import Archiver
from chatbot.conversation.events import ConversationId, VisitorId
from chatbot.rights.keeper import Keeper
from chatbot.server.auth import signer_of
from chatbot.services import Services
from tests.chatbot.conversation.steps import answer, ask
from tests.chatbot.server.admin.conftest import Client

ERASE = {"request_id": "r1", "site": "demo", "reason": "she asked"}


async def customer(services: Services, name: str = "c1", sub: str = "customer-7") -> str:
    """A known customer who has said something; the visitor id."""
    visitor = signer_of(services).visitor_id("demo", sub)
    await services.log.create(ConversationId(name), site="demo", visitor=VisitorId(visitor))
    await ask(services.log, ConversationId(name), "Canary")
    await answer(services.log)
    await Archiver(services.log, services.archive).copy_once()
    return visitor


async def test_a_customer_is_found_and_erased(services: Services, admin: httpx.AsyncClient) -> None:
    visitor = await customer(services)
    for query in (
        {"site": "demo", "subject": "customer-7"},
        {"visitor": visitor},
        {"conversation_id": "c1"},
    ):
        found = (await admin.post("/people/find", json=query)).json()
        assert (found["visitor"], found["known"], found["conversations"]) == (visitor, True, ["c1"])
    wrong = {**ERASE, "visitor": visitor, "confirm": "yes"}
    refused = await admin.post("/people/erase", json=wrong)
    assert (refused.status_code, refused.json()["error"]["code"]) == (422, "refused")
    body = {**ERASE, "visitor": visitor, "confirm": visitor}
    receipt = (await admin.post("/people/erase", json=body)).json()
    assert (receipt["state"], receipt["conversations"], receipt["events"]) == ("done", ["c1"], 2)
    assert (await admin.post("/people/erase", json=body)).json() == receipt
    assert (await admin.get(f"/erasures/{receipt['id']}")).json() == receipt
    assert [item["id"] for item in (await admin.get("/erasures")).json()["items"]] == [
        receipt["id"]
    ]
    gone = await admin.get("/conversations/c1")
    assert (gone.status_code, gone.json()["error"]["code"]) == (410, "erased")
    audit = (await admin.get("/audit")).text
    assert "customer-7" not in audit
    assert "person.erase" in audit
    again = (
        await admin.post("/people/find", json={"site": "demo", "subject": "customer-7"})
    ).json()
    assert (again["conversations"], again["erasures"]) == ([], [receipt["id"]])


async def test_a_hold_is_placed_seen_and_lifted(
    services: Services, admin: httpx.AsyncClient
) -> None:
    visitor = await customer(services)
    body = {"site": "demo", "visitor": visitor, "reason": "case 12"}
    placed = await admin.post("/holds", json=body)
    assert placed.status_code == 201
    assert (await admin.post("/holds", json=body)).status_code == 200
    hold = placed.json()
    assert (hold["placed_by"], hold["reason"], hold["lifted_at"]) == ("admin", "case 12", None)
    found = (await admin.post("/people/find", json={"visitor": visitor})).json()
    assert found["hold"]["id"] == hold["id"]
    erase = {**ERASE, "visitor": visitor, "confirm": visitor}
    refused = await admin.post("/people/erase", json=erase)
    error = refused.json()["error"]
    assert (refused.status_code, error["code"], error["hold_id"]) == (409, "held", hold["id"])
    assert "case 12" in error["message"]
    lifted = await admin.post(f"/holds/{hold['id']}/lift", json={"reason": "closed"})
    assert lifted.json()["lifted_by"] == "admin"
    assert (await admin.post("/holds/none/lift", json={"reason": "x"})).status_code == 404
    assert (await admin.post("/people/erase", json=erase)).status_code == 200
    [listed] = (await admin.get("/holds")).json()["items"]
    assert listed["lift_reason"] == "closed"


async def test_an_export_over_http(services: Services, admin: httpx.AsyncClient) -> None:
    await customer(services)
    body = {"request_id": "e1", "format": "csv", "redact": True, "filter": {"site": "demo"}}
    made = await admin.post("/exports", json=body)
    assert made.status_code == 201
    name = made.json()["id"]
    assert (await admin.post("/exports", json=body)).status_code == 200
    early = await admin.get(f"/exports/{name}/file")
    assert (early.status_code, early.json()["error"]["code"]) == (409, "conflict")
    await Keeper(services).make_exports()
    ready = (await admin.get(f"/exports/{name}")).json()
    assert (ready["state"], ready["conversations"], ready["filter"]["site"]) == ("ready", 1, "demo")
    file = await admin.get(f"/exports/{name}/file")
    assert file.headers["content-type"] == "text/csv; charset=utf-8"
    assert "Canary" in file.text
    assert (await admin.delete(f"/exports/{name}")).json()["state"] == "deleted"
    assert (await admin.get(f"/exports/{name}/file")).status_code == 409
    assert (await admin.get("/exports/none/file")).status_code == 404
    assert len((await admin.get("/exports")).json()["items"]) == 1


async def test_retention_of_a_site(admin: httpx.AsyncClient) -> None:
    before = (await admin.get("/sites/demo/retention")).json()
    assert before["own"] == {"idle_close_hours": None, "log_days": None, "record_days": None}
    assert before["effective"] == {"idle_close_hours": 168, "log_days": 30, "record_days": 0}
    body = {"idle_close_hours": 24, "log_days": 7, "record_days": 365}
    after = (await admin.put("/sites/demo/retention", json=body)).json()
    assert after["own"] == after["effective"] == body
    await admin.put("/sites/demo", json={"origins": [], "title": "T"})  # keeps them
    assert (await admin.get("/sites/demo/retention")).json() == after
    assert (await admin.get("/sites/none/retention")).status_code == 404
    bad = await admin.put("/sites/demo/retention", json={"log_days": 0})
    assert bad.status_code == 422


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/people/find", {"visitor": "v"}),
        ("POST", "/people/erase", {**ERASE, "visitor": "v", "confirm": "v"}),
        ("GET", "/erasures", None),
        ("GET", "/holds", None),
        ("POST", "/holds", {"site": "demo", "visitor": "v", "reason": "x"}),
        ("POST", "/holds/h/lift", {"reason": "x"}),
        ("GET", "/exports", None),
        ("POST", "/exports", {"request_id": "e", "format": "csv"}),
        ("GET", "/exports/e/file", None),
        ("DELETE", "/exports/e", None),
        ("PUT", "/sites/demo/retention", {}),
    ],
)
async def test_it_is_for_administrators_alone(
    client: Client, method: str, path: str, body: Any
) -> None:
    for role, status in (("", 401), ("agent", 403), ("reviewer", 403)):
        answered = await client(role).request(method, path, json=body)
        assert answered.status_code == status, (role, answered.text)


@pytest.mark.parametrize(
    "query", [{}, {"subject": "s"}, {"visitor": "v", "conversation_id": "c"}, {"name": "Anna"}]
)
async def test_a_person_is_named_in_one_way(admin: httpx.AsyncClient, query: Any) -> None:
    assert (await admin.post("/people/find", json=query)).status_code == 422
