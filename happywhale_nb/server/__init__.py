from ..core.errors import require

require("fastapi", "uvicorn", "limits")
