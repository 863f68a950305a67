"""The record: what is kept for good, in SQL. SQLite and PostgreSQL through the same tables.

Times are Unix milliseconds (UTC) everywhere. JSON columns hold plain JSON.
"""

from typing import Any

from sqlalchemy import JSON, BigInteger, Boolean, Float, ForeignKey, Index, Integer, String, Text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase):
    type_annotation_map = {dict[str, Any]: JSON, list[Any]: JSON}  # noqa: RUF012


class Conversation(Base):
    """One conversation, copied from the log's head by the archiver."""

    __tablename__ = "conversations"
    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    epoch: Mapped[str] = mapped_column(String(64))
    site: Mapped[str] = mapped_column(String(64), index=True)
    visitor: Mapped[str] = mapped_column(String(64), index=True)
    status: Mapped[str] = mapped_column(String(16), index=True)
    started_at: Mapped[int] = mapped_column(BigInteger)
    updated_at: Mapped[int] = mapped_column(BigInteger, index=True)
    recorded_offset: Mapped[int] = mapped_column(Integer, default=0)
    messages: Mapped[int] = mapped_column(Integer, default=0)
    score: Mapped[int | None] = mapped_column(Integer)  # the visitor's rating, 1..5
    preview: Mapped[str] = mapped_column(String(200), default="")  # first message of the visitor
    excluded: Mapped[bool] = mapped_column(Boolean, default=False)
    exclusion_reason: Mapped[str] = mapped_column(Text, default="")


class EventRow(Base):
    """One event of a log; the key makes the archiver's copy exactly-once."""

    __tablename__ = "events"
    conversation_id: Mapped[str] = mapped_column(
        String(64), ForeignKey("conversations.id", ondelete="CASCADE"), primary_key=True
    )
    epoch: Mapped[str] = mapped_column(String(64), primary_key=True)
    offset: Mapped[int] = mapped_column(Integer, primary_key=True)
    type: Mapped[str] = mapped_column(String(32))
    at: Mapped[int] = mapped_column(BigInteger)
    version: Mapped[str] = mapped_column(String(64), default="", index=True)  # replies only
    text: Mapped[str] = mapped_column(Text, default="")  # what a search looks at
    data: Mapped[dict[str, Any]] = mapped_column(JSON)


class Review(Base):
    """What staff said of one bot reply (the ``reply.completed`` event at ``offset``)."""

    __tablename__ = "reviews"
    conversation_id: Mapped[str] = mapped_column(
        String(64), ForeignKey("conversations.id", ondelete="CASCADE"), primary_key=True
    )
    offset: Mapped[int] = mapped_column(Integer, primary_key=True)
    verdict: Mapped[str | None] = mapped_column(String(8))  # good | bad
    correction: Mapped[str | None] = mapped_column(Text)
    comment: Mapped[str] = mapped_column(Text, default="")
    reviewer: Mapped[str] = mapped_column(String(64))
    updated_at: Mapped[int] = mapped_column(BigInteger)


class Version(Base):
    """A model version: an adapter with its evidence. ``directory`` is relative to the artifacts
    root and empty for the bare base model."""

    __tablename__ = "versions"
    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    state: Mapped[str] = mapped_column(String(16), index=True)  # candidate | live | retired
    base_model: Mapped[str] = mapped_column(String(255))
    directory: Mapped[str] = mapped_column(String(255), default="")
    dataset_fingerprint: Mapped[str] = mapped_column(String(64), default="")
    manifest: Mapped[dict[str, Any]] = mapped_column(JSON)
    created_at: Mapped[int] = mapped_column(BigInteger)
    promoted_at: Mapped[int | None] = mapped_column(BigInteger)
    promoted_by: Mapped[str] = mapped_column(String(64), default="")
    reason: Mapped[str] = mapped_column(Text, default="")


class Promotion(Base):
    """Every change of the live version, in order; the last row is what is live now."""

    __tablename__ = "promotions"
    id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=True)
    version_id: Mapped[str] = mapped_column(String(64), ForeignKey("versions.id"))
    previous_id: Mapped[str] = mapped_column(String(64), default="")
    kind: Mapped[str] = mapped_column(String(16))  # promote | override | rollback | initial
    actor: Mapped[str] = mapped_column(String(64))
    reason: Mapped[str] = mapped_column(Text, default="")
    at: Mapped[int] = mapped_column(BigInteger)


