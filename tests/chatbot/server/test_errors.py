"""Errors on HTTP have one form and never tell what they should not."""

import httpx
import pytest
from fastapi import FastAPI
from pydantic import BaseModel

from chatbot import errors
from chatbot.server.errors import install_error_handlers


class Body(BaseModel):
    number: int


def _client(problem: Exception) -> httpx.AsyncClient:
    app = FastAPI()
    install_error_handlers(app, lambda name: None)

    @app.get("/fail")
    def fail() -> None:
        raise problem

    @app.post("/body")
    def body(_: Body) -> None:
        return None

    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://test")


async def _answer(problem: Exception, method: str = "GET", path: str = "/fail") -> httpx.Response:
    async with _client(problem) as client:
        return await client.request(method, path, json={"number": "x"})


KNOWN = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, errors.FrontdeskError)
]


@pytest.mark.parametrize("kind", KNOWN)
async def test_each_known_error_has_its_status_and_code(
    kind: type[errors.FrontdeskError],
) -> None:
    answer = await _answer(kind("what is wrong"))
    assert answer.status_code == kind.http_status
    error = answer.json()["error"]
    assert (error["code"], error["message"]) == (kind.code, "what is wrong")


async def test_busy_says_when_to_come_back() -> None:
    answer = await _answer(errors.RateLimited("slow down", retry_after=7.2))
    assert answer.json()["error"]["retry_after"] == 7.2
    assert answer.headers["retry-after"] == "7"


async def test_only_data_for_the_peer_is_shown() -> None:
    problem = errors.PromotionRefused("no", reasons=["too slow"], path="/secret")
    error = (await _answer(problem)).json()["error"]
    assert error == {"code": "promotion_refused", "message": "no", "reasons": ["too slow"]}


async def test_an_unexpected_exception_tells_nothing() -> None:
    answer = await _answer(RuntimeError("password=hunter2"))
    assert answer.status_code == 500
    assert answer.json()["error"]["code"] == "internal"
    assert "hunter2" not in answer.text


async def test_invalid_input_names_the_field() -> None:
    answer = await _answer(RuntimeError(), "POST", "/body")
    assert answer.status_code == 422
    error = answer.json()["error"]
    assert error["code"] == "bad_request"
    assert error["message"].startswith("number: ")


async def test_unknown_paths_and_methods_have_the_same_form() -> None:
    assert (await _answer(RuntimeError(), "GET", "/none")).json()["error"]["code"] == "not_found"
    answer = await _answer(RuntimeError(), "DELETE", "/fail")
    assert answer.json()["error"]["code"] == "method_not_allowed"


async def test_who_is_not_known_is_asked_for_a_token() -> None:
    answer = await _answer(errors.NotAuthenticated("log in"))
    assert answer.headers["www-authenticate"] == "Bearer"
