"""What the admin API answers, as typed values. Times are Unix milliseconds.

Fields that the console does not use are ignored, so that a newer server may add some. A missing
or mistyped field is an error of :mod:`ui.api`: console and server do not fit together.
"""

from typing import Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict

Role = Literal["agent", "reviewer", "admin"]
RunState = Literal["queued", "running", "completed", "failed", "cancelled"]
ACTIVE_STATES: frozenset[RunState] = frozenset({"queued", "running"})


class Answer(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


T = TypeVar("T")


class Page(Answer, Generic[T]):
    """Part of a list. ``next_cursor`` is None on the last page."""

    items: list[T]
    next_cursor: str | None


class User(Answer):
    username: str
    role: Role


class Login(Answer):
    token: str
    expires_at: int
    user: User


class Run(Answer):
    """A training run. ``loss`` and the rates are None until the first step."""

    id: str
    state: RunState
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

    @property
    def active(self) -> bool:
        return self.state in ACTIVE_STATES


class Overview(Answer):
    conversations: int
    open: int
    waiting: int
    reviewed: int
    corrections: int
    live_version: str | None
    active_run: Run | None


class ConversationItem(Answer):
    """A line of the list. ``score`` is the visitor's rating, 1 to 5; ``versions`` are those that
    wrote its replies."""

    id: str
    site: str
    status: str
    started_at: int
    updated_at: int
    messages: int
    versions: list[str]
    score: int | None
    reviewed: bool
    excluded: bool
    preview: str


class ConversationHead(Answer):
    id: str
    site: str
    status: str
    started_at: int
    updated_at: int
    score: int | None
    excluded: bool
    exclusion_reason: str


class Event(BaseModel):
    """An event of the log as on the wire; what belongs to its type is in ``model_extra``."""

    model_config = ConfigDict(frozen=True, extra="allow")

    offset: int
    type: str
    at: int

    def text_of(self, name: str) -> str:
        """A field of the event as text; "" when it is absent."""
        value = (self.model_extra or {}).get(name)
        return "" if value is None else str(value)

    def value_of(self, name: str) -> Any:
        return (self.model_extra or {}).get(name)


class Review(Answer):
    offset: int
    verdict: Literal["good", "bad"] | None
    correction: str | None
    comment: str
    reviewer: str
    updated_at: int


class ConversationDetail(Answer):
    conversation: ConversationHead
    events: list[Event]
    reviews: list[Review]


class Example(Answer):
    before: str
    after: str


class Redaction(Answer):
    counts: dict[str, int]
    examples: list[Example]


class Preview(Answer):
    """What the next training run would use."""

    dialogues: int
    from_file: int
    from_reviews: int
    corrections: int
    excluded: int
    tokens: int
    redaction: Redaction
    fingerprint: str
    can_start: bool
    reason: str | None


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


class Progress(Answer):
    items: list[ProgressItem]
    last: int
    state: RunState


class Runs(Answer):
    items: list[Run]


class Decision(Answer):
    """Outcome of the promotion rule. ``reasons`` say what did not pass."""

    passed: bool
    reasons: list[str]


class Version(Answer):
    id: str
    state: Literal["candidate", "live", "retired"]
    base_model: str
    created_at: int
    dataset_fingerprint: str
    metrics: dict[str, Any]
    decision: Decision
    promoted_at: int | None
    promoted_by: str
    reason: str

    @property
    def bare(self) -> bool:
        """The base model as it is: nothing was learned, so nothing is reported."""
        return not self.dataset_fingerprint and not self.metrics


class Promotion(Answer):
    """A change of the live version."""

    version_id: str
    previous_id: str
    kind: str
    actor: str
    reason: str
    at: int


class VersionDetail(Version):
    manifest: dict[str, Any]
    report: dict[str, Any] | None
    history: list[Promotion]


class Versions(Answer):
    """``rollback_to``: what a rollback would make live; None when there is nothing before."""

    live: str | None
    rollback_to: str | None
    items: list[Version]


class SiteWidget(Answer):
    """How the chat of a site behaves; ``hours`` by day (mon ... sun), e.g. ``["09:00-17:30"]``."""

    quick_replies: list[str] = []
    timezone: str = "UTC"
    hours: dict[str, list[str]] = {}
    holidays: list[str] = []
    link_hosts: list[str] = []
    consent: bool = False
    privacy_url: str = ""
    offline_form: bool = True


class Site(Answer):
    name: str
    origins: list[str]
    title: str
    welcome: str
    system_prompt: str
    widget: SiteWidget = SiteWidget()


class Sites(Answer):
    items: list[Site]


class StaffMember(Answer):
    username: str
    role: Role
    created_at: int


class Staff(Answer):
    items: list[StaffMember]


class RetentionOwn(Answer):
    """None: as the installation says."""

    idle_close_hours: int | None
    log_days: int | None
    record_days: int | None


class RetentionNumbers(Answer):
    idle_close_hours: int
    log_days: int
    record_days: int


class Retention(Answer):
    """``due``: conversations that are deleted in the next minutes; ``held``: those that would be,
    but for a legal hold."""

    site: str
    own: RetentionOwn
    effective: RetentionNumbers
    due: int
    held: int


class Hold(Answer):
    id: str
    site: str
    visitor: str
    reason: str
    placed_by: str
    placed_at: int
    lifted_by: str
    lifted_at: int | None
    lift_reason: str


class Holds(Answer):
    items: list[Hold]


class Trained(Answer):
    """A version that learned from a person's words; ``conversations`` None: not known how many."""

    version_id: str
    state: str
    conversations: int | None


class Person(Answer):
    site: str
    visitor: str
    known: bool
    conversations: list[str]
    messages: int
    first_at: int | None
    last_at: int | None
    hold: Hold | None
    versions: list[Trained]
    erasures: list[str]


class Receipt(Answer):
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
    versions: list[Trained]


class ErasureItem(Answer):
    id: str
    visitor: str
    state: str
    requested_at: int


class Erasures(Answer):
    items: list[ErasureItem]


class Export(Answer):
    id: str
    state: str
    format: str
    redact: bool
    requested_by: str
    conversations: int
    total: int
    size: int
    error: str
    created_at: int
    expires_at: int


class Exports(Answer):
    items: list[Export]


class AuditItem(Answer):
    id: int
    actor: str
    action: str
    subject: str
    reason: str
    data: dict[str, Any]
    at: int


class PlaygroundLine(BaseModel):
    """One NDJSON line of the playground: ``started``, ``delta``, ``done`` or ``error``."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    type: Literal["started", "delta", "done", "error"]
    version: str = ""
    text: str = ""
    finish_reason: str = ""
    usage: dict[str, Any] | None = None
    seconds: float | None = None
    code: str = ""
    message: str = ""
