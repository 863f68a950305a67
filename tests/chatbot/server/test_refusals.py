"""Who must get nothing: a second visitor, a second site, a token that is forged, expired or
somebody else's, a page of a wrong origin. Each: no read, no write, and a clear refusal."""

import time
from dataclasses import dataclass
from typing import Any

import httpx
import jwt
import pytest

from chatbot.conversation.events import ConversationId, VisitorId
from chatbot.record.tables import Site
from chatbot.server.auth import signer_of
from chatbot.services import Services
from tests.chatbot.server.room import ORIGIN, SECRET, Running, Tab, open_tab

SECRET_WORDS = "the parcel goes to 12 Hidden Lane"
OTHER_ORIGIN = "https://other.example"


@dataclass
class Victim:
    """A conversation of the site demo that nobody else may touch."""

    services: Services
    visitor: str = "v-victim"
    conversation_id: str = "c-victim"

    async def write(self) -> "Victim":
        log, name = self.services.log, ConversationId(self.conversation_id)
        await log.create(name, site="demo", visitor=VisitorId(self.visitor))
        await log.append_message(
            name, role="visitor", text=SECRET_WORDS, client_message_id="m-1", author=self.visitor
        )
        return self

    async def untouched(self) -> bool:
        events = await self.services.log.read(ConversationId(self.conversation_id))
        return [event.data.get("text") for event in events] == [SECRET_WORDS]

    def token(self, site: str = "demo", visitor: str | None = None, hours: float = 1) -> str:
        return signer_of(self.services).issue_visitor(site, visitor or self.visitor, hours)[0]


@pytest.fixture
async def victim(services: Services) -> Victim:
    with services.database.session() as session:
        session.add(
            Site(
                name="other",
                origins=[OTHER_ORIGIN],
                title="",
                welcome="",
                system_prompt="",
                identity_secret="",
                created_at=0,
            )
        )
    return await Victim(services).write()


async def _attack(tab: Tab, **hello: Any) -> tuple[int, str]:
    """Say hello, and everything else that a visitor could write; how the socket ended."""
    await tab.send("hello", **hello)
    for kind, fields in (
        ("message.send", {"client_message_id": "evil", "text": "I was here"}),
        ("rating.give", {"score": 1}),
        ("handoff.request", {}),
        ("reply.stop", {"reply_id": "r"}),
    ):
        try:
            await tab.send(kind, **fields)
        except Exception:  # closed already
            break
    code, reason = await tab.closed()
    assert reason == ""
    return code, str(tab.seen[-1].get("code"))


async def _refused(
    server: Running, victim: Victim, token: str, origin: str | None = ORIGIN, **hello: Any
) -> tuple[int, str]:
    """How it ended; asserts that nothing was read or written."""
    async with open_tab(server, origin=origin) as tab:
        hello = {"conversation_id": victim.conversation_id, **hello}
        end = await _attack(tab, token=token, **hello)
        assert [frame["type"] for frame in tab.seen] == ["error"]
        assert tab.seen[0]["message"]
        assert "Hidden Lane" not in str(tab.seen)
    assert await victim.untouched()
    return end


async def test_a_second_visitor(server: Running, victim: Victim) -> None:
    for cursor in ({}, {"epoch": "000001-x", "offset": 0}):
        end = await _refused(server, victim, await server.token(), **cursor)
        assert end == (4403, "not_allowed")


async def test_a_second_site(server: Running, victim: Victim) -> None:
    """The same visitor's name, signed for another site, from that site's own page."""
    token = victim.token(site="other")
    assert await _refused(server, victim, token, OTHER_ORIGIN) == (4403, "not_allowed")


