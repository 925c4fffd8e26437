"""One model of every setting, read from the environment (``FOLDTUNE_…``) and from ``foldtune.toml``.

Nested fields take a double underscore: ``FOLDTUNE_KAFKA__BOOTSTRAP_SERVERS``. The environment wins over the file.
"""

import json
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, SecretStr, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, TomlConfigSettingsSource

from foldtune.events import MAX_PASSAGES, ModelReference
from foldtune.knobs import DatasetKnobs, ModelName, TrainingKnobs, WeightKnobs

ENV_PREFIX = "FOLDTUNE_"
Port = Annotated[int, Field(ge=1, le=65535)]


class Section(BaseModel):
    """A group of settings; an unknown name in it is a mistake, not an extension."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class KafkaSettings(Section):
    """How every client reaches Kafka."""

    bootstrap_servers: str = "127.0.0.1:9092"
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = "PLAIN"
    sasl_username: str | None = None
    sasl_password: SecretStr | None = None
    ssl_cafile: Path | None = None
    ssl_certfile: Path | None = None
    ssl_keyfile: Path | None = None
    ssl_key_password: SecretStr | None = None
    # Secrets of AWS Secrets Manager that functions and trainings read: the ones that the event source is given.
    secret_arn: str | None = None
    ca_secret_arn: str | None = None
    topic_prefix: Annotated[str, Field(pattern=r"^[a-zA-Z0-9._-]{0,64}$")] = ""
    partitions: Annotated[int, Field(ge=1, le=1024)] = 4
    replication_factor: Annotated[int, Field(ge=1, le=16)] = 1


class S3Settings(Section):
    """Where objects go. Without keys, the usual AWS chain (role, profile, environment) is used."""

    bucket: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.-]{2,62}$")] = "foldtune"
    endpoint_url: str | None = None
    region: str = "us-east-1"
    access_key_id: str | None = None
    secret_access_key: SecretStr | None = None


class Bounds(Section):
    """What an event may hold; over a bound it goes to the dead letters, with the field and the bound named."""

    question_bytes: PositiveInt = 4 * 1024
    passage_bytes: PositiveInt = 64 * 1024
    event_bytes: Annotated[int, Field(ge=1024, le=512 * 1024)] = 512 * 1024
    passages_per_log: Annotated[int, Field(ge=1, le=MAX_PASSAGES)] = 100
    future: timedelta = timedelta(minutes=10)


class SetLimits(Section):
    """How far back a folder's rolling training set reaches; the oldest log goes first, whichever bound it breaks.

    Documents are the corpus, not examples: of each its newest version stays until it is deleted.
    """

    max_age: timedelta = timedelta(days=365)
    max_examples: PositiveInt = 100_000
    max_bytes: PositiveInt = 256 * 1024 * 1024


class Sets(SetLimits):
    """The limits of the training sets, with exceptions by folder."""

    folders: dict[str, SetLimits] = {}

    def of(self, folder_id: str) -> SetLimits:
        """A folder's limits."""
        return self.folders.get(folder_id, self)


class LabelWeights(Section):
    """How much a label is trusted, by what the user and the agent did; ``None`` takes no example of that kind."""

    corrected: Annotated[float, Field(gt=0, le=1)] = 1.0
    liked: Annotated[float, Field(gt=0, le=1)] = 1.0
    cited: Annotated[float, Field(gt=0, le=1)] | None = 0.6
    retrieved: Annotated[float, Field(gt=0, le=1)] | None = None
    retrieved_min_score: float = 0.0


class WorkerSettings(Section):
    """The stream worker."""

    app_id: Annotated[str, Field(pattern=r"^[a-zA-Z0-9._-]{1,64}$")] = "foldtune"
    # Named, a restarted worker takes its partitions back at once, without waiting for its old session to expire.
    instance_id: str | None = None
    data_dir: Path = Path(".foldtune/worker")
    session_timeout: timedelta = timedelta(seconds=30)
    # Segments are written per block of records: a larger block makes fewer, wider segments.
    block_records: Annotated[int, Field(ge=1, le=10_000)] = 5_000
    snapshot_timeout: timedelta = timedelta(minutes=15)
    catch_up_timeout: timedelta = timedelta(minutes=2)
    min_examples: PositiveInt = 20
    # Copies of each partition's state on other workers, which take it over without rebuilding it.
    standby_replicas: Annotated[int, Field(ge=0, le=16)] = 0
    # Where metrics and health are served; without a port nowhere, with 0 on any free one, which the log names.
    http_host: str = "127.0.0.1"
    http_port: Annotated[int, Field(ge=0, le=65535)] | None = None


