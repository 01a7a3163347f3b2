"""The first tables"""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade():
    op.create_table(
        "individuals",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String().with_variant(sa.String(collation="C"), "postgresql"), nullable=False),
        sa.Column("species", sa.String().with_variant(sa.String(collation="C"), "postgresql"), nullable=False),
        sa.Column("active", sa.Boolean(), nullable=False),
        sa.Column("merged_into_id", sa.Integer(), nullable=True),
        sa.Column("created_at", sa.String().with_variant(sa.String(collation="C"), "postgresql"), nullable=False),
        sa.ForeignKeyConstraint(["merged_into_id"], ["individuals.id"], name=op.f("fk_individuals_merged_into_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_individuals")),
        sa.UniqueConstraint("name", name=op.f("uq_individuals_name")),
    )
    with op.batch_alter_table("individuals", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_individuals_species"), ["species"], unique=False)

    op.create_table(
        "models",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("fingerprint", sa.String().with_variant(sa.String(collation="C"), "postgresql"), nullable=False),
        sa.Column("name", sa.String().with_variant(sa.String(collation="C"), "postgresql"), nullable=False),
        sa.Column("width", sa.Integer(), nullable=False),
        sa.Column("settings", sa.JSON(), nullable=False),
        sa.Column("calibration", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("created_at", sa.String().with_variant(sa.String(collation="C"), "postgresql"), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_models")),
        sa.UniqueConstraint("fingerprint", name=op.f("uq_models_fingerprint")),
    )
    op.create_table(
        "tokens",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String().with_variant(sa.String(collation="C"), "postgresql"), nullable=False),
        sa.Column("role", sa.String().with_variant(sa.String(collation="C"), "postgresql"), nullable=False),
        sa.Column("digest", sa.String().with_variant(sa.String(collation="C"), "postgresql"), nullable=False),
        sa.Column("created_at", sa.String().with_variant(sa.String(collation="C"), "postgresql"), nullable=False),
        sa.Column("revoked_at", sa.String().with_variant(sa.String(collation="C"), "postgresql"), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_tokens")),
        sa.UniqueConstraint("digest", name=op.f("uq_tokens_digest")),
    )
    op.create_table(
        "encounters",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String().with_variant(sa.String(collation="C"), "postgresql"), nullable=False),
        sa.Column("date", sa.String().with_variant(sa.String(collation="C"), "postgresql"), nullable=False),
        sa.Column("place", sa.String().with_variant(sa.String(collation="C"), "postgresql"), nullable=False),
        sa.Column("latitude", sa.Float(), nullable=True),
        sa.Column("longitude", sa.Float(), nullable=True),
        sa.Column("species", sa.String().with_variant(sa.String(collation="C"), "postgresql"), nullable=False),
        sa.Column("state", sa.String().with_variant(sa.String(collation="C"), "postgresql"), nullable=False),
        sa.Column("individual_id", sa.Integer(), nullable=True),
        sa.Column("given", sa.Boolean(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.String().with_variant(sa.String(collation="C"), "postgresql"), nullable=False),
        sa.Column("decided_by", sa.String().with_variant(sa.String(collation="C"), "postgresql"), nullable=False),
        sa.Column("decided_at", sa.String().with_variant(sa.String(collation="C"), "postgresql"), nullable=False),
        sa.ForeignKeyConstraint(["individual_id"], ["individuals.id"], name=op.f("fk_encounters_individual_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_encounters")),
        sa.UniqueConstraint("name", name=op.f("uq_encounters_name")),
    )
    with op.batch_alter_table("encounters", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_encounters_date"), ["date"], unique=False)
        batch_op.create_index(batch_op.f("ix_encounters_individual_id"), ["individual_id"], unique=False)
        batch_op.create_index(batch_op.f("ix_encounters_state"), ["state"], unique=False)

    op.create_table(
        "answers",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("encounter_id", sa.Integer(), nullable=False),
        sa.Column("model_id", sa.Integer(), nullable=False),
        sa.Column("at", sa.String().with_variant(sa.String(collation="C"), "postgresql"), nullable=False),
        sa.Column("who", sa.String().with_variant(sa.String(collation="C"), "postgresql"), nullable=False),
        sa.Column("filters", sa.JSON(), nullable=False),
        sa.Column("content", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(["encounter_id"], ["encounters.id"], name=op.f("fk_answers_encounter_id")),
        sa.ForeignKeyConstraint(["model_id"], ["models.id"], name=op.f("fk_answers_model_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_answers")),
    )
    with op.batch_alter_table("answers", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_answers_encounter_id"), ["encounter_id"], unique=False)

    op.create_table(
        "photos",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("encounter_id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String().with_variant(sa.String(collation="C"), "postgresql"), nullable=False),
        sa.Column("path", sa.String().with_variant(sa.String(collation="C"), "postgresql"), nullable=False),
        sa.Column("kept", sa.Boolean(), nullable=False),
        sa.Column("sha256", sa.String().with_variant(sa.String(collation="C"), "postgresql"), nullable=False),
        sa.Column("width", sa.Integer(), nullable=False),
        sa.Column("height", sa.Integer(), nullable=False),
        sa.Column("side", sa.String().with_variant(sa.String(collation="C"), "postgresql"), nullable=False),
        sa.Column("taken", sa.String().with_variant(sa.String(collation="C"), "postgresql"), nullable=False),
        sa.Column("added_at", sa.String().with_variant(sa.String(collation="C"), "postgresql"), nullable=False),
        sa.ForeignKeyConstraint(["encounter_id"], ["encounters.id"], name=op.f("fk_photos_encounter_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_photos")),
    )
    with op.batch_alter_table("photos", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_photos_encounter_id"), ["encounter_id"], unique=False)
        batch_op.create_index(batch_op.f("ix_photos_sha256"), ["sha256"], unique=False)

    op.create_table(
        "crops",
        sa.Column("photo_id", sa.Integer(), nullable=False),
        sa.Column("source", sa.String().with_variant(sa.String(collation="C"), "postgresql"), nullable=False),
        sa.Column("x0", sa.Float(), nullable=True),
        sa.Column("y0", sa.Float(), nullable=True),
        sa.Column("x1", sa.Float(), nullable=True),
        sa.Column("y1", sa.Float(), nullable=True),
        sa.Column("frame_width", sa.Float(), nullable=True),
        sa.Column("frame_height", sa.Float(), nullable=True),
        sa.ForeignKeyConstraint(["photo_id"], ["photos.id"], name=op.f("fk_crops_photo_id")),
        sa.PrimaryKeyConstraint("photo_id", name=op.f("pk_crops")),
    )
    op.create_table(
        "decisions",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("at", sa.String().with_variant(sa.String(collation="C"), "postgresql"), nullable=False),
        sa.Column("who", sa.String().with_variant(sa.String(collation="C"), "postgresql"), nullable=False),
        sa.Column("kind", sa.String().with_variant(sa.String(collation="C"), "postgresql"), nullable=False),
        sa.Column("encounter_id", sa.Integer(), nullable=True),
        sa.Column("individual_id", sa.Integer(), nullable=True),
        sa.Column("other_id", sa.Integer(), nullable=True),
        sa.Column("answer_id", sa.Integer(), nullable=True),
        sa.Column("rank", sa.Integer(), nullable=True),
        sa.Column("chance", sa.Float(), nullable=True),
        sa.Column("note", sa.String().with_variant(sa.String(collation="C"), "postgresql"), nullable=False),
        sa.Column("before", sa.JSON(), nullable=False),
        sa.Column("undoes_id", sa.Integer(), nullable=True),
        sa.Column("undone_by_id", sa.Integer(), nullable=True),
        sa.ForeignKeyConstraint(["answer_id"], ["answers.id"], name=op.f("fk_decisions_answer_id")),
        sa.ForeignKeyConstraint(["encounter_id"], ["encounters.id"], name=op.f("fk_decisions_encounter_id")),
        sa.ForeignKeyConstraint(["individual_id"], ["individuals.id"], name=op.f("fk_decisions_individual_id")),
        sa.ForeignKeyConstraint(["other_id"], ["individuals.id"], name=op.f("fk_decisions_other_id")),
        sa.ForeignKeyConstraint(["undoes_id"], ["decisions.id"], name=op.f("fk_decisions_undoes_id")),
        sa.ForeignKeyConstraint(["undone_by_id"], ["decisions.id"], name=op.f("fk_decisions_undone_by_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_decisions")),
    )
    with op.batch_alter_table("decisions", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_decisions_encounter_id"), ["encounter_id"], unique=False)
        batch_op.create_index(batch_op.f("ix_decisions_individual_id"), ["individual_id"], unique=False)
        batch_op.create_index(batch_op.f("ix_decisions_other_id"), ["other_id"], unique=False)

    op.create_table(
        "embeddings",
        sa.Column("photo_id", sa.Integer(), nullable=False),
        sa.Column("model_id", sa.Integer(), nullable=False),
        sa.Column("vector", sa.LargeBinary(), nullable=False),
        sa.Column("trained", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(["model_id"], ["models.id"], name=op.f("fk_embeddings_model_id")),
        sa.ForeignKeyConstraint(["photo_id"], ["photos.id"], name=op.f("fk_embeddings_photo_id")),
        sa.PrimaryKeyConstraint("photo_id", "model_id", name=op.f("pk_embeddings")),
    )


def downgrade():
    op.drop_table("embeddings")
    with op.batch_alter_table("decisions", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_decisions_other_id"))
        batch_op.drop_index(batch_op.f("ix_decisions_individual_id"))
        batch_op.drop_index(batch_op.f("ix_decisions_encounter_id"))

    op.drop_table("decisions")
    op.drop_table("crops")
    with op.batch_alter_table("photos", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_photos_sha256"))
        batch_op.drop_index(batch_op.f("ix_photos_encounter_id"))

    op.drop_table("photos")
    with op.batch_alter_table("answers", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_answers_encounter_id"))

    op.drop_table("answers")
    with op.batch_alter_table("encounters", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_encounters_state"))
        batch_op.drop_index(batch_op.f("ix_encounters_individual_id"))
        batch_op.drop_index(batch_op.f("ix_encounters_date"))

    op.drop_table("encounters")
    op.drop_table("tokens")
    op.drop_table("models")
    with op.batch_alter_table("individuals", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_individuals_species"))

    op.drop_table("individuals")
