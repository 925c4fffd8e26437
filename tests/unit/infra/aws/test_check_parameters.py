"""Which parameters of a deployment are refused before it is packaged."""

import json
import subprocess
import sys
from typing import Any

import pytest
from pydantic import ValidationError

from foldtune.settings import Settings
from infra.aws.check_parameters import parameter_errors

GOOD = {
    "SubnetIds": "subnet-00000000000000000,subnet-00000000000000001",
    "KafkaKind": "self-managed",
    "KafkaAuthentication": "scram-sha-256",
    "GpuInstanceTypes": "g6.xlarge,g5.xlarge",
    "GpuHourlyPrices": '{"g6.xlarge": 0.805, "g5.xlarge": 1.006}',
    "TrainerSettings": '{"hourly_price": 1.006}',
    "ScheduleModels": '["support"]',
    "KafkaPartitions": 4,
}


def errors(**changes: Any) -> tuple[str, ...]:
    return parameter_errors(json.dumps(GOOD | changes))


def test_valid_parameters_pass() -> None:
    assert not errors()
    assert not errors(KafkaKind="msk", KafkaAuthentication="scram-sha-512")
    # A price of an unused type does no harm.
    assert not errors(GpuInstanceTypes="g5.xlarge")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"SubnetIds": "subnet-00000000000000000"}, "SubnetIds: "),
        ({"KafkaKind": "msk"}, "KafkaAuthentication should be scram-sha-512 or mtls where KafkaKind is msk"),
        ({"GpuInstanceTypes": "g6.xlarge,p5.48xlarge"}, "has none for p5.48xlarge"),
        ({"GpuHourlyPrices": "{}"}, "GpuHourlyPrices: "),
        ({"GpuHourlyPrices": "{'g6.xlarge': 1}"}, "GpuHourlyPrices: "),
        ({"GpuHourlyPrices": '{"g6.xlarge": 0.8, "g5.xlarge": 0}'}, "GpuHourlyPrices.g5.xlarge: "),
        ({"GpuHourlyPrices": '{"g6.xlarge": 0.8, "g5.xlarge": "dear"}'}, "GpuHourlyPrices.g5.xlarge: "),
        ({"TrainerSettings": "{'hourly_price': 1}"}, "TrainerSettings: "),
        ({"TrainerSettings": '{"hourly_price": 0}'}, "TrainerSettings.hourly_price: "),
        ({"TrainerSettings": '{"price": 1}'}, "TrainerSettings.price: "),
        ({"ScheduleModels": "[support]"}, "ScheduleModels: "),
        ({"ScheduleModels": '["Not A Name"]'}, "ScheduleModels.0: "),
    ],
)
def test_an_invalid_parameter_is_refused_by_its_name(changes: dict[str, Any], words: str) -> None:
    (error,) = errors(**changes)
    assert words in error


def test_functions_refuse_an_instance_type_without_a_price(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOLDTUNE_BATCH__HOURLY_PRICES", '{"g6.xlarge": 0.805}')
    monkeypatch.setenv("FOLDTUNE_BATCH__INSTANCE_TYPES", '["g6.xlarge"]')
    assert Settings().batch.instance_types == ("g6.xlarge",)
    monkeypatch.setenv("FOLDTUNE_BATCH__INSTANCE_TYPES", '["g6.xlarge","p5.48xlarge"]')
    with pytest.raises(ValidationError, match=r"has none for p5\.48xlarge"):
        Settings()


def test_a_training_has_the_settings_of_its_stack_and_the_role_that_is_set_by_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert Settings().trainer.hourly_price is None
    monkeypatch.setenv("FOLDTUNE_TRAINER", '{"hourly_price": 1.006, "role_arn": "another"}')
    monkeypatch.setenv("FOLDTUNE_TRAINER__ROLE_ARN", "arn:aws:iam::000000000000:role/training")
    trainer = Settings().trainer
    assert (trainer.hourly_price, trainer.role_arn) == (1.006, "arn:aws:iam::000000000000:role/training")


@pytest.mark.slow
def test_packaging_stops_at_an_invalid_parameter() -> None:
    command = [sys.executable, "-m", "infra.aws.check_parameters"]
    for values, code, message in ((GOOD, 0, ""), (GOOD | {"ScheduleModels": "["}, 1, "ScheduleModels: ")):
        done = subprocess.run(command, input=json.dumps(values), capture_output=True, text=True, check=False)
        assert done.returncode == code
        assert done.stderr.startswith(message)
