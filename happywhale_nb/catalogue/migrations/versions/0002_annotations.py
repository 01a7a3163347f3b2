"""Annotations, which crops and embeddings are keyed by; what an embedding was made from; withdrawn photos; `after`

Dates that were stored as they were typed are brought to one form.
"""

import sqlalchemy as sa
from alembic import op

from happywhale_nb.core.errors import UserError
from happywhale_nb.data.dates import parse_date

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

TEXT = sa.String().with_variant(sa.String(collation="C"), "postgresql")
BOX = ("x0", "y0", "x1", "y1", "frame_width", "frame_height")


def upgrade():
    _make_annotations()
    op.drop_column("photos", "side")
    op.add_column("photos", sa.Column("size", sa.BigInteger(), nullable=True))
    op.add_column("photos", sa.Column("withdrawn", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.add_column("photos", sa.Column("given", sa.JSON(none_as_null=True), nullable=True))
    op.add_column("decisions", sa.Column("after", sa.JSON(), nullable=False, server_default="{}"))
    for table in ("crops", "embeddings"):
        with op.batch_alter_table(table, schema=None) as batch_op:
            batch_op.drop_constraint(batch_op.f(f"fk_{table}_photo_id"), type_="foreignkey")
            batch_op.create_foreign_key(batch_op.f(f"fk_{table}_annotation_id"), "annotations", ["photo_id"], ["id"])
        op.execute(f"ALTER TABLE {table} RENAME COLUMN photo_id TO annotation_id")  # a batch would lose the key
    op.add_column("embeddings", sa.Column("sha256", TEXT, nullable=False, server_default=""))
    op.add_column("embeddings", sa.Column("box", TEXT, nullable=False, server_default="?"))
    _say_what_embeddings_are_made_from()
    _bring_dates_to_one_form()
    _follow_merges()


def _make_annotations():
    """One annotation a photo, of the photo's own number, so that crops and embeddings keep theirs."""
    op.create_table(
        "annotations",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("photo_id", sa.Integer(), nullable=False),
        sa.Column("box", sa.Integer(), nullable=False),
        sa.Column("side", TEXT, nullable=False),
        sa.Column("part", TEXT, nullable=False),
        sa.ForeignKeyConstraint(["photo_id"], ["photos.id"], name=op.f("fk_annotations_photo_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_annotations")),
        sa.UniqueConstraint("photo_id", "box", name=op.f("uq_annotations_photo_id_box")),
    )
    op.execute("INSERT INTO annotations (id, photo_id, box, side, part) SELECT id, id, 0, side, '' FROM photos")
    if op.get_bind().dialect.name == "postgresql":
        op.execute("SELECT setval(pg_get_serial_sequence('annotations', 'id'), (SELECT max(id) FROM annotations))")


def _say_what_embeddings_are_made_from():
    """From the present content and box; "?" where a person has drawn the box and several models have embedded it.

    Which of these came before the box is not known, so all of them are made anew.
    """
    connection = op.get_bind()
    several = sa.text("SELECT annotation_id FROM embeddings GROUP BY annotation_id HAVING count(*) > 1")
    several = set(connection.scalars(several))
    columns = ", ".join(f"crops.{name}" for name in BOX)
    crops = f"SELECT crops.annotation_id, crops.source, photos.sha256, {columns} FROM crops JOIN photos "
    values = []
    for number, source, sha256, *box in connection.execute(sa.text(crops + "ON photos.id = crops.annotation_id")):
        drawn = source == "person" and number in several
        key = "?" if drawn else " ".join(f"{value:.6g}" for value in box if value is not None)
        values.append({"number": number, "sha256": sha256, "box": key})
    if values:
        write = "UPDATE embeddings SET sha256 = :sha256, box = :box WHERE annotation_id = :number"
        connection.execute(sa.text(write), values)


def _bring_dates_to_one_form():
    """Dates were stored as they were typed, such as 20190713; what cannot be read stays."""
    connection = op.get_bind()
    for number, text in connection.execute(sa.text("SELECT id, date FROM encounters WHERE date <> ''")).all():
        date = _iso(text) or _iso(f"{text[:10]}T{text[11:]}")  # any sign might stand before the time
        if date and date != text:
            write = sa.text("UPDATE encounters SET date = :date WHERE id = :number")
            connection.execute(write, {"date": date, "number": number})


def _iso(text):
    try:
        return parse_date(text)
    except UserError:
        return ""


def _follow_merges():
    """An undo could give an encounter to an animal that had been merged away: it goes to the one that stays."""
    connection = op.get_bind()
    merged = "SELECT id, merged_into_id FROM individuals WHERE merged_into_id IS NOT NULL"
    into = {number: stays for number, stays in connection.execute(sa.text(merged))}
    move = sa.text("UPDATE encounters SET individual_id = :stays WHERE individual_id = :number")
    for number, stays in into.items():
        while stays in into:
            stays = into[stays]
        connection.execute(move, {"number": number, "stays": stays})


def downgrade():
    op.add_column("photos", sa.Column("side", TEXT, nullable=False, server_default=""))
    op.execute("UPDATE photos SET side = (SELECT side FROM annotations WHERE photo_id = photos.id AND box = 0)")
    first = "SELECT id FROM annotations WHERE box = 0"
    photo = "SELECT photo_id FROM annotations WHERE annotations.id = "
    for table in ("embeddings", "crops"):
        op.execute(f"DELETE FROM {table} WHERE annotation_id NOT IN ({first})")
        with op.batch_alter_table(table, schema=None) as batch_op:
            batch_op.drop_constraint(batch_op.f(f"fk_{table}_annotation_id"), type_="foreignkey")
        # numbers of photos and of annotations overlap: by way of negative ones no key is there twice
        op.execute(f"UPDATE {table} SET annotation_id = -({photo}{table}.annotation_id)")
        op.execute(f"UPDATE {table} SET annotation_id = -annotation_id")
        with op.batch_alter_table(table, schema=None) as batch_op:
            batch_op.create_foreign_key(batch_op.f(f"fk_{table}_photo_id"), "photos", ["annotation_id"], ["id"])
        op.execute(f"ALTER TABLE {table} RENAME COLUMN annotation_id TO photo_id")
    for table, column in (
        ("embeddings", "box"), ("embeddings", "sha256"), ("decisions", "after"), ("photos", "given"),
        ("photos", "withdrawn"), ("photos", "size"),
    ):  # fmt: skip
        op.drop_column(table, column)
    op.drop_table("annotations")
