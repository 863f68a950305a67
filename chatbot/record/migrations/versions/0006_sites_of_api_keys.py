"""the site that a key of the API is for"""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("api_keys", sa.Column("site", sa.String(64), nullable=False, server_default=""))


def downgrade() -> None:
    op.drop_column("api_keys", "site")
