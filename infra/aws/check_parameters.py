"""Checks the parameters of a deployment before it is packaged: ``python -m infra.aws.check_parameters``.

osls (``infra/aws/bundle.js``) passes them on standard input, as a JSON object with the names of
``infra/aws/parameters.yml``. CloudFormation and cfn-lint check each parameter by itself; checked here is what they
cannot see: the content of JSON values, the length of lists, and combinations of parameters.
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
from foldtune.settings import BatchSettings, TrainerSettings


def _split_commas(value: Any) -> Any:
    return value.split(",") if isinstance(value, str) else value


_List = Annotated[tuple[str, ...], BeforeValidator(_split_commas)]


class Parameters(BaseModel):
    """The parameters that are checked; others are ignored."""

    model_config = ConfigDict(extra="ignore", frozen=True, alias_generator=to_pascal)

    # The event sources use the first two.
    subnet_ids: Annotated[_List, Field(min_length=2)]
    kafka_kind: str
    kafka_authentication: str
    gpu_instance_types: _List
    gpu_hourly_prices: Json[dict[str, PositiveFloat]]
    trainer_settings: Json[TrainerSettings]
    schedule_models: Json[tuple[ModelName, ...]]

    @model_validator(mode="after")
    def _check_combinations(self) -> Self:
        if (self.kafka_kind, self.kafka_authentication) == ("msk", "scram-sha-256"):
            msg = "KafkaAuthentication should be scram-sha-512 or mtls where KafkaKind is msk"
            raise ValueError(msg)
        try:
            BatchSettings(instance_types=self.gpu_instance_types, hourly_prices=self.gpu_hourly_prices)
        except ValidationError as error:
            msg = f"GpuHourlyPrices: {'; '.join(reasons_of(error))}"
            raise ValueError(msg) from error
        return self


def parameter_errors(values: str | bytes) -> tuple[str, ...]:
    """One line per invalid parameter, by its name; empty if all are valid."""
    try:
        Parameters.model_validate_json(values)
    except ValidationError as error:
        return reasons_of(error, _parameter_name)
    return ()


def _parameter_name(location: Location) -> str:
    return ".".join(map(str, location)) or "parameters"


if __name__ == "__main__":
    sys.exit("\n".join(parameter_errors(sys.stdin.buffer.read())) or 0)
