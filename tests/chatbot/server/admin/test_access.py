"""Every route of the admin API asks who is there, and lets in whom the table says."""

import time

import httpx
import jwt
import pytest
from redis.asyncio import Redis

from chatbot.server.staff import ROLES, delete_staff
from chatbot.services import Services
from tests.chatbot.server.admin.conftest import PASSWORD, Client
from tests.chatbot.server.room import SECRET

ROUTES = [
    ("GET", "/me", "agent"),
    ("GET", "/overview", "agent"),
    ("GET", "/conversations", "agent"),
    ("GET", "/conversations/c-none", "agent"),
    ("PUT", "/conversations/c-none/reviews/1", "reviewer"),
    ("PUT", "/conversations/c-none/exclusion", "reviewer"),
    ("GET", "/training/preview", "reviewer"),
    ("POST", "/training/runs", "admin"),
    ("GET", "/training/runs", "reviewer"),
    ("GET", "/training/runs/run-none", "reviewer"),
    ("GET", "/training/runs/run-none/progress", "reviewer"),
    ("POST", "/training/runs/run-none/cancel", "admin"),
    ("GET", "/versions", "agent"),
    ("GET", "/versions/v-none", "agent"),
    ("GET", "/versions/v-none/report.html", "agent"),
    ("POST", "/versions/v-none/promote", "admin"),
    ("POST", "/versions/rollback", "admin"),
    ("POST", "/playground", "reviewer"),
    ("GET", "/sites", "admin"),
    ("PUT", "/sites/shop", "admin"),
    ("POST", "/sites/shop/identity-secret", "admin"),
    ("GET", "/staff", "admin"),
    ("POST", "/staff", "admin"),
    ("DELETE", "/staff/none", "admin"),
    ("GET", "/canned-replies", "agent"),
    ("PUT", "/canned-replies/none", "reviewer"),
    ("DELETE", "/canned-replies/none", "reviewer"),
    ("GET", "/sites/shop/retention", "admin"),
    ("PUT", "/sites/shop/retention", "admin"),
    ("GET", "/keys", "admin"),
    ("POST", "/keys", "admin"),
    ("DELETE", "/keys/none", "admin"),
    ("POST", "/people/find", "admin"),
    ("POST", "/people/erase", "admin"),
    ("GET", "/erasures", "admin"),
    ("GET", "/erasures/none", "admin"),
    ("GET", "/holds", "admin"),
    ("POST", "/holds", "admin"),
    ("POST", "/holds/none/lift", "admin"),
    ("GET", "/exports", "admin"),
    ("POST", "/exports", "admin"),
    ("GET", "/exports/none", "admin"),
    ("GET", "/exports/none/file", "admin"),
    ("DELETE", "/exports/none", "admin"),
    ("GET", "/audit", "admin"),
]


async def test_the_list_above_is_complete(agent: httpx.AsyncClient) -> None:
    schema = (await agent.get("http://test/openapi.json")).json()
    known = {
        (method.upper(), path.removeprefix("/v1/admin"))
        for path, methods in schema["paths"].items()
        for method in methods
        if path.startswith("/v1/admin")
    }
    assert len(known) == len(ROUTES) + 1  # and POST /login, which is for everybody
    assert {path.count("/") for _, path in known} == {path.count("/") for _, path, _ in ROUTES}


async def test_each_route_asks_for_its_role(client: Client) -> None:
    for method, path, least in ROUTES:
        nobody = await client("").request(method, path, json={})
        assert nobody.status_code == 401, path
        assert nobody.json()["error"]["code"] == "not_authenticated"
        for role in ROLES[: ROLES.index(least)]:  # type: ignore[arg-type]
            refused = await client(role).request(method, path, json={})
            assert refused.status_code == 403, (path, role)
            assert refused.json()["error"]["code"] == "not_allowed"


async def test_each_role_may_what_those_below_may(client: Client) -> None:
    for path, role in (("/me", "agent"), ("/training/runs", "reviewer"), ("/audit", "admin")):
        for allowed in ROLES[ROLES.index(role) :]:  # type: ignore[arg-type]
            assert (await client(allowed).get(path)).status_code == 200, (path, allowed)


