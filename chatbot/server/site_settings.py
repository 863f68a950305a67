"""What a site's owner decides about its chat: quick replies, opening hours, consent, links.

Kept as one JSON value in the record (``sites.widget``); a field that is missing there has its
default, so that a new setting needs no migration.
"""

import re
from datetime import date, datetime, time, timedelta
from typing import Annotated, Literal
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo, available_timezones

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator

Day = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
DAYS: tuple[Day, ...] = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
LOOK_AHEAD_DAYS = 60  # a site that opens later than that says no time

_SPAN = re.compile(r"([01]\d|2[0-3]):([0-5]\d)-(?:([01]\d|2[0-3]):([0-5]\d)|24:00)")
_HOST = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*")

QuickReply = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=80)]
Span = Annotated[str, StringConstraints(strip_whitespace=True, max_length=11)]


class WidgetSettings(BaseModel):
    """``quick_replies``: offered under the welcome until the visitor writes. ``hours``: when
    people answer, e.g. ``{"mon": ["09:00-12:00", "13:00-17:30"]}``, in ``timezone``; empty means
    always. ``holidays``: dates without hours. ``link_hosts``: hosts (and their subdomains) that
    links in the chat may lead to; empty means any. ``consent``: ask before anything is stored in
    the visitor's browser or sent. ``offline_form``: outside the hours, ask for an address."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    quick_replies: list[QuickReply] = Field(default_factory=list, max_length=8)
    timezone: str = Field("UTC", max_length=64)
    hours: dict[Day, list[Span]] = Field(default_factory=dict)
    holidays: list[date] = Field(default_factory=list, max_length=100)
    link_hosts: list[str] = Field(default_factory=list, max_length=100)
    consent: bool = False
    privacy_url: str = Field("", max_length=500)
    offline_form: bool = True

    @field_validator("timezone")
    @classmethod
    def _known_zone(cls, name: str) -> str:
        if name not in available_timezones():
            raise ValueError(f"{name!r} is no time zone: use an IANA name such as Europe/Berlin")
        return name

    @field_validator("hours")
    @classmethod
    def _spans(cls, hours: dict[Day, list[Span]]) -> dict[Day, list[Span]]:
        for day, spans in hours.items():
            if len(spans) > 6:
                raise ValueError(f"{day}: at most 6 spans")
            for span in spans:
                read_span(span)
        return {day: sorted(hours[day]) for day in DAYS if hours.get(day)}

    @field_validator("link_hosts")
    @classmethod
    def _hosts(cls, hosts: list[str]) -> list[str]:
        hosts = [host.strip().lower() for host in hosts]
        for host in hosts:
            if len(host) > 253 or not _HOST.fullmatch(host):
                raise ValueError(f"{host!r} is no host name: give e.g. shop.example")
        return list(dict.fromkeys(hosts))

    @field_validator("privacy_url")
    @classmethod
    def _web(cls, url: str) -> str:
        url = url.strip()
        if url and (urlsplit(url).scheme not in ("https", "http") or not urlsplit(url).hostname):
            raise ValueError("the privacy page needs an address that begins with https://")
        return url


def read_span(span: str) -> tuple[time, time | None]:
    """Begin and end of ``09:00-17:30``; an end of ``24:00`` is None. Raises ValueError."""
    match = _SPAN.fullmatch(span)
    if match is None:
        raise ValueError(f"{span!r} is no span of hours: write it as 09:00-17:30")
    begin = time(int(match[1]), int(match[2]))
    end = None if match[3] is None else time(int(match[3]), int(match[4]))
    if end is not None and end <= begin:
        raise ValueError(
            f"{span}: ends before it begins; a night is two spans, to 24:00 and from it"
        )
    return begin, end


def opening(settings: WidgetSettings, now: float) -> tuple[bool, int | None]:
    """(whether people answer at ``now``, when they do next). Unix seconds in, Unix milliseconds
    out; None when open, or when the site never opens."""
    if not settings.hours:
        return True, None
    zone = ZoneInfo(settings.timezone)
    today = datetime.fromtimestamp(now, zone).date()
    for ahead in range(LOOK_AHEAD_DAYS):
        for begin, end in _spans_of(settings, today + timedelta(days=ahead), zone):
            if begin <= now < end:
                return True, None
            if begin > now:
                return False, int(begin * 1000)
    return False, None


def _spans_of(settings: WidgetSettings, day: date, zone: ZoneInfo) -> list[tuple[float, float]]:
    """The spans of one day in Unix seconds, in order; local clock times, also where clocks
    change."""
    if day in settings.holidays:
        return []
    found = []
    for span in settings.hours.get(DAYS[day.weekday()], []):
        begin, end = read_span(span)
        ends = datetime.combine(day, end, zone) if end else _midnight_after(day, zone)
        found.append((datetime.combine(day, begin, zone).timestamp(), ends.timestamp()))
    return found


def _midnight_after(day: date, zone: ZoneInfo) -> datetime:
    return datetime.combine(day + timedelta(days=1), time(), zone)
