"""The token of each decision; browsers that are signed in; no two valid tokens have the same name

Of valid tokens with the same name the first keeps it; the others get a number, such as `Ann (2)`.
"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

TEXT = sa.String().with_variant(sa.String(collation="C"), "postgresql")
LONGEST = 80
VALID = sa.text("revoked_at = ''")


def upgrade():
    named = "CONSTRAINT fk_decisions_token_id REFERENCES tokens (id)"
    op.execute(f"ALTER TABLE decisions ADD COLUMN token_id INTEGER {named}")  # a batch would copy the whole table
    op.create_table(
        "sign_ins",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("token_id", sa.Integer(), nullable=False),
        sa.Column("digest", TEXT, nullable=False),
        sa.Column("created_at", TEXT, nullable=False),
        sa.ForeignKeyConstraint(["token_id"], ["tokens.id"], name=op.f("fk_sign_ins_token_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_sign_ins")),
        sa.UniqueConstraint("digest", name=op.f("uq_sign_ins_digest")),
    )
    _number_names()
    how = {"unique": True, "sqlite_where": VALID, "postgresql_where": VALID}
    op.create_index(op.f("uq_tokens_valid_name"), "tokens", ["name"], **how)


def _number_names():
    """The second valid token of a name and later ones get a number that no token and no user of the log has."""
    connection = op.get_bind()
    users = "SELECT name FROM tokens UNION SELECT who FROM decisions UNION SELECT decided_by FROM encounters"
    taken, seen = set(connection.scalars(sa.text(users))), set()
    for number, name in connection.execute(
        sa.text("SELECT id, name FROM tokens WHERE revoked_at = '' ORDER BY id")
    ).all():
        if name in seen:
            count = 2
            while (other := f"{name[: LONGEST - 8]} ({count})") in taken:
                count += 1
            taken.add(other)
            rename = sa.text("UPDATE tokens SET name = :name WHERE id = :number")
            connection.execute(rename, {"name": other, "number": number})
        seen.add(name)


def downgrade():
    op.drop_index(op.f("uq_tokens_valid_name"), table_name="tokens")
    op.drop_table("sign_ins")
    op.drop_column("decisions", "token_id")
