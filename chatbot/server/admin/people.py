"""A person's rights: find, hold, erase. docs/data.md says it for administrators."""

import asyncio
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Response, status
from pydantic import Field, model_validator

from chatbot.errors import RequestRefused
from chatbot.protocol import Id
from chatbot.record.tables import Hold
from chatbot.rights import datasets, holds
from chatbot.rights.erasure import Eraser, Receipt
from chatbot.rights.people import (
    Person,
    describe,
    person_of_conversation,
    person_of_visitor,
)
from chatbot.server.admin.common import Admin, Answer, Body, Stores
from chatbot.server.auth import signer_of
from chatbot.services import Services

router = APIRouter(tags=["people"])
Reason = Annotated[str, Field(min_length=1, max_length=2000)]


class PersonQuery(Body):
    """One of: ``site`` and ``subject`` (the ``sub`` by which the site knows a customer),
    ``visitor``, or ``conversation_id``. In the body, so that no log of addresses has it."""

    site: str = Field("", max_length=64)
    subject: str = Field("", max_length=256)
    visitor: str = Field("", max_length=64)
    conversation_id: str = Field("", max_length=64)

    @model_validator(mode="after")
    def _one_way(self) -> "PersonQuery":
        ways = (bool(self.subject), bool(self.visitor), bool(self.conversation_id))
        if sum(ways) != 1 or (self.subject and not self.site):
            raise ValueError("give site and subject, or visitor, or conversation_id")
        return self


class HoldAnswer(Answer):
    id: str
    site: str
    visitor: str
    reason: str
    placed_by: str
    placed_at: int
    lifted_by: str
    lifted_at: int | None
    lift_reason: str


class HoldList(Answer):
    items: list[HoldAnswer]


class TrainedVersion(Answer):
    """A version that learned from the person's words. ``conversations`` null: its data set holds
    reviewed conversations, and which ones is not known any more."""

    version_id: str
    state: str
    conversations: int | None


class PersonAnswer(Answer):
    """``known``: the site vouched for who it is, and there is or was
    something of them. ``erasures``: receipts there are already."""

    site: str
    visitor: str
    known: bool
    conversations: list[str]
    messages: int
    first_at: int | None
    last_at: int | None
    hold: HoldAnswer | None
    versions: list[TrainedVersion]
    erasures: list[str]


class EraseBody(Body):
    """``confirm`` repeats the visitor's id: it cannot be undone. The same ``request_id`` again is
    the same erasure."""

    request_id: Id
    site: str = Field(min_length=1, max_length=64)
    visitor: str = Field(min_length=1, max_length=64)
    confirm: str = Field(max_length=64)
    reason: Reason


class ReceiptAnswer(Answer):
    """What was erased; ``versions`` are looked up at this moment."""

    id: str
    site: str
    visitor: str
    state: str
    requested_by: str
    reason: str
    requested_at: int
    completed_at: int | None
    conversations: list[str]
    events: int
    reviews: int
    dataset_dialogues: int
    runs: list[str]
    cancelled_runs: list[str]
    exports: list[str]
    versions: list[TrainedVersion]


class ErasureItem(Answer):
    id: str
    site: str
    visitor: str
    state: str
    requested_by: str
    reason: str
    requested_at: int
    completed_at: int | None


class ErasureList(Answer):
    items: list[ErasureItem]


class HoldBody(Body):
    site: str = Field(min_length=1, max_length=64)
    visitor: str = Field(min_length=1, max_length=64)
    reason: Reason


class LiftBody(Body):
    reason: Reason


@router.post("/people/find")
async def find(_: Admin, stores: Stores, body: PersonQuery) -> PersonAnswer:
    """What there is of a person. A customer of whom there is nothing is an empty answer."""
    person = await _person(stores, body)
    found = await describe(stores.database, stores.log, person)
    trained = await asyncio.to_thread(
        datasets.trained_on, stores.database, stores.settings.data_dir, found.conversations
    )
    return PersonAnswer(
        **asdict(person),
        known=found.known,
        conversations=found.conversations,
        messages=found.messages,
        first_at=found.first_at,
        last_at=found.last_at,
        hold=_hold(found.hold),
        versions=[TrainedVersion(**asdict(version)) for version in trained],
        erasures=found.erasures,
    )


@router.post("/people/erase")
async def erase(user: Admin, stores: Stores, body: EraseBody) -> ReceiptAnswer:
    """Erase everything the person said, everywhere, and give the receipt. 409 ``held`` with
    ``hold_id`` under a legal hold. When it is cut off it goes on by itself."""
    if body.confirm != body.visitor:
        raise RequestRefused("confirm must repeat the visitor's id: erasing cannot be undone")
    receipt = await _eraser(stores).erase(
        Person(body.site, body.visitor),
        actor=user.username,
        reason=body.reason,
        request_id=body.request_id,
    )
    return _receipt(receipt)


@router.get("/erasures")
def list_erasures(_: Admin, stores: Stores) -> ErasureList:
    """The newest first."""
    rows = _eraser(stores).all()
    return ErasureList(items=[ErasureItem.model_validate(row) for row in rows])


@router.get("/erasures/{erasure_id}")
async def one_erasure(_: Admin, stores: Stores, erasure_id: str) -> ReceiptAnswer:
    """The receipt, with the versions as they are now."""
    return _receipt(await _eraser(stores).receipt(erasure_id))


@router.get("/holds")
def list_holds(_: Admin, stores: Stores) -> HoldList:
    """Those in force first."""
    rows = holds.list_holds(stores.database)
    return HoldList(items=[HoldAnswer.model_validate(row) for row in rows])


@router.post("/holds", status_code=status.HTTP_201_CREATED, responses={200: {"model": HoldAnswer}})
def place(user: Admin, stores: Stores, body: HoldBody, response: Response) -> HoldAnswer:
    """201; 200 with the hold in force when there is one already."""
    person = Person(body.site, body.visitor)
    hold, created = holds.place_hold(stores.database, person, user.username, body.reason)
    if not created:
        response.status_code = status.HTTP_200_OK
    return HoldAnswer.model_validate(hold)


@router.post("/holds/{hold_id}/lift")
def lift(user: Admin, stores: Stores, hold_id: str, body: LiftBody) -> HoldAnswer:
    """Lifting twice is lifting once."""
    hold = holds.lift_hold(stores.database, hold_id, user.username, body.reason)
    return HoldAnswer.model_validate(hold)


async def _person(stores: Services, body: PersonQuery) -> Person:
    if body.subject:
        return Person(body.site, signer_of(stores).visitor_id(body.site, body.subject))
    if body.conversation_id:
        return await person_of_conversation(stores.database, stores.log, body.conversation_id)
    return await asyncio.to_thread(person_of_visitor, stores.database, body.visitor)


def _eraser(stores: Services) -> Eraser:
    return Eraser(stores.database, stores.log, stores.runs, stores.settings.data_dir)


def _receipt(receipt: Receipt) -> ReceiptAnswer:
    values: dict[str, Any] = asdict(receipt)
    return ReceiptAnswer(**values)


def _hold(row: Hold | None) -> HoldAnswer | None:
    return None if row is None else HoldAnswer.model_validate(row)