async def test_a_forged_token(server: Running, victim: Victim) -> None:
    good = jwt.decode(victim.token(), options={"verify_signature": False})
    header, payload, signature = victim.token().split(".")
    other_payload = victim.token(visitor="v-other").split(".")[1]
    forged = {
        "another key": jwt.encode(good, "k" * 64, "HS256"),
        "no signature": jwt.encode(good, None, "none"),
        "a signature cut off": f"{header}.{payload}.",
        "another's payload": f"{header}.{other_payload}.{signature}",
        "another algorithm": jwt.encode(good, SECRET.ljust(64, "x"), "HS512"),
        "without an end": jwt.encode(
            {name: value for name, value in good.items() if name != "exp"}, SECRET, "HS256"
        ),
        "a number as visitor": jwt.encode({**good, "sub": 1}, SECRET, "HS256"),
        "empty": "",
    }
    for name, token in forged.items():
        end = await _refused(server, victim, token)
        assert end == (4401, "not_authenticated"), name


async def test_an_expired_token(server: Running, victim: Victim) -> None:
    end = await _refused(server, victim, victim.token(hours=-1 / 3600))
    assert end == (4401, "not_authenticated")
    claims = {"sub": victim.visitor, "site": "demo", "aud": "visitor", "exp": int(time.time())}
    end = await _refused(server, victim, jwt.encode(claims, SECRET, "HS256"))
    assert end == (4401, "not_authenticated")


async def test_a_foreign_token(server: Running, victim: Victim, anna: str) -> None:
    """Good tokens of other kinds open no visitor's conversation, and a visitor's opens no desk."""
    for token in (anna, server.services.admin_token):
        assert await _refused(server, victim, token) == (4401, "not_authenticated")
    async with open_tab(server, "/v1/desk") as desk:
        await desk.send("hello", token=victim.token())
        assert await desk.closed() == (4401, "")
        assert [frame["type"] for frame in desk.seen] == ["error"]
    async with httpx.AsyncClient(base_url=server.url) as http:
        answer = await http.get(
            f"/v1/admin/conversations/{victim.conversation_id}",
            headers={"Authorization": f"Bearer {victim.token()}"},
        )
    assert answer.status_code == 401
    assert "Hidden Lane" not in answer.text


@pytest.mark.parametrize(
    "origin",
    [
        "https://evil.example",
        "null",
        "http://localhost.evil.example",
        "http://localhost:5000.evil.example",
        "https://localhost:5000",
        "http://127.0.0.1.nip.io:5000",
        OTHER_ORIGIN,
    ],
)
async def test_a_wrong_origin(server: Running, victim: Victim, origin: str) -> None:
    """Also with the visitor's own good token: a page that stole it gets nothing."""
    end = await _refused(server, victim, victim.token(), origin)
    assert end == (4403, "origin_refused")
    async with httpx.AsyncClient(base_url=server.url) as http:
        answer = await http.post("/v1/visitors", json={"site": "demo"}, headers={"Origin": origin})
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "origin_refused")


async def test_the_number_1_against_the_text_1(server: Running, victim: Victim) -> None:
    """Nothing that looks like "1" is "1": not a number, not another spelling."""
    victim.visitor, victim.conversation_id = "1", "1"
    await victim.write()
    for near in ("01", "1.0", "1 ", " 1", "+1", "١", "１", "true"):
        end = await _refused(server, victim, victim.token(visitor=near))
        assert end == (4403, "not_allowed"), near
    claims = {"site": "demo", "aud": "visitor", "exp": int(time.time()) + 60}
    for number in (1, 1.0, True):
        token = jwt.encode({**claims, "sub": number}, SECRET, "HS256")
        assert await _refused(server, victim, token) == (4401, "not_authenticated"), number
    for number in (1, 1.0, True, ["1"], {"1": 1}):
        end = await _refused(server, victim, victim.token(), conversation_id=number)
        assert end == (4400, "protocol"), number
    async with open_tab(server) as tab:  # the visitor itself
        await tab.send("hello", token=victim.token(), conversation_id="1")
        welcome = await tab.receive_until("welcome")
        assert welcome["events"][0]["text"] == SECRET_WORDS
