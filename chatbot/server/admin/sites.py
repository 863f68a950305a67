"""Websites that embed the widget."""

import secrets
from dataclasses import asdict
from typing import Annotated

from fastapi import APIRouter, Path
from pydantic import Field
from sqlalchemy import select

from chatbot.errors import NotFound, RequestRefused
from chatbot.record.audit import record
from chatbot.record.clock import now_ms
from chatbot.record.tables import Site
from chatbot.rights.retention import set_site_retention, site_retention
from chatbot.rights.rules import Overrides
from chatbot.server.admin.common import Admin, Answer, Body, Stores
from chatbot.server.site_settings import WidgetSettings
from chatbot.server.sites import normal_origin

router = APIRouter(prefix="/sites", tags=["sites"])
Name = Annotated[str, Path(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")]


class SiteBody(Body):
    """``origins``: pages that may embed the widget, e.g. ``https://shop.example``. An empty
    ``system_prompt`` means the installation's. ``widget``: how the chat behaves there."""

    origins: list[Annotated[str, Field(max_length=300)]] = Field(max_length=200)
    title: str = Field("", max_length=100)
    welcome: str = Field("", max_length=2000)
    system_prompt: str = Field("", max_length=20000)
    widget: WidgetSettings = WidgetSettings()


class SiteAnswer(Answer):
    """``identifies``: the site has a secret to vouch for its customers with."""

    name: str
    origins: list[str]
    title: str
    welcome: str
    system_prompt: str
    widget: WidgetSettings
    identifies: bool


class SiteList(Answer):
    items: list[SiteAnswer]


class RetentionBody(Body):
    """null: as the installation says. 0: never (idle, record)."""

    idle_close_hours: int | None = Field(None, ge=0, le=87_600)
    log_days: int | None = Field(None, ge=1, le=3650)
    record_days: int | None = Field(None, ge=0, le=36_500)


class RetentionNumbers(Answer):
    idle_close_hours: int
    log_days: int
    record_days: int


class RetentionAnswer(Answer):
    """``own``: what the site says; ``effective``: what holds. ``due``: conversations that are
    older than ``record_days`` now and go in the next minutes; ``held``: older ones that a legal
    hold keeps."""

    site: str
    own: RetentionBody
    effective: RetentionNumbers
    due: int
    held: int


class IdentitySecret(Answer):
    identity_secret: str


@router.get("")
def list_sites(_: Admin, stores: Stores) -> SiteList:
    with stores.database.session() as session:
        rows = session.scalars(select(Site).order_by(Site.name)).all()
    return SiteList(items=[_answer(row) for row in rows])


@router.put("/{name}")
def put_site(user: Admin, stores: Stores, name: Name, body: SiteBody) -> SiteAnswer:
    """Create or change a site."""
    values = body.model_dump(mode="json")
    values["origins"] = _origins(body.origins)
    with stores.database.exclusive_session("sites") as session:
        row = session.get(Site, name)
        if row is None:
            row = Site(name=name, identity_secret="", created_at=now_ms(), **values)
            session.add(row)
        for field, value in values.items():
            setattr(row, field, value)
        record(session, user.username, "site.save", name, data={"origins": values["origins"]})
        return _answer(row)


@router.post("/{name}/identity-secret")
def new_secret(user: Admin, stores: Stores, name: Name) -> IdentitySecret:
    """Make a new secret for the site's back end to sign identities with (HS256). It is shown this
    once; the one before is worth nothing from now on."""
    secret = secrets.token_urlsafe(48)
    with stores.database.exclusive_session("sites") as session:
        row = session.get(Site, name)
        if row is None:
            raise NotFound(f"there is no site {name}")
        row.identity_secret = secret
        record(session, user.username, "site.identity_secret", name)
    return IdentitySecret(identity_secret=secret)


@router.get("/{name}/retention")
def get_retention(_: Admin, stores: Stores, name: Name) -> RetentionAnswer:
    found = site_retention(stores.database, stores.settings, name, now_ms())
    return RetentionAnswer(
        site=name,
        own=RetentionBody(**asdict(found.own)),
        effective=RetentionNumbers.model_validate(found.holds),
        due=found.due,
        held=found.held,
    )


@router.put("/{name}/retention")
def put_retention(user: Admin, stores: Stores, name: Name, body: RetentionBody) -> RetentionAnswer:
    """How long conversations of the site are kept, from the next minute on."""
    set_site_retention(stores.database, name, Overrides(**body.model_dump()), user.username)
    return get_retention(user, stores, name)


def _origins(entries: list[str]) -> list[str]:
    """Normal and each once. Raises RequestRefused, which names the field as those of pydantic."""
    try:
        return list(dict.fromkeys(normal_origin(entry) for entry in entries))
    except RequestRefused as error:
        raise RequestRefused(f"origins: {error}") from error


def _answer(row: Site) -> SiteAnswer:
    names = SiteAnswer.model_fields.keys() - {"identifies"}
    fields = {name: getattr(row, name) for name in names}
    return SiteAnswer(**fields, identifies=bool(row.identity_secret))
