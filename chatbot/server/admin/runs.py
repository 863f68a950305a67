"""Training runs: start, follow, cancel."""

from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Query, Response, status
from pydantic import Field

from chatbot.protocol import Id
from chatbot.server.admin.common import SAFE_INT, Admin, Answer, Body, Reviewer, Stores

router = APIRouter(prefix="/training/runs", tags=["training"])


class RunBody(Body):
    """What is not given keeps the default of ``frontdesk train``. ``limit``: dialogues of the
    file that are used. ``request_id``: the caller's; the same again means the same run."""

    request_id: Id
    epochs: float | None = Field(None, gt=0, le=100)
    limit: int | None = Field(None, ge=1)
    learning_rate: float | None = Field(None, gt=0, le=1)
    rank: int | None = Field(None, ge=1, le=512)
    max_steps: int | None = Field(None, ge=1)
    auto_promote: bool | None = None


class RunAnswer(Answer):
    id: str
    state: str
    requested_by: str
    settings: dict[str, Any]
    step: int
    total_steps: int
    loss: float | None
    tokens_per_s: float | None
    seconds_left: float | None
    phase: str
    version_id: str
    error: str
    cancel_requested: bool
    created_at: int
    started_at: int | None
    ended_at: int | None


class RunList(Answer):
    items: list[RunAnswer]


class ProgressItem(Answer):
    n: int
    phase: str
    step: int
    total_steps: int
    loss: float | None
    learning_rate: float | None
    tokens_per_s: float | None
    seconds_left: float | None
    message: str
    at: int


class ProgressAnswer(Answer):
    """``last``: what to give as ``after`` next time."""

    items: list[ProgressItem]
    last: int
    state: str


@router.post("", status_code=status.HTTP_201_CREATED, responses={200: {"model": RunAnswer}})
def start(user: Admin, stores: Stores, body: RunBody, response: Response) -> RunAnswer:
    """201; 200 when this ``request_id`` began it before; 409 ``run_active`` with ``run_id`` while
    another run is active."""
    settings = body.model_dump(exclude={"request_id"}, exclude_none=True)
    run, created = stores.runs.create(body.request_id, user.username, settings)
    if not created:
        response.status_code = status.HTTP_200_OK
    return RunAnswer.model_validate(run)


@router.get("")
def list_runs(_: Reviewer, stores: Stores) -> RunList:
    """The newest first."""
    return RunList(items=[RunAnswer.model_validate(run) for run in stores.runs.list()])


@router.get("/{run_id}")
def one_run(_: Reviewer, stores: Stores, run_id: str) -> RunAnswer:
    return RunAnswer.model_validate(stores.runs.get(run_id))


@router.get("/{run_id}/progress")
def progress(
    _: Reviewer, stores: Stores, run_id: str, after: Annotated[int, Query(ge=0, le=SAFE_INT)] = 0
) -> ProgressAnswer:
    """Lines after the one of number ``after``."""
    run = stores.runs.get(run_id)  # before its lines: "completed" then comes with the last one
    lines = stores.runs.progress_after(run_id, after)
    return ProgressAnswer(
        items=[ProgressItem(**asdict(line)) for line in lines],
        last=lines[-1].n if lines else after,
        state=run.state,
    )


@router.post("/{run_id}/cancel")
def cancel(user: Admin, stores: Stores, run_id: str) -> RunAnswer:
    """A queued run ends at once, a running one at its next step."""
    return RunAnswer.model_validate(stores.runs.request_cancel(run_id, user.username))
