"""Checks the parameters of a deployment before it is packaged: ``python -m infra.aws.check_parameters``.

osls hands them over (``infra/aws/bundle.js``), by their names in ``infra/aws/parameters.yml``, as a JSON object on
standard input. Each by itself is checked by CloudFormation and cfn-lint. Here is what those cannot see: what is in a
JSON text, how long a list is, and whether two fit together.
"""

import sys
from typing import Annotated, Any, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    Json,
    PositiveFloat,
    ValidationError,
    model_validator,
)
from pydantic.alias_generators import to_pascal

from foldtune.knobs import ModelName
from foldtune.reasons import Location, reasons_of
from foldtune.settings import BatchSettings


def _listed(value: Any) -> Any:
    return value.split(",") if isinstance(value, str) else value


_List = Annotated[tuple[str, ...], BeforeValidator(_listed)]


class Parameters(BaseModel):
    """Those that are to be looked at; the others are ignored."""

    model_config = ConfigDict(extra="ignore", frozen=True, alias_generator=to_pascal)

    # The event sources name two.
    subnet_ids: Annotated[_List, Field(min_length=2)]
    kafka_kind: str
    kafka_authentication: str
    gpu_instance_types: _List
    gpu_hourly_prices: Json[dict[str, PositiveFloat]]
    schedule_models: Json[tuple[ModelName, ...]]

    @model_validator(mode="after")
    def _fit(self) -> Self:
        if (self.kafka_kind, self.kafka_authentication) == ("msk", "scram-sha-256"):
            msg = "KafkaAuthentication should be scram-sha-512 or mtls where KafkaKind is msk"
            raise ValueError(msg)
        try:
            BatchSettings(instance_types=self.gpu_instance_types, hourly_prices=self.gpu_hourly_prices)
        except ValidationError as error:
            msg = f"GpuHourlyPrices: {'; '.join(reasons_of(error))}"
            raise ValueError(msg) from error
        return self


def problems(values: str | bytes) -> tuple[str, ...]:
    """What is wrong with parameters, each by its name; empty where nothing is."""
    try:
        Parameters.model_validate_json(values)
    except ValidationError as error:
        return reasons_of(error, _named)
    return ()


def _named(location: Location) -> str:
    return ".".join(map(str, location)) or "parameters"


if __name__ == "__main__":
    sys.exit("\n".join(problems(sys.stdin.buffer.read())) or 0)
