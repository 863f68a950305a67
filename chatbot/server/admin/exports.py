"""Exports of conversations that are made on the server."""

from typing import Annotated, Any

from fastapi import APIRouter, Response, status
from fastapi.responses import FileResponse
from pydantic import Field

from chatbot.conversation.events import Status
from chatbot.protocol import Id
from chatbot.record.tables import Export
from chatbot.rights import export_jobs
from chatbot.rights.export import Format, Wanted
from chatbot.server.admin.common import SAFE_INT, Admin, Answer, Body, Stores

router = APIRouter(prefix="/exports", tags=["exports"])
MEDIA = {"jsonl": "application/x-ndjson", "csv": "text/csv; charset=utf-8"}
Time = Annotated[int | None, Field(ge=0, le=SAFE_INT)]


class ExportFilter(Body):
    """Empty values mean any; ``since`` and ``until`` (excluded) bound the last activity."""

    site: str = Field("", max_length=64)
    visitor: str = Field("", max_length=64)
    status: Status | None = None
    since: Time = None
    until: Time = None


class ExportBody(Body):
    """``redact``: e-mail addresses, telephone numbers and the like become ``[EMAIL]``… The same
    ``request_id`` again is the same export."""

    request_id: Id
    format: Format
    redact: bool = False
    filter: ExportFilter = ExportFilter()


class ExportAnswer(Answer):
    """``state``: queued, running, ready; then failed, expired, deleted or erased (it held words of
    somebody who was erased). ``size`` in bytes."""

    id: str
    state: str
    format: str
    redact: bool
    filter: dict[str, Any]
    requested_by: str
    conversations: int
    total: int
    size: int
    error: str
    created_at: int
    expires_at: int


class ExportList(Answer):
    items: list[ExportAnswer]


@router.post("", status_code=status.HTTP_201_CREATED, responses={200: {"model": ExportAnswer}})
def start(user: Admin, stores: Stores, body: ExportBody, response: Response) -> ExportAnswer:
    """201; 200 when this ``request_id`` asked for it before. It is written in the background, from
    what is recorded."""
    wanted = Wanted(**{**body.filter.model_dump(), "status": body.filter.status or ""})
    row, created = export_jobs.request_export(
        stores.database,
        user.username,
        body.request_id,
        wanted,
        body.format,
        redact=body.redact,
        hours=stores.settings.export_hours,
    )
    if not created:
        response.status_code = status.HTTP_200_OK
    return _answer(row)


@router.get("")
def list_exports(_: Admin, stores: Stores) -> ExportList:
    """The newest first."""
    return ExportList(items=[_answer(row) for row in export_jobs.list_exports(stores.database)])


@router.get("/{export_id}")
def one_export(_: Admin, stores: Stores, export_id: str) -> ExportAnswer:
    return _answer(export_jobs.get_export(stores.database, export_id))


@router.get(
    "/{export_id}/file", responses={200: {"content": {kind: {} for kind in MEDIA.values()}}}
)
def download(user: Admin, stores: Stores, export_id: str) -> FileResponse:
    """The file, streamed. 409 while it is not ready and when it is gone."""
    path = export_jobs.open_export(
        stores.database, stores.settings.data_dir, export_id, user.username
    )
    return FileResponse(path, media_type=MEDIA[path.suffix[1:]], filename=path.name)


@router.delete("/{export_id}")
def delete(user: Admin, stores: Stores, export_id: str) -> ExportAnswer:
    """Delete the file now."""
    row = export_jobs.delete_export(
        stores.database, stores.settings.data_dir, export_id, user.username
    )
    return _answer(row)


def _answer(row: Export) -> ExportAnswer:
    return ExportAnswer.model_validate(row)
