"""The client of the admin API, where the server does not answer as hoped."""

from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from ui.address import console_port, server_url
from ui.api import AdminApi, ApiError


def client(handler: Callable[[httpx.Request], httpx.Response]) -> AdminApi:
    transport = httpx.MockTransport(handler)
    return AdminApi(httpx.Client(transport=transport, base_url="http://desk"), "t0ken")


def refusing(error: Exception) -> Callable[[httpx.Request], httpx.Response]:
    def handler(_: httpx.Request) -> httpx.Response:
        raise error

    return handler


def test_no_server_is_named_with_its_address_and_what_to_do() -> None:
    with pytest.raises(ApiError) as caught:
        client(refusing(httpx.ConnectError("refused"))).versions()
    assert caught.value.code == "unreachable"
    assert "http://desk" in caught.value.message
    assert "frontdesk up" in caught.value.message


@pytest.mark.parametrize("error", [httpx.ReadTimeout("slow"), httpx.ConnectTimeout("slow")])
def test_a_slow_server_is_a_timeout(error: Exception) -> None:
    with pytest.raises(ApiError, match="did not answer in time"):
        client(refusing(error)).versions()


def test_a_broken_connection_is_no_traceback() -> None:
    with pytest.raises(ApiError, match="broke"):
        client(refusing(httpx.RemoteProtocolError("gone"))).versions()


def test_code_message_status_and_data_are_taken_over() -> None:
    error = {"code": "promotion_refused", "message": "no", "reasons": ["slow"]}
    with pytest.raises(ApiError) as caught:
        client(lambda _: httpx.Response(409, json={"error": error})).promote("v1", "why")
    assert (caught.value.code, caught.value.status) == ("promotion_refused", 409)
    assert caught.value.data == {"reasons": ["slow"]}


@pytest.mark.parametrize("body", [b"<html>Bad gateway</html>", b"{}", b'{"error": "x"}', b"[]"])
def test_an_error_without_an_explanation_is_still_one(body: bytes) -> None:
    with pytest.raises(ApiError, match="502") as caught:
        client(lambda _: httpx.Response(502, content=body)).versions()
    assert caught.value.code == "unexpected_answer"


def test_an_answer_of_another_shape_is_said_to_be_one() -> None:
    with pytest.raises(ApiError, match="same version") as caught:
        client(lambda _: httpx.Response(200, json={"live": "v1", "rollback_to": None})).versions()
    assert "items" in caught.value.message


def test_an_unknown_field_is_no_error() -> None:
    body = {"live": None, "rollback_to": None, "items": [], "new_in_a_later_version": 1}
    assert client(lambda _: httpx.Response(200, json=body)).versions().items == []


def test_ids_cannot_leave_their_segment_of_the_path() -> None:
    seen = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append(request.url.raw_path)
        return httpx.Response(404, json={"error": {"code": "not_found", "message": "none"}})

    with pytest.raises(ApiError):
        client(handler).conversation("../staff?x=1")
    assert seen == [b"/v1/admin/conversations/..%2Fstaff%3Fx%3D1"]


def test_the_token_is_sent_and_a_401_ends_the_login() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        assert request.headers["authorization"] == "Bearer t0ken"
        return httpx.Response(401, json={"error": {"code": "not_authenticated", "message": "?"}})

    with pytest.raises(ApiError) as caught:
        client(handler).overview()
    assert caught.value.login_ended


class Broken(httpx.SyncByteStream):
    """A stream whose connection is lost after one line."""

    def __iter__(self) -> Iterator[bytes]:
        yield b'{"type": "delta", "text": "half"}\n'
        raise httpx.ReadError("lost")


@pytest.mark.parametrize(
    ("stream", "code"),
    [
        (Broken(), "unreachable"),
        (httpx.ByteStream(b'{"type": "error", "code": "busy", "message": "full"}\n'), "busy"),
        (httpx.ByteStream(b"no json\n"), "unexpected_answer"),
    ],
)
def test_a_playground_stream_that_breaks_raises(stream: Any, code: str) -> None:
    api = client(lambda _: httpx.Response(200, stream=stream))
    with pytest.raises(ApiError) as caught:
        list(api.playground("v1", [{"role": "user", "content": "hi"}]))
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("environ", "url"),
    [
        ({}, "http://127.0.0.1:8080"),
        ({"FRONTDESK_PORT": "9000"}, "http://127.0.0.1:9000"),
        ({"FRONTDESK_HOST": "0.0.0.0", "FRONTDESK_PORT": "81"}, "http://127.0.0.1:81"),
        ({"FRONTDESK_HOST": "::"}, "http://[::1]:8080"),
        ({"FRONTDESK_HOST": "fd00::7"}, "http://[fd00::7]:8080"),
        ({"FRONTDESK_PUBLIC_URL": "https://desk.example/"}, "https://desk.example"),
        ({"FRONTDESK_PUBLIC_URL": " ", "FRONTDESK_HOST": "a"}, "http://a:8080"),
    ],
)
def test_where_the_server_is(environ: dict[str, str], url: str) -> None:
    assert server_url(environ) == url


def test_a_bad_console_port_is_named() -> None:
    assert console_port({}) == 8501
    assert console_port({"FRONTDESK_CONSOLE_PORT": "9"}) == 9
    with pytest.raises(ValueError, match="FRONTDESK_CONSOLE_PORT"):
        console_port({"FRONTDESK_CONSOLE_PORT": "many"})
