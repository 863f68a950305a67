"""Opening hours and the other choices of a site's owner."""

from datetime import date, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from pydantic import ValidationError

from chatbot.server.site_settings import WidgetSettings, opening

WEEK = {
    "timezone": "Europe/Berlin",
    "hours": {
        "mon": ["13:00-17:30", "09:00-12:00"],
        "fri": ["20:00-24:00"],
        "sat": ["00:00-02:00"],
    },
    "holidays": ["2026-11-30"],
}


def at(text: str, zone: str = "Europe/Berlin") -> float:
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)).timestamp()


def opens(text: str, **settings: object) -> tuple[bool, str | None]:
    """Whether it is open at that local time, and the local time at which it opens next."""
    found = WidgetSettings.model_validate({**WEEK, **settings})
    is_open, then = opening(found, at(text))
    if then is None:
        return is_open, None
    return is_open, datetime.fromtimestamp(then / 1000, ZoneInfo("Europe/Berlin")).isoformat()[:16]


def test_without_hours_somebody_is_always_there() -> None:
    assert opening(WidgetSettings(), at("2026-11-29T03:00")) == (True, None)


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        ("2026-11-23T08:59", (False, "2026-11-23T09:00")),  # a Monday
        ("2026-11-23T09:00", (True, None)),
        ("2026-11-23T12:00", (False, "2026-11-23T13:00")),
        ("2026-11-23T17:30", (False, "2026-11-27T20:00")),
        ("2026-11-27T23:59", (True, None)),
        ("2026-11-28T00:00", (True, None)),  # the night goes on
        ("2026-11-28T02:00", (False, "2026-12-04T20:00")),  # Monday the 30th is a holiday
    ],
)
def test_the_hours_of_a_week(now: str, expected: tuple[bool, str | None]) -> None:
    assert opens(now) == expected


def test_hours_are_local_where_the_clocks_change() -> None:
    settings = WidgetSettings(timezone="Europe/Berlin", hours={"sun": ["01:00-04:00"]})
    # on 2026-10-25 these three hours are four, on 2026-03-29 two
    assert opening(settings, at("2026-10-25T01:00"))[0]
    assert opening(settings, at("2026-10-25T01:00") + 3.9 * 3600)[0]
    assert not opening(settings, at("2026-10-25T01:00") + 4.1 * 3600)[0]
    assert not opening(settings, at("2026-03-29T01:00") + 2.1 * 3600)[0]


def test_a_site_that_never_opens_says_no_time() -> None:
    begin = date(2026, 11, 23)
    closed = WidgetSettings.model_validate(
        {**WEEK, "holidays": [str(begin + timedelta(days=day)) for day in range(90)]}
    )
    assert opening(closed, at("2026-11-23T12:00")) == (False, None)


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("timezone", "Mars/Olympus", "no time zone"),
        ("hours", {"mon": ["9-17"]}, "no span of hours"),
        ("hours", {"mon": ["17:00-09:00"]}, "ends before it begins"),
        ("hours", {"mon": ["25:00-26:00"]}, "no span of hours"),
        ("hours", {"mon": ["09:00-10:00"] * 7}, "at most 6"),
        ("hours", {"someday": ["09:00-10:00"]}, "Input should be"),
        ("link_hosts", ["https://shop.example/x"], "no host name"),
        ("privacy_url", "javascript:alert(1)", "https://"),
        ("quick_replies", ["x"] * 9, "at most 8"),
        ("quick_replies", [" "], "at least 1"),
        ("surprise", 1, "Extra inputs"),
    ],
)
def test_nonsense_is_refused_by_name(field: str, value: object, says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        WidgetSettings.model_validate({field: value})


def test_what_is_kept_is_tidy() -> None:
    kept = WidgetSettings.model_validate({**WEEK, "link_hosts": [" Shop.Example ", "shop.example"]})
    assert kept.hours["mon"] == ["09:00-12:00", "13:00-17:30"]
    assert kept.link_hosts == ["shop.example"]
    assert WidgetSettings.model_validate(kept.model_dump(mode="json")) == kept
