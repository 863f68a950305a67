"""Texts that agents send often. The desk offers them after a slash."""

from typing import Annotated

from fastapi import APIRouter, Path, Response, status
from pydantic import Field
from sqlalchemy import select

from chatbot.errors import NotFound
from chatbot.protocol import check_text
from chatbot.record.audit import record
from chatbot.record.clock import now_ms
from chatbot.record.tables import CannedReply
from chatbot.server.admin.common import Agent, Answer, Body, Reviewer, Stores

router = APIRouter(prefix="/canned-replies", tags=["canned replies"])
Name = Annotated[str, Path(pattern=r"^[a-z0-9][a-z0-9-]{0,39}$")]


class CannedBody(Body):
    """``{{agent}}``, ``{{site}}``, ``{{conversation}}`` and ``{{today}}`` are filled in by the
    desk; what else stands in double braces is a blank that the agent fills before sending."""

    text: str = Field(max_length=8000)


class CannedAnswer(Answer):
    name: str
    text: str
    updated_by: str
    updated_at: int


class CannedList(Answer):
    items: list[CannedAnswer]


@router.get("")
def list_canned(_: Agent, stores: Stores) -> CannedList:
    with stores.database.session() as session:
        rows = session.scalars(select(CannedReply).order_by(CannedReply.name)).all()
    return CannedList(items=[CannedAnswer.model_validate(row) for row in rows])


@router.put("/{name}")
def put_canned(user: Reviewer, stores: Stores, name: Name, body: CannedBody) -> CannedAnswer:
    """Create or change one."""
    text = check_text(body.text, stores.settings.max_message_chars)
    with stores.database.exclusive_session("canned replies") as session:
        row = session.get(CannedReply, name) or CannedReply(name=name)
        row.text, row.updated_by, row.updated_at = text, user.username, now_ms()
        session.add(row)
        record(session, user.username, "canned.save", name)
        return CannedAnswer.model_validate(row)


@router.delete("/{name}", status_code=status.HTTP_204_NO_CONTENT)
def remove_canned(user: Reviewer, stores: Stores, name: Name) -> Response:
    with stores.database.exclusive_session("canned replies") as session:
        row = session.get(CannedReply, name)
        if row is None:
            raise NotFound(f"there is no canned reply {name}")
        session.delete(row)
        record(session, user.username, "canned.delete", name)
    return Response(status_code=status.HTTP_204_NO_CONTENT)
