"""Sites, staff and the audit over HTTP."""

from typing import Any

import httpx
import pytest

from chatbot.services import Services
from tests.chatbot.server.admin.conftest import PASSWORD, Client

SITE = {
    "origins": ["https://Shop.example:443", "http://localhost:*", "https://shop.example"],
    "title": "Shop",
    "welcome": "Hello!",
    "system_prompt": "Be kind.",
    "widget": {
        "quick_replies": ["Where is my order?"],
        "timezone": "Europe/Berlin",
        "hours": {"mon": ["09:00-17:30"]},
        "holidays": ["2026-12-25"],
        "link_hosts": ["shop.example"],
        "consent": True,
        "privacy_url": "https://shop.example/privacy",
        "offline_form": False,
    },
}


async def test_a_site_is_made_changed_and_listed(admin: httpx.AsyncClient) -> None:
    answer = await admin.put("/sites/shop", json=SITE)
    assert answer.status_code == 200
    assert answer.json() == {
        "name": "shop",
        **SITE,
        "origins": ["https://shop.example", "http://localhost:*"],
        "identifies": False,
    }
    refused = await admin.put("/sites/shop", json={"origins": ["shop.example"]})
    assert refused.json()["error"]["message"].startswith("origins: 'shop.example' is not an")
    await admin.put("/sites/shop", json={"origins": [], "title": "Closed"})
    items = (await admin.get("/sites")).json()["items"]
    assert [(item["name"], item["title"]) for item in items] == [
        ("demo", "Demo"),
        ("shop", "Closed"),
    ]


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("Shop", {}),
        ("-shop", {}),
        ("x" * 64, {}),
        ("shop", {"origins": ["shop.example"]}),
        ("shop", {"origins": "https://shop.example"}),
        ("shop", {"origins": None}),
        ("shop", {"title": "x" * 101}),
        ("shop", {"identity_secret": "mine"}),
        ("shop", {"widget": {"hours": {"mon": ["always"]}}}),
    ],
)
async def test_a_bad_site_is_refused(
    admin: httpx.AsyncClient, name: str, changes: dict[str, Any]
) -> None:
    answer = await admin.put(f"/sites/{name}", json={**SITE, **changes})
    assert answer.status_code == 422, answer.text
    assert len((await admin.get("/sites")).json()["items"]) == 1


async def test_an_identity_secret_is_shown_once(admin: httpx.AsyncClient) -> None:
    first = (await admin.post("/sites/demo/identity-secret")).json()["identity_secret"]
    second = (await admin.post("/sites/demo/identity-secret")).json()["identity_secret"]
    assert len(first) >= 32
    assert first != second
    listed = await admin.get("/sites")
    assert listed.json()["items"][0]["identifies"]
    assert second not in listed.text
    assert second not in (await admin.get("/audit")).text
    # changing the site keeps the secret
    await admin.put("/sites/demo", json=SITE)
    assert (await admin.get("/sites")).json()["items"][0]["identifies"]
    assert (await admin.post("/sites/none/identity-secret")).status_code == 404


async def test_staff_come_and_go(admin: httpx.AsyncClient, client: Client) -> None:
    body = {"username": "ada", "password": PASSWORD, "role": "reviewer"}
    answer = await admin.post("/staff", json=body)
    assert answer.status_code == 201
    assert answer.json()["role"] == "reviewer"
    assert "password" not in answer.json()
    login = await client("").post("/login", json={"username": "ada", "password": PASSWORD})
    assert login.status_code == 200
    listed = await admin.get("/staff")
    assert [item["username"] for item in listed.json()["items"]] == [
        "ada",
        "admin",
        "agent",
        "reviewer",
    ]
    assert "argon2" not in listed.text
    assert (await admin.post("/staff", json=body)).status_code == 409
    assert (await admin.delete("/staff/ada")).status_code == 204
    assert (await admin.delete("/staff/ada")).status_code == 404
    token = {"Authorization": f"Bearer {login.json()['token']}"}
    assert (await client("").get("/me", headers=token)).status_code == 401


@pytest.mark.parametrize(
    "changes",
    [
        {"username": "Ada"},
        {"username": "a b"},
        {"username": ""},
        {"username": "api"},
        {"password": "short"},
        {"role": "owner"},
    ],
)
async def test_a_bad_account_is_refused(admin: httpx.AsyncClient, changes: dict[str, Any]) -> None:
    body = {"username": "ada", "password": PASSWORD, "role": "agent"} | changes
    answer = await admin.post("/staff", json=body)
    assert answer.status_code == 422
    assert PASSWORD not in answer.text


async def test_the_last_administrator_stays(admin: httpx.AsyncClient) -> None:
    answer = await admin.delete("/staff/admin")
    assert answer.status_code == 409
    assert "last administrator" in answer.json()["error"]["message"]


async def test_the_audit_says_who_did_what_and_pages(
    services: Services, admin: httpx.AsyncClient
) -> None:
    for n in range(3):
        await admin.put(f"/sites/shop-{n}", json=SITE)
    first = (await admin.get("/audit", params={"limit": 2})).json()
    assert [(i["actor"], i["action"], i["subject"]) for i in first["items"]] == [
        ("admin", "site.save", "shop-2"),
        ("admin", "site.save", "shop-1"),
    ]
    rest = (await admin.get("/audit", params={"cursor": first["next_cursor"]})).json()
    assert [item["subject"] for item in rest["items"]] == ["shop-0", "base-smollm2-135m"]
    assert rest["next_cursor"] is None
    assert rest["items"][-1]["actor"] == "frontdesk"


@pytest.mark.parametrize("cursor", ["x", "-1", "9" * 30])
async def test_a_bad_cursor_is_refused(admin: httpx.AsyncClient, cursor: str) -> None:
    answer = await admin.get("/audit", params={"cursor": cursor})
    assert answer.status_code == 422
    assert "cursor" in answer.json()["error"]["message"]
