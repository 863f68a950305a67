"""Every parameter is obeyed or refused by name, in OpenAI's form."""

from typing import Any

import pytest

from chatbot import errors
from chatbot.completions.wire import (
    Ended,
    Event,
    Failed,
    Job,
    Released,
    Started,
    Text,
    as_error,
    dump_batch,
    failure,
    load_batch,
)
from chatbot.server.completions.errors import Refused, error_body, status_of
from chatbot.server.completions.schema import UNSUPPORTED, read_request
from chatbot.settings import Settings

SETTINGS = Settings()
USER: dict[str, Any] = {"role": "user", "content": "hi"}


def _read(**options: Any) -> Any:
    return read_request({"model": "live", "messages": [USER], **options}, SETTINGS)


@pytest.mark.parametrize(
    ("options", "param", "code"),
    [
        ({"n": 2}, "n", "invalid_value"),
        ({"tools": [{"type": "function"}]}, "tools", "unsupported_parameter"),
        ({"logprobs": True}, "logprobs", "unsupported_parameter"),
        ({"response_format": {"type": "json_object"}}, "response_format", "unsupported_parameter"),
        ({"presence_penalty": 0.5}, "presence_penalty", "unsupported_parameter"),
        ({"temprature": 1}, "temprature", "unknown_parameter"),
        ({"temperature": 3}, "temperature", "invalid_value"),
        ({"temperature": float("nan")}, "temperature", "invalid_value"),
        ({"temperature": "1"}, "temperature", "invalid_value"),
        ({"top_p": True}, "top_p", "invalid_value"),
        ({"top_p": 0}, "top_p", "invalid_value"),
        ({"max_tokens": 0}, "max_tokens", "invalid_value"),
        ({"max_tokens": "5"}, "max_tokens", "invalid_value"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "max_tokens", "invalid_value"),
        ({"stop": ["x"] * 17}, "stop", "invalid_value"),
        ({"stop": ""}, "stop[0]", "invalid_value"),
        ({"stop": 5}, "stop", "invalid_value"),
        ({"seed": 1.5}, "seed", "invalid_value"),
        ({"stream": "yes"}, "stream", "invalid_value"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "invalid_value"),
        ({"messages": []}, "messages", "invalid_value"),
        ({"model": None}, "model", "invalid_value"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "missing_required_parameter"),
        ({"messages": [{"role": "boss", "content": ""}]}, "messages[0].role", "invalid_value"),
        ({"messages": [{**USER, "name": "x"}]}, "messages[0].name", "unsupported_parameter"),
    ],
)
def test_what_is_refused_is_named(options: dict[str, Any], param: str, code: str) -> None:
    with pytest.raises(Refused) as refused:
        _read(**options)
    error = error_body(refused.value)["error"]
    assert (error["param"], error["code"], error["type"]) == (param, code, "invalid_request_error")
    assert param.partition("[")[0] in error["message"]
    assert status_of(refused.value) == 400


def test_a_picture_is_refused() -> None:
    part = {"type": "image_url", "image_url": {"url": "http://x"}}
    with pytest.raises(Refused, match=r"messages\[0\]\.content\[0\]\.type: .*'text'"):
        _read(messages=[{"role": "user", "content": [part]}])


def test_the_forms_of_a_value_are_named() -> None:
    with pytest.raises(Refused, match=r"^stop: a string, or a list of strings$"):
        _read(stop=5)


def test_values_that_change_nothing_are_accepted() -> None:
    for name, neutral in UNSUPPORTED.items():
        for value in (None, *neutral):
            _read(**{name: value})
    with pytest.raises(Refused):
        _read(n=True)  # which equals 1 in Python


def test_the_body_is_an_object() -> None:
    for body in ([], "x", None):
        with pytest.raises(Refused, match="JSON object"):
            read_request(body, SETTINGS)


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (errors.NotAuthenticated("x"), 401, "invalid_api_key"),
        (errors.PromptTooLong("x"), 400, "context_length_exceeded"),
        (errors.RequestRefused("x"), 400, "refused"),
        (errors.EngineBusy("x"), 429, "busy"),
        (errors.StoreUnavailable("x"), 503, "store_unavailable"),
        (errors.ReplyLost("x"), 503, "reply_lost"),
        (errors.VersionCorrupt("x"), 500, "version_corrupt"),
    ],
)
def test_errors_have_openais_form(error: errors.FrontdeskError, status: int, code: str) -> None:
    assert status_of(error) == status
    body = error_body(error)["error"]
    assert set(body) == {"message", "type", "param", "code"}
    assert (body["code"], body["message"]) == (code, "x")


def test_events_and_jobs_arrive_as_they_were() -> None:
    events: list[tuple[str, Event]] = [
        ("a", Started()),
        ("b", Text('é 🙂 "\n')),
        ("a", Ended("length", 10, 4, 7)),
        ("b", Failed("busy", "full", 2.5)),
        ("c", Released()),
    ]
    assert load_batch(dump_batch(events)) == events
    job = Job("r", "s", "v-1", [{"role": "user", "content": "é"}], {"seed": 3}, "key:k")
    assert Job.load(job.dump()) == job
    with pytest.raises(TypeError):
        Job.load("{}")


def test_each_error_arrives_as_what_it_was() -> None:
    for kind in (errors.PromptTooLong, errors.VersionCorrupt, errors.NotFound, errors.ReplyLost):
        told = as_error(failure(kind("what is wrong")))
        assert type(told) is kind
        assert str(told) == "what is wrong"
    busy = as_error(failure(errors.EngineBusy("full", retry_after=3.0)))
    assert isinstance(busy, errors.Overloaded)
    assert busy.retry_after == 3.0
    assert as_error(Failed("from a newer release", "x", 0)).code == "internal"