class TrainingRun(Base):
    """One retraining run. Its progress lines are in ``training_progress``."""

    __tablename__ = "training_runs"
    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    request_id: Mapped[str] = mapped_column(String(64), unique=True)
    # 1 while queued or running, else NULL: the unique index allows one active run
    active: Mapped[int | None] = mapped_column(Integer, unique=True)
    state: Mapped[str] = mapped_column(String(16), index=True)
    requested_by: Mapped[str] = mapped_column(String(64))
    settings: Mapped[dict[str, Any]] = mapped_column(JSON)
    cancel_requested: Mapped[bool] = mapped_column(Boolean, default=False)
    attempts: Mapped[int] = mapped_column(Integer, default=0)
    heartbeat_at: Mapped[int] = mapped_column(BigInteger, default=0)
    version_id: Mapped[str] = mapped_column(String(64), default="")
    error: Mapped[str] = mapped_column(Text, default="")
    created_at: Mapped[int] = mapped_column(BigInteger)
    started_at: Mapped[int | None] = mapped_column(BigInteger)
    ended_at: Mapped[int | None] = mapped_column(BigInteger)


class TrainingProgress(Base):
    """One line of a run's progress; ``n`` counts from 1 within the run."""

    __tablename__ = "training_progress"
    run_id: Mapped[str] = mapped_column(
        String(64), ForeignKey("training_runs.id", ondelete="CASCADE"), primary_key=True
    )
    n: Mapped[int] = mapped_column(Integer, primary_key=True)
    phase: Mapped[str] = mapped_column(String(16))  # prepare | train | evaluate | publish
    step: Mapped[int] = mapped_column(Integer, default=0)
    total_steps: Mapped[int] = mapped_column(Integer, default=0)
    loss: Mapped[float | None] = mapped_column(Float)
    learning_rate: Mapped[float | None] = mapped_column(Float)
    tokens_per_s: Mapped[float | None] = mapped_column(Float)
    seconds_left: Mapped[float | None] = mapped_column(Float)
    message: Mapped[str] = mapped_column(Text, default="")
    at: Mapped[int] = mapped_column(BigInteger)


class Site(Base):
    """A website that embeds the widget."""

    __tablename__ = "sites"
    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    origins: Mapped[list[Any]] = mapped_column(JSON)  # allowed Origin values; see server/auth.py
    title: Mapped[str] = mapped_column(String(100), default="")
    welcome: Mapped[str] = mapped_column(Text, default="")
    system_prompt: Mapped[str] = mapped_column(Text, default="")
    identity_secret: Mapped[str] = mapped_column(String(128), default="")
    # chatbot/server/site_settings.py WidgetSettings
    widget: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict, server_default="{}")
    created_at: Mapped[int] = mapped_column(BigInteger)
    # retention; NULL: the installation's setting of that name, 0: never (chatbot/rights/rules.py)
    idle_close_hours: Mapped[int | None] = mapped_column(Integer)
    log_days: Mapped[int | None] = mapped_column(Integer)
    record_days: Mapped[int | None] = mapped_column(Integer)


class CannedReply(Base):
    """A text that agents send often. ``{{name}}`` in it is filled in by the desk or the agent."""

    __tablename__ = "canned_replies"
    name: Mapped[str] = mapped_column(String(40), primary_key=True)  # typed after a slash
    text: Mapped[str] = mapped_column(Text)
    updated_by: Mapped[str] = mapped_column(String(64))
    updated_at: Mapped[int] = mapped_column(BigInteger)


class Staff(Base):
    """A member of staff. ``password`` is an argon2id hash."""

    __tablename__ = "staff"
    username: Mapped[str] = mapped_column(String(64), primary_key=True)
    password: Mapped[str] = mapped_column(String(255))
    role: Mapped[str] = mapped_column(String(16))  # agent | reviewer | admin
    created_at: Mapped[int] = mapped_column(BigInteger)


class ApiKey(Base):
    """A key of the OpenAI-compatible API, and with a ``site`` of that site's calls. ``digest`` is
    the SHA-256 of the key, in hex; ``hint`` is how the key begins, for people to tell keys
    apart."""

    __tablename__ = "api_keys"
    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    name: Mapped[str] = mapped_column(String(64))
    digest: Mapped[str] = mapped_column(String(64), unique=True)
    hint: Mapped[str] = mapped_column(String(16))
    site: Mapped[str] = mapped_column(String(64), default="", server_default="")  # "": none
    created_by: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[int] = mapped_column(BigInteger)
    revoked_at: Mapped[int | None] = mapped_column(BigInteger)


