"""docs/calls.md: what is not documented is not there, and the other way round."""

import re
from pathlib import Path
from typing import get_args

import pytest
from pydantic import BaseModel

from chatbot.assist.hints import HintKind
from chatbot.server.calls import schema
from chatbot.server.chatwoot.config import ChatwootSite
from chatbot.server.chatwoot.inbound import MOVES, STATUS
from chatbot.settings import Settings
from tests.chatbot.server.room import Running

ROOT = Path(__file__).parents[4]
GUIDE = (ROOT / "docs" / "calls.md").read_text()
WIDGET = ROOT / "chatbot" / "widget"
SERVER = ROOT / "chatbot" / "server"


def rows(first: str) -> set[str]:
    """What the first column names, of the table whose head begins with ``first``."""
    [body] = re.findall(
        rf"^\| {re.escape(first)} \|.*\n\|[ |-]*\n((?:\|.*\n)*)", GUIDE, re.MULTILINE
    )
    cells = re.findall(r"^\| (.*?) \|", body, re.MULTILINE)
    return {name for cell in cells for name in re.findall(r"`([^`]+)`", cell)}


def section(heading: str) -> str:
    [text] = re.findall(rf"^#+ {heading}\n(.*?)(?=^#|\Z)", GUIDE, re.MULTILINE | re.DOTALL)
    return str(text)


def fields(heading: str) -> set[str]:
    """The fields of a section's only table."""
    return set(
        re.findall(r"^\| `(\w+)` \|", section(heading).split("| outcome |")[0], re.MULTILINE)
    )


async def test_every_call_is_documented(server: Running) -> None:
    import httpx

    async with httpx.AsyncClient(base_url=server.url) as http:
        paths = (await http.get("/openapi.json")).json()["paths"]
    known = {
        f"{method.upper()} {path}"
        for path, methods in paths.items()
        for method in methods
        if path.startswith("/v1/assist")
    }
    assert known == rows("call")
    assert "`POST /v1/chatwoot/{site}`" in GUIDE
    assert "/v1/chatwoot/{site}" in paths


@pytest.mark.parametrize(
    ("heading", "model"),
    [
        ("Beginning", schema.CallBegin),
        ("Fragments", schema.Fragment),
        ("Feedback", schema.Feedback),
        ("What Frontdesk must know", ChatwootSite),
    ],
)
def test_every_field_is_documented(heading: str, model: type[BaseModel]) -> None:
    assert fields(heading) == set(model.model_fields)


def test_every_frame_is_documented() -> None:
    code = (SERVER / "calls" / "stream.py").read_text()
    out = set(re.findall(r'"type": "([\w.]+)"', code)) | set(
        re.findall(r'_done\(\s*"([\w.]+)"', code)
    )
    assert out | {"error", "pong"} == rows("from the server")
    kinds = get_args(get_args(schema.StreamFrame)[0])
    incoming = {get_args(kind.model_fields["type"].annotation)[0] for kind in kinds}
    assert incoming == rows("to the server")


def test_every_outcome_and_hint_is_documented() -> None:
    code = (SERVER / "calls" / "desk.py").read_text()
    [told] = re.findall(r"What became of a fragment: (.*?)\"\"\"", code, re.DOTALL)
    outcomes = set(re.findall(r"``(\w+)``", told)) - {"offset"}
    assert rows("outcome") == outcomes
    assert rows("hint") == set(get_args(HintKind))
    sending = (SERVER / "chatwoot" / "sending.py").read_text()
    sent = set(re.findall(r'(?:return|outcome[^=\n]*=) "(\w+)"', sending))
    assert rows("outcome of `reply.forwarded`") == sent


def test_what_chatwoot_says_is_documented() -> None:
    assert rows("in Chatwoot") == set(STATUS)
    for event in (*MOVES, "message_created"):
        assert f"`{event}`" in GUIDE


def test_the_panels_tag_is_documented() -> None:
    code = (WIDGET / "assist.js").read_text()
    [taken] = re.findall(r"const \{ (.*?) \} = script\.dataset", code)
    assert {f"data-{name}" for name in re.findall(r"(\w+) =", taken)} == rows("attribute")
    [methods] = re.findall(r"const methods = \{(.*?)\n  \};", code, re.DOTALL)
    named = set(re.findall(r"^    (\w+)\(", methods, re.MULTILINE))
    told = {re.sub(r"^frontdeskAssist\.|\(.*", "", name) for name in rows("method")}
    assert named == told
    heard = set(re.findall(r"emit\('(\w+)'", code))
    assert {f"frontdesk-assist:{name}" for name in heard} == rows("event on `window`")
    for error in re.findall(r"fail\('(\w+)'", code):
        assert f"`{error}`" in GUIDE


def test_the_panels_keys_are_documented() -> None:
    code = (WIDGET / "assist-panel.js").read_text()
    inside = re.findall(r"keys: \['(.*?)'\], does: '(.*?)'", code)
    told = re.findall(r"^\| `(\S+)` \| (.*?) \|$", GUIDE.split("| key | what |")[1], re.MULTILINE)
    assert dict(inside).items() <= dict(told).items()
    assert set(dict(inside)) == rows("key")


def test_every_setting_is_documented() -> None:
    ours = {
        f"FRONTDESK_{name.upper()}"
        for name in Settings.model_fields
        if name.startswith(("call_", "panel_", "chatwoot"))
    }
    assert rows("setting") == ours
