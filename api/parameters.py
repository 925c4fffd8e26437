"""Parameters that several routes have."""

from typing import Annotated

from fastapi import Header, Path, Query

from foldtune.knobs import ModelName

PathModel = Annotated[ModelName, Path()]
PathVersion = Annotated[str, Path(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}$")]
Limit = Annotated[int, Query(ge=1, le=200, description="How many items at most")]
Cursor = Annotated[str | None, Query(max_length=1000, description="The `next` of the page before")]
IfNoneMatch = Annotated[
    str | None, Header(description="Entity tag of an answer that is known: 304 as long as it is the same")
]