class Audit(Base):
    """Who did what, when and why. Rows are only ever added."""

    __tablename__ = "audit"
    id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=True)
    actor: Mapped[str] = mapped_column(String(64))
    action: Mapped[str] = mapped_column(String(64))
    subject: Mapped[str] = mapped_column(String(128), default="")
    reason: Mapped[str] = mapped_column(Text, default="")
    data: Mapped[dict[str, Any]] = mapped_column(JSON)
    at: Mapped[int] = mapped_column(BigInteger, index=True)


class Hold(Base):
    """A legal hold: nothing of this visitor is deleted until it is lifted."""

    __tablename__ = "holds"
    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    site: Mapped[str] = mapped_column(String(64))
    visitor: Mapped[str] = mapped_column(String(64), index=True)
    reason: Mapped[str] = mapped_column(Text)
    placed_by: Mapped[str] = mapped_column(String(64))
    placed_at: Mapped[int] = mapped_column(BigInteger)
    lifted_at: Mapped[int | None] = mapped_column(BigInteger)
    lifted_by: Mapped[str] = mapped_column(String(64), default="")
    lift_reason: Mapped[str] = mapped_column(Text, default="")


class Erasure(Base):
    """A person was erased, or is being erased. ``receipt`` says what was found where."""

    __tablename__ = "erasures"
    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    request_id: Mapped[str] = mapped_column(String(64), unique=True)
    site: Mapped[str] = mapped_column(String(64))
    visitor: Mapped[str] = mapped_column(String(64), index=True)
    state: Mapped[str] = mapped_column(String(16), index=True)  # running | done
    requested_by: Mapped[str] = mapped_column(String(64))
    reason: Mapped[str] = mapped_column(Text)
    receipt: Mapped[dict[str, Any]] = mapped_column(JSON)
    requested_at: Mapped[int] = mapped_column(BigInteger)
    completed_at: Mapped[int | None] = mapped_column(BigInteger)


class ErasedConversation(Base):
    """What must not come back: logs under this id that began at ``erased_at`` (the store's clock)
    or before. ``pending``: marked, and not yet deleted everywhere. ``only_before``: retention
    deletes it only if nothing was said after that moment. ``erasure_id`` is "" for retention."""

    __tablename__ = "erased_conversations"
    conversation_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    erased_at: Mapped[int] = mapped_column(BigInteger, index=True)
    only_before: Mapped[int | None] = mapped_column(BigInteger)
    pending: Mapped[bool] = mapped_column(Boolean, index=True)
    erasure_id: Mapped[str] = mapped_column(String(64), default="", index=True)


class Export(Base):
    """Conversations written to a file that is under our control: listed, expiring, erased."""

    __tablename__ = "exports"
    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    request_id: Mapped[str] = mapped_column(String(64), unique=True)
    state: Mapped[str] = mapped_column(String(16), index=True)  # rights/exports.py has them
    format: Mapped[str] = mapped_column(String(8))  # jsonl | csv
    redact: Mapped[bool] = mapped_column(Boolean)
    filter: Mapped[dict[str, Any]] = mapped_column(JSON)
    requested_by: Mapped[str] = mapped_column(String(64))
    conversations: Mapped[int] = mapped_column(Integer, default=0)
    total: Mapped[int] = mapped_column(Integer, default=0)
    size: Mapped[int] = mapped_column(BigInteger, default=0)  # bytes
    error: Mapped[str] = mapped_column(Text, default="")
    heartbeat_at: Mapped[int] = mapped_column(BigInteger, default=0)
    created_at: Mapped[int] = mapped_column(BigInteger)
    expires_at: Mapped[int] = mapped_column(BigInteger)


class ExportedConversation(Base):
    """Which export holds which conversation, written before the file: so erasing finds it."""

    __tablename__ = "export_conversations"
    export_id: Mapped[str] = mapped_column(
        String(64), ForeignKey("exports.id", ondelete="CASCADE"), primary_key=True
    )
    conversation_id: Mapped[str] = mapped_column(String(64), primary_key=True, index=True)


Index("events_by_time", EventRow.at)
# one hold in force for a person
Index(
    "one_hold_in_force",
    Hold.site,
    Hold.visitor,
    unique=True,
    sqlite_where=Hold.lifted_at.is_(None),
    postgresql_where=Hold.lifted_at.is_(None),
)
# exactly one version is live, whatever the application does
Index(
    "one_live_version",
    Version.state,
    unique=True,
    sqlite_where=Version.state == "live",
    postgresql_where=Version.state == "live",
)
