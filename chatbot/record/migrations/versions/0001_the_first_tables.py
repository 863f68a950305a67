"""the first tables"""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

TABLES = (
    "training_progress",
    "training_runs",
    "promotions",
    "versions",
    "reviews",
    "events",
    "conversations",
    "staff",
    "sites",
    "audit",
)


def upgrade() -> None:
    _conversations()
    _versions()
    _training()
    _people()


def downgrade() -> None:
    for table in TABLES:
        op.drop_table(table)


def _text(name: str, length: int, **options: Any) -> sa.Column[str]:
    return sa.Column(name, sa.String(length), nullable=False, **options)


def _long(name: str) -> sa.Column[str]:
    return sa.Column(name, sa.Text(), nullable=False)


def _time(name: str, nullable: bool = False) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger(), nullable=nullable)


def _number(name: str, **options: Any) -> sa.Column[int]:
    return sa.Column(name, sa.Integer(), nullable=False, **options)


def _rate(name: str) -> sa.Column[float]:
    return sa.Column(name, sa.Float(), nullable=True)


def _index(table: str, *columns: str) -> None:
    for column in columns:
        op.create_index(f"ix_{table}_{column}", table, [column])


def _conversations() -> None:
    op.create_table(
        "conversations",
        _text("id", 64, primary_key=True),
        _text("epoch", 64),
        _text("site", 64),
        _text("visitor", 64),
        _text("status", 16),
        _time("started_at"),
        _time("updated_at"),
        _number("recorded_offset"),
        _number("messages"),
        sa.Column("score", sa.Integer(), nullable=True),
        _text("preview", 200),
        sa.Column("excluded", sa.Boolean(), nullable=False),
        _long("exclusion_reason"),
    )
    _index("conversations", "site", "status", "updated_at", "visitor")
    op.create_table(
        "events",
        _text("conversation_id", 64, primary_key=True),
        _text("epoch", 64, primary_key=True),
        _number("offset", primary_key=True),
        _text("type", 32),
        _time("at"),
        _text("version", 64),
        _long("text"),
        sa.Column("data", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(["conversation_id"], ["conversations.id"], ondelete="CASCADE"),
    )
    _index("events", "version")
    op.create_index("events_by_time", "events", ["at"])
    op.create_table(
        "reviews",
        _text("conversation_id", 64, primary_key=True),
        _number("offset", primary_key=True),
        sa.Column("verdict", sa.String(8), nullable=True),
        sa.Column("correction", sa.Text(), nullable=True),
        _long("comment"),
        _text("reviewer", 64),
        _time("updated_at"),
        sa.ForeignKeyConstraint(["conversation_id"], ["conversations.id"], ondelete="CASCADE"),
    )


def _versions() -> None:
    op.create_table(
        "versions",
        _text("id", 64, primary_key=True),
        _text("state", 16),
        _text("base_model", 255),
        _text("directory", 255),
        _text("dataset_fingerprint", 64),
        sa.Column("manifest", sa.JSON(), nullable=False),
        _time("created_at"),
        _time("promoted_at", nullable=True),
        _text("promoted_by", 64),
        _long("reason"),
    )
    _index("versions", "state")
    live = sa.text("state = 'live'")
    op.create_index(
        "one_live_version",
        "versions",
        ["state"],
        unique=True,
        sqlite_where=live,
        postgresql_where=live,
    )
    op.create_table(
        "promotions",
        _number("id", primary_key=True, autoincrement=True),
        _text("version_id", 64),
        _text("previous_id", 64),
        _text("kind", 16),
        _text("actor", 64),
        _long("reason"),
        _time("at"),
        sa.ForeignKeyConstraint(["version_id"], ["versions.id"]),
    )


def _training() -> None:
    op.create_table(
        "training_runs",
        _text("id", 64, primary_key=True),
        _text("request_id", 64),
        sa.Column("active", sa.Integer(), nullable=True),
        _text("state", 16),
        _text("requested_by", 64),
        sa.Column("settings", sa.JSON(), nullable=False),
        sa.Column("cancel_requested", sa.Boolean(), nullable=False),
        _number("attempts"),
        _time("heartbeat_at"),
        _text("version_id", 64),
        _long("error"),
        _time("created_at"),
        _time("started_at", nullable=True),
        _time("ended_at", nullable=True),
        sa.UniqueConstraint("active"),
        sa.UniqueConstraint("request_id"),
    )
    _index("training_runs", "state")
    op.create_table(
        "training_progress",
        _text("run_id", 64, primary_key=True),
        _number("n", primary_key=True),
        _text("phase", 16),
        _number("step"),
        _number("total_steps"),
        _rate("loss"),
        _rate("learning_rate"),
        _rate("tokens_per_s"),
        _rate("seconds_left"),
        _long("message"),
        _time("at"),
        sa.ForeignKeyConstraint(["run_id"], ["training_runs.id"], ondelete="CASCADE"),
    )


def _people() -> None:
    op.create_table(
        "sites",
        _text("name", 64, primary_key=True),
        sa.Column("origins", sa.JSON(), nullable=False),
        _text("title", 100),
        _long("welcome"),
        _long("system_prompt"),
        _text("identity_secret", 128),
        _time("created_at"),
    )
    op.create_table(
        "staff",
        _text("username", 64, primary_key=True),
        _text("password", 255),
        _text("role", 16),
        _time("created_at"),
    )
    op.create_table(
        "audit",
        _number("id", primary_key=True, autoincrement=True),
        _text("actor", 64),
        _text("action", 64),
        _text("subject", 128),
        _long("reason"),
        sa.Column("data", sa.JSON(), nullable=False),
        _time("at"),
    )
    _index("audit", "at")
