"""Model versions: list, look at the evidence, promote, roll back."""

from typing import Any

from fastapi import APIRouter
from fastapi.responses import HTMLResponse
from pydantic import Field

from chatbot.errors import NotFound, VersionCorrupt
from chatbot.server.admin.common import Admin, Agent, Answer, Body, Stores
from chatbot.services import Services
from chatbot.versions import VersionInfo

router = APIRouter(prefix="/versions", tags=["versions"])
# the page is self-contained; this keeps whatever is in it from acting for whoever reads it
PAGE_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; sandbox"


class DecisionAnswer(Answer):
    passed: bool
    reasons: list[str]


class VersionAnswer(Answer):
    """``decision``: the promotion rule against what is live now."""

    id: str
    state: str
    base_model: str
    created_at: int
    dataset_fingerprint: str
    metrics: dict[str, Any]
    decision: DecisionAnswer
    promoted_at: int | None
    promoted_by: str
    reason: str


class ChangeAnswer(Answer):
    version_id: str
    previous_id: str
    kind: str
    actor: str
    reason: str
    at: int


class VersionDetail(VersionAnswer):
    manifest: dict[str, Any]
    report: dict[str, Any] | None
    history: list[ChangeAnswer]


class VersionList(Answer):
    """``rollback_to``: what a rollback would make live; null when there is nothing before."""

    live: str | None
    rollback_to: str | None
    items: list[VersionAnswer]


class PromoteBody(Body):
    reason: str = Field("", max_length=2000)
    override: bool = False


class RollbackBody(Body):
    reason: str = Field("", max_length=2000)


@router.get("")
def list_versions(_: Agent, stores: Stores) -> VersionList:
    """The newest first."""
    versions = stores.versions.list()
    live = [info.id for info in versions if info.state == "live"]
    return VersionList(
        live=live[0] if live else None,
        rollback_to=stores.versions.rollback_target(),
        items=[_answer(stores, info) for info in versions],
    )


@router.post("/rollback")
def rollback(user: Admin, stores: Stores, body: RollbackBody) -> VersionAnswer:
    """Make live what was live before; again goes further back."""
    return _answer(stores, stores.versions.rollback(user.username, body.reason))


@router.get("/{version_id}")
def one_version(_: Agent, stores: Stores, version_id: str) -> VersionDetail:
    info = stores.versions.get(version_id)
    history = [ChangeAnswer.model_validate(c) for c in stores.versions.history(version_id)]
    return VersionDetail(
        **_answer(stores, info).model_dump(),
        manifest=info.manifest,
        report=_report(stores, version_id),
        history=history,
    )


@router.get(
    "/{version_id}/report.html",
    response_model=None,
    responses={200: {"content": {"text/html": {}}}},
)
def report_page(_: Agent, stores: Stores, version_id: str) -> HTMLResponse:
    path = stores.versions.report_page(version_id)
    try:
        page = path.read_text(encoding="utf-8")
    except OSError as error:
        raise NotFound(f"the report of {version_id} cannot be read: {error.strerror}") from error
    return HTMLResponse(page, headers={"Content-Security-Policy": PAGE_POLICY})


@router.post("/{version_id}/promote")
def promote(user: Admin, stores: Stores, version_id: str, body: PromoteBody) -> VersionAnswer:
    """409 ``promotion_refused`` with ``reasons`` when the rule does not pass, unless ``override``,
    which needs a reason. It holds from the next reply on; replies being written end as they are."""
    info = stores.versions.promote(version_id, user.username, body.reason, body.override)
    return _answer(stores, info)


def _answer(stores: Services, info: VersionInfo) -> VersionAnswer:
    names = VersionAnswer.model_fields.keys() - {"decision"}
    decision = stores.versions.decision(info.id)
    return VersionAnswer(
        **{name: getattr(info, name) for name in names},
        decision=DecisionAnswer(passed=decision.passed, reasons=list(decision.reasons)),
    )


def _report(stores: Services, version_id: str) -> dict[str, Any] | None:
    try:
        return stores.versions.report(version_id)
    except VersionCorrupt:
        return None  # the decision says so
