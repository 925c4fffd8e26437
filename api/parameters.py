"""Parameters that several routes have."""

from typing import Annotated

from fastapi import Path, Query

from foldtune.knobs import ModelName

PathModel = Annotated[ModelName, Path()]
# Of lists: how many items at most, and where the page before ended (``api.cursors``).
Limit = Annotated[int, Query(ge=1, le=200)]
Cursor = Annotated[str | None, Query(max_length=1000)]
