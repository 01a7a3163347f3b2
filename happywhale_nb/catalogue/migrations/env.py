"""What Alembic runs: the scripts in `versions`, on the connection that `database.migrate` hands over."""

from alembic import context

from happywhale_nb.catalogue.schema import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    render_as_batch=True,  # SQLite cannot change a column in place
)
context.run_migrations()
