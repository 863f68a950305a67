"""data rights: retention, holds, erasures, exports"""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

TABLES = ("export_conversations", "exports", "erased_conversations", "erasures", "holds")
RETENTION = ("idle_close_hours", "log_days", "record_days")


def upgrade() -> None:
    for name in RETENTION:
        op.add_column("sites", sa.Column(name, sa.Integer(), nullable=True))
    _holds()
    _erasures()
    _exports()


def downgrade() -> None:
    for table in TABLES:
        op.drop_table(table)
    with op.batch_alter_table("sites") as sites:
        for name in RETENTION:
            sites.drop_column(name)


def _text(name: str, length: int, **options: Any) -> sa.Column[str]:
    return sa.Column(name, sa.String(length), nullable=False, **options)


def _long(name: str) -> sa.Column[str]:
    return sa.Column(name, sa.Text(), nullable=False)


def _time(name: str, nullable: bool = False) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger(), nullable=nullable)


def _number(name: str) -> sa.Column[int]:
    return sa.Column(name, sa.Integer(), nullable=False)


def _index(table: str, *columns: str) -> None:
    for column in columns:
        op.create_index(f"ix_{table}_{column}", table, [column])


def _holds() -> None:
    op.create_table(
        "holds",
        _text("id", 64, primary_key=True),
        _text("site", 64),
        _text("visitor", 64),
        _long("reason"),
        _text("placed_by", 64),
        _time("placed_at"),
        _time("lifted_at", nullable=True),
        _text("lifted_by", 64),
        _long("lift_reason"),
    )
    _index("holds", "visitor")
    in_force = sa.text("lifted_at IS NULL")
    op.create_index(
        "one_hold_in_force",
        "holds",
        ["site", "visitor"],
        unique=True,
        sqlite_where=in_force,
        postgresql_where=in_force,
    )


def _erasures() -> None:
    op.create_table(
        "erasures",
        _text("id", 64, primary_key=True),
        _text("request_id", 64),
        _text("site", 64),
        _text("visitor", 64),
        _text("state", 16),
        _text("requested_by", 64),
        _long("reason"),
        sa.Column("receipt", sa.JSON(), nullable=False),
        _time("requested_at"),
        _time("completed_at", nullable=True),
        sa.UniqueConstraint("request_id"),
    )
    _index("erasures", "state", "visitor")
    op.create_table(
        "erased_conversations",
        _text("conversation_id", 64, primary_key=True),
        _time("erased_at"),
        _time("only_before", nullable=True),
        sa.Column("pending", sa.Boolean(), nullable=False),
        _text("erasure_id", 64),
    )
    _index("erased_conversations", "erased_at", "pending", "erasure_id")


def _exports() -> None:
    op.create_table(
        "exports",
        _text("id", 64, primary_key=True),
        _text("request_id", 64),
        _text("state", 16),
        _text("format", 8),
        sa.Column("redact", sa.Boolean(), nullable=False),
        sa.Column("filter", sa.JSON(), nullable=False),
        _text("requested_by", 64),
        _number("conversations"),
        _number("total"),
        _time("size"),
        _long("error"),
        _time("heartbeat_at"),
        _time("created_at"),
        _time("expires_at"),
        sa.UniqueConstraint("request_id"),
    )
    _index("exports", "state")
    op.create_table(
        "export_conversations",
        _text("export_id", 64, primary_key=True),
        _text("conversation_id", 64, primary_key=True),
        sa.ForeignKeyConstraint(["export_id"], ["exports.id"], ondelete="CASCADE"),
    )
    _index("export_conversations", "conversation_id")
