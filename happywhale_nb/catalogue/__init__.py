from ..core.errors import require

require("sqlalchemy", "alembic")