class PolicyRule(Section):
    """Retrain ``model`` once its folders hold ``new_examples`` labelled logs that its last training did not see."""

    model: ModelName
    folders: tuple[str, ...] | None = None
    new_examples: PositiveInt = 1_000
    cooldown: timedelta = timedelta(hours=6)
    dataset: DatasetKnobs = DatasetKnobs()
    training: TrainingKnobs = TrainingKnobs()
    weights: WeightKnobs = WeightKnobs()


class PolicySettings(Section):
    """Automatic retraining; off while there are no rules."""

    rules: tuple[PolicyRule, ...] = ()
    interval: timedelta = timedelta(seconds=10)


class TrainerSettings(Section):
    """The training job and the launcher that starts it."""

    base_model: ModelReference = ModelReference(
        uri="hf://sentence-transformers/all-MiniLM-L6-v2", revision="1110a243fdf4706b3f48f1d95db1a4f5529b4d41"
    )
    # A file:// model is read only from below these folders: a request must not choose what is read on this machine.
    model_folders: tuple[Path, ...] = ()
    work_dir: Path = Path(".foldtune/jobs")
    max_duration: timedelta = timedelta(hours=12)
    max_attempts: Annotated[int, Field(ge=1, le=10)] = 2
    # What a training that is killed without warning has to do again; SIGTERM costs it no step.
    checkpoint_interval: timedelta = timedelta(minutes=10)
    # Also write the finished model as model.onnx; needs the extra ``onnx``.
    onnx: bool = False
    # Each training's curves, step by step, in a folder of its own below this one; needs the extra ``tensorboard``.
    tensorboard_dir: Path | None = None


class BatchSettings(Section):
    """AWS Batch, where it runs the trainings. Its region is that of the bucket."""

    job_queue: str = "foldtune"
    job_definition: str = "foldtune-trainer"
    log_group: str = "/aws/batch/job"
    # The instance types that a job may get, each with its price in US dollars an hour, On-Demand; the dearest price is
    # reckoned with.
    instance_types: tuple[str, ...] = ()
    hourly_prices: Annotated[dict[str, PositiveFloat], Field(min_length=1)] = {"g5.xlarge": 1.006}
    # What one job may cost at most, attempts by timeout by price; and all jobs of a model in one month (UTC).
    max_job_dollars: PositiveFloat = 30.0
    max_month_dollars: PositiveFloat = 300.0

    @model_validator(mode="after")
    def _priced(self) -> Self:
        if unpriced := sorted(set(self.instance_types) - set(self.hourly_prices)):
            msg = f"should have a price for each of instance_types, and has none for {', '.join(unpriced)}"
            raise ValueError(msg)
        return self


class ScheduleSettings(Section):
    """What the scheduled function asks for; when is the schedule's own affair."""

    models: tuple[ModelName, ...] = ()


class Settings(BaseSettings):
    """Everything that foldtune reads from its surroundings."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        env_nested_delimiter="__",
        toml_file="foldtune.toml",
        extra="forbid",
        frozen=True,
    )

    kafka: KafkaSettings = KafkaSettings()
    s3: S3Settings = S3Settings()
    bounds: Bounds = Bounds()
    sets: Sets = Sets()
    strengths: LabelWeights = LabelWeights()
    worker: WorkerSettings = WorkerSettings()
    policy: PolicySettings = PolicySettings()
    trainer: TrainerSettings = TrainerSettings()
    batch: BatchSettings = BatchSettings()
    schedule: ScheduleSettings = ScheduleSettings()
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments, then the environment, then the file: the nearer to the command, the stronger."""
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)


@cache
def load_settings() -> Settings:
    """The process's settings, read once.

    Raises:
        pydantic.ValidationError: a setting is unknown or out of its bounds; the message names it.
    """
    return Settings()


def settings_environment(settings: Settings) -> dict[str, str]:
    """The settings as the variables from which ``Settings()`` makes the same again; one JSON object a section."""
    return {f"{ENV_PREFIX}{name.upper()}": _text(getattr(settings, name)) for name in type(settings).model_fields}


def _text(value: object) -> str:
    if not isinstance(value, BaseModel):
        return str(value)
    secrets = {
        name: secret.get_secret_value()
        for name in type(value).model_fields
        if isinstance(secret := getattr(value, name), SecretStr)
    }
    return json.dumps(value.model_dump(mode="json", exclude_none=True) | secrets)
