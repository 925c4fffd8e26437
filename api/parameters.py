"""Parameters that several routes have."""

from typing import Annotated

from fastapi import Header, Path, Query

from foldtune.knobs import ModelName

PathModel = Annotated[ModelName, Path()]
PathVersion = Annotated[str, Path(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}$")]
# Of lists: how many items at most, and where the page before ended (``api.cursors``).
Limit = Annotated[int, Query(ge=1, le=200)]
Cursor = Annotated[str | None, Query(max_length=1000)]
# An answer that has this entity tag need not be sent again.
IfNoneMatch = Annotated[str | None, Header()]
