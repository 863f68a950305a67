"""Values that no database takes: refused by name, never a server error. Found by generating
requests from the OpenAPI document (``make fuzz``)."""

from typing import Any

import httpx
import pytest
from sqlalchemy import text

from chatbot.errors import InputError
from chatbot.record.database import Database
from chatbot.services import Services
from tests.chatbot.server.admin.conftest import Client

HUGE = 10**19  # beyond 64 bits


@pytest.mark.parametrize(
    ("path", "query"),
    [
        ("/conversations", {"cursor": f"{HUGE}:c-1"}),
        ("/audit", {"cursor": str(HUGE)}),
        ("/conversations", {"limit": HUGE}),
        ("/conversations", {"q": "a\0b"}),
        ("/conversations/c%00", {}),
        ("/versions/v%00", {}),
        ("/training/runs/run%00", {}),
        ("/exports/export%00", {}),
    ],
)
async def test_a_value_that_does_not_fit_is_refused(
    client: Client, path: str, query: dict[str, Any]
) -> None:
    answer = await client("admin").get(path, params=query)
    assert answer.status_code in (200, 404, 422), answer.text
    if answer.status_code == 422:
        assert answer.json()["error"]["code"] in ("bad_request", "refused")


async def test_lines_after_one_beyond_any_number_are_refused(
    client: Client, services: Services
) -> None:
    run, _ = services.runs.create("r-1", "ada", {})
    answer = await client("admin").get(f"/training/runs/{run.id}/progress", params={"after": HUGE})
    assert answer.status_code == 422, answer.text


def test_what_the_database_cannot_hold_is_the_callers_mistake(database: Database) -> None:
    with pytest.raises(InputError, match="does not fit"), database.session() as session:
        session.execute(text("SELECT CAST(:value AS BIGINT)"), {"value": HUGE**2})


async def test_every_number_that_is_kept_fits(admin: httpx.AsyncClient) -> None:
    wanted = {"format": "jsonl", "since": HUGE}
    assert (await admin.post("/exports", json=wanted)).status_code == 422


async def test_the_document_says_what_errors_look_like(client: Client) -> None:
    app_client = client("")
    document = (await app_client.get("http://test/openapi.json")).json()
    assert "$defs" not in str(document["paths"])
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            assert "default" in operation["responses"], f"{method} {path}"