def _token(**changes: object) -> str:
    now = int(time.time())
    claims = {"sub": "admin", "aud": "staff", "iat": now, "exp": now + 60} | changes
    return jwt.encode(claims, SECRET, "HS256")


@pytest.mark.parametrize(
    "header",
    [
        "",
        "Bearer",
        "Bearer nonsense",
        "Basic YWRtaW46YWRtaW4=",
        f"Bearer {_token(exp=int(time.time()) - 5)}",
        f"Bearer {_token(aud='visitor')}",
        f"Bearer {_token(sub='nobody')}",
        "Bearer " + jwt.encode({"sub": "admin", "aud": "staff"}, "x" * 40, "HS256"),
        "Bearer an-api-toke",
    ],
)
async def test_wrong_expired_and_foreign_tokens_are_refused(client: Client, header: str) -> None:
    answer = await client("").get("/me", headers={"Authorization": header} if header else {})
    assert answer.status_code == 401
    assert answer.json()["error"]["code"] == "not_authenticated"


async def test_the_api_token_is_an_administrator(client: Client) -> None:
    answer = await client("").get("/me", headers={"Authorization": "Bearer an-api-token"})
    assert answer.json() == {"username": "api", "role": "admin"}


async def test_a_removed_account_is_out_at_once(
    services: Services, agent: httpx.AsyncClient
) -> None:
    assert (await agent.get("/me")).status_code == 200
    delete_staff(services.database, "test", "agent")
    assert (await agent.get("/me")).status_code == 401


# -- logging in


async def _login(http: httpx.AsyncClient, username: str, password: str) -> httpx.Response:
    return await http.post("/login", json={"username": username, "password": password})


async def test_a_login_gives_a_token(client: Client) -> None:
    answer = await _login(client(""), "reviewer", PASSWORD)
    assert answer.status_code == 200
    data = answer.json()
    assert data["user"] == {"username": "reviewer", "role": "reviewer"}
    assert data["expires_at"] > time.time() * 1000
    me = await client("").get("/me", headers={"Authorization": f"Bearer {data['token']}"})
    assert me.json()["username"] == "reviewer"


@pytest.mark.parametrize(("username", "password"), [("admin", "wrong"), ("nobody", PASSWORD)])
async def test_a_wrong_login_does_not_say_which_half_is_wrong(
    client: Client, username: str, password: str
) -> None:
    answer = await _login(client(""), username, password)
    assert answer.status_code == 401
    assert answer.json()["error"]["message"] == "the name or the password is wrong"


async def test_guessing_is_slowed_down_also_for_the_right_password(client: Client) -> None:
    for _ in range(5):
        assert (await _login(client(""), "admin", "guess")).status_code == 401
    blocked = await _login(client(""), "admin", PASSWORD)
    assert blocked.status_code == 429
    assert 0 < blocked.json()["error"]["retry_after"] <= 300
    assert (await _login(client(""), "agent", PASSWORD)).status_code == 200


async def test_a_success_starts_the_count_anew(client: Client, redis: Redis) -> None:
    for _ in range(2):
        for _ in range(4):
            assert (await _login(client(""), "admin", "guess")).status_code == 401
        assert (await _login(client(""), "admin", PASSWORD)).status_code == 200
    assert [key async for key in redis.scan_iter("fd:rate:login:*")] == []


async def test_the_count_ends_by_itself(client: Client, redis: Redis) -> None:
    await _login(client(""), "admin", "guess")
    (key,) = [key async for key in redis.scan_iter("fd:rate:login:*")]
    assert 0 < await redis.ttl(key) <= 300


async def test_a_misspelt_field_is_named(client: Client) -> None:
    answer = await client("").post("/login", json={"username": "a", "pasword": "b"})
    assert answer.status_code == 422
    message = answer.json()["error"]["message"]
    assert "password: Field required" in message
    assert "pasword: Extra inputs" in message


async def test_the_documentation_is_found(client: Client) -> None:
    answer = await client("").get("/docs")
    assert answer.status_code == 307
    assert answer.headers["location"] == "/docs"
