"""Options of the local servers."""

from pathlib import Path
from typing import Annotated

from pydantic import Field, PositiveInt

from foldtune.settings import Port, Section


class LocalOptions(Section):
    """Data folder, ports and sizes; a port of ``None`` is any free one."""

    data_dir: Path = Path(".foldtune/local")
    keep_data: bool = True
    kafka_port: Port | None = 9092
    s3_port: Port | None = 9000
    bucket: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.-]{2,62}$")] | None = "foldtune"
    # Not secret: the servers listen on the loopback interface only, and these guard against mistakes, not attackers.
    access_key: str = "foldtune"
    secret_key: str = "foldtune-local"  # noqa: S105
    partitions: PositiveInt = 4
    # More of the broker's properties; listeners are added to its own.
    kafka_settings: dict[str, str] = Field(default_factory=dict)
    kafka_heap_mib: Annotated[int, Field(ge=128)] = 512
    s3_heap_mib: Annotated[int, Field(ge=64)] = 256
    start_seconds: PositiveInt = 90
