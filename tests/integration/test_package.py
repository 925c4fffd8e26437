"""The CloudFormation template that ``make package`` makes of serverless.yml, and the bundle of the functions."""

import json
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import yaml
from filelock import FileLock

from api.access import RULES
from foldtune.object_keys import key_segment, model_prefix, request_segment
from foldtune.settings import Settings
from foldtune.testing import MemoryObjectStore
from infra.aws import lambda_archive
from infra.aws.http_api import GetPublisher, HttpApi
from launchers.batch.launcher import RETRY_STRATEGY, TAG
from tests.support import setting_names
from trainers.environment import ALLOCATOR_ENVIRONMENT

ROOT = lambda_archive.ROOT
ARCHIVE = ROOT / "build" / "functions.zip"
# Actions that IAM cannot restrict to a resource: network interfaces of functions, descriptions of jobs.
UNBOUND = {
    "batch:DescribeJobs",
    "batch:ListJobs",
    "ec2:AssignPrivateIpAddresses",
    "ec2:CreateNetworkInterface",
    "ec2:DeleteNetworkInterface",
    "ec2:DescribeNetworkInterfaces",
    "ec2:DescribeSecurityGroups",
    "ec2:DescribeSubnets",
    "ec2:DescribeVpcs",
    "ec2:UnassignPrivateIpAddresses",
    "ecr:GetAuthorizationToken",
}
# Required only by the Kafka event sources.
POLLERS = {"ec2:DescribeSecurityGroups", "ec2:DescribeVpcs"}
EVERY_FUNCTION = {
    "logs:CreateLogStream": {"log-group:/aws/lambda/foldtune-dev-NAME:*"},
    "logs:PutLogEvents": {"log-group:/aws/lambda/foldtune-dev-NAME:*"},
    "secretsmanager:GetSecretValue": {"SECRET", "KafkaCaSecretArn"},
    "kms:Decrypt": {"KafkaSecretKeyArn"},
    **{action: {"*"} for action in UNBOUND - POLLERS if action.startswith("ec2:")},
}
# Whose credentials at the brokers a function has.
SECRETS = {
    **dict.fromkeys(("launch", "batch-state"), "KafkaLauncherSecretArn"),
    **dict.fromkeys(("api", "schedule"), "KafkaApiSecretArn"),
}
# The metrics of AWS itself, with their dimensions.
AWS_METRICS = {
    ("AWS/ApiGateway", "5xx"): {"ApiId"},
    ("AWS/Lambda", "Errors"): {"FunctionName"},
    ("AWS/Lambda", "MaxOffsetLag"): {"EventSourceMappingUUID"},
    ("AWS/SQS", "ApproximateNumberOfMessagesVisible"): {"QueueName"},
}
DEAD_LETTER_QUEUE = {"sqs:SendMessage": {"UndeliveredEvents"}}
# The further actions of each function, with their resources.
FUNCTIONS: dict[str, dict[str, set[str]]] = {
    "launch": DEAD_LETTER_QUEUE
    | {
        "batch:SubmitJob": {"JobQueue", "job-definition/foldtune-dev", "job-definition/foldtune-dev:*"},
        "batch:TagResource": {"job/*"},
        "batch:TerminateJob": {"job/*"},
        "batch:DescribeJobs": {"*"},
        "batch:ListJobs": {"*"},
        "s3:GetObject": {
            *("Bucket/jobs/*", "Bucket/spend/*", "Bucket/statuses/*"),
            *("Bucket/models/*", "Bucket/base-models/*"),
        },
        "s3:PutObject": {"Bucket/jobs/*", "Bucket/spend/*", "Bucket/statuses/*"},
        "s3:ListBucket": {"Bucket"},
        **{action: {"*"} for action in POLLERS},
        "kafka:DescribeCluster": {"MskClusterArn"},
        "kafka:DescribeClusterV2": {"MskClusterArn"},
        "kafka:GetBootstrapBrokers": {"MskClusterArn"},
    },
    "batch-state": DEAD_LETTER_QUEUE
    | {
        "s3:GetObject": {"Bucket/jobs/*", "Bucket/spend/*"},
        "s3:PutObject": {"Bucket/jobs/*", "Bucket/spend/*"},
        "s3:ListBucket": {"Bucket"},
    },
    "api": {"s3:GetObject": {"Bucket/statuses/*", "Bucket/models/*"}, "s3:ListBucket": {"Bucket"}},
    "schedule": DEAD_LETTER_QUEUE,
}


def package(folder: Path, stage: str, *parameters: str) -> subprocess.CompletedProcess[str]:
    """``make package`` without a reinstallation."""
    command = ["make", "-o", ".venv/.installed", "package", f"STAGE={stage}", f"PACKAGE={folder}"]
    variables = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    # One test process at a time: it installs the Node packages, and collects all in one folder first.
    with FileLock(ROOT / ".venv" / "package.lock"):
        return subprocess.run(
            [*command, "PARAMETERS=" + " ".join(f"--param={parameter}" for parameter in parameters)],
            cwd=ROOT,
            env=variables,
            capture_output=True,
            text=True,
            check=False,
        )


def packaged(folder: Path, stage: str, *parameters: str) -> dict[str, Any]:
    """The linted template; the packaging must succeed."""
    done = package(folder, stage, *parameters)
    assert done.returncode == 0, done.stdout + done.stderr
    template: dict[str, Any] = json.loads((folder / "cloudformation-template-update-stack.json").read_text())
    return template


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return packaged(tmp_path_factory.mktemp("dev"), "dev")


@pytest.fixture(scope="module")
def resources(template: dict[str, Any]) -> dict[str, Any]:
    content: dict[str, Any] = template["Resources"]
    return content


def of_type(resources: dict[str, Any], kind: str) -> dict[str, Any]:
    return {name: value["Properties"] for name, value in resources.items() if value["Type"] == kind}


def flatten(value: Any) -> Iterator[Any]:
    """The items of a list or a single value, including both branches of each ``Fn::If``."""
    for item in value if isinstance(value, list) else [value]:
        if isinstance(item, list):
            yield from flatten(item)
        elif isinstance(item, dict) and "Fn::If" in item:
            yield from flatten(item["Fn::If"][1:])
        elif item != {"Ref": "AWS::NoValue"}:
            yield item


def resource_name(value: Any) -> str:
    """The name of a policy's resource: its logical id or the end of its ARN."""
    if isinstance(value, str):
        return value
    if "Ref" in value:
        return str(value["Ref"])
    if "Fn::GetAtt" in value:
        return str(value["Fn::GetAtt"][0])
    text = str(value["Fn::Sub"]).replace("${!", "${")
    return re.sub(r"^\$\{(\w+)\.Arn\}", r"\1", re.sub(r"^arn:.*\$\{AWS::AccountId\}:", "", text))


def statements(resources: dict[str, Any], role: str) -> list[dict[str, Any]]:
    """The statements of a role: those of its own policies and of the stack's managed policies."""
    properties = resources[role]["Properties"]
    documents = [policy["PolicyDocument"] for policy in flatten(properties.get("Policies", []))]
    shared = [arn["Ref"] for arn in flatten(properties.get("ManagedPolicyArns", [])) if "Ref" in arn]
    documents += [resources[name]["Properties"]["PolicyDocument"] for name in shared]
    attached = of_type(resources, "AWS::IAM::RolePolicy").values()
    documents += [policy["PolicyDocument"] for policy in attached if policy["RoleName"] == {"Ref": role}]
    return [statement for document in documents for statement in flatten(document["Statement"])]


def permissions(resources: dict[str, Any], role: str) -> dict[str, set[str]]:
    """The resources of each action that a role allows."""
    found: dict[str, set[str]] = {}
    for statement in statements(resources, role):
        assert statement["Effect"] == "Allow"
        for action in flatten(statement["Action"]):
            found.setdefault(action, set()).update(
                resource_name(resource) for resource in flatten(statement["Resource"])
            )
    return found


@pytest.mark.parametrize("name", FUNCTIONS)
def test_each_function_has_the_permissions_that_it_needs_and_no_others(resources: dict[str, Any], name: str) -> None:
    functions = of_type(resources, "AWS::Lambda::Function")
    (function,) = [value for value in functions.values() if value["FunctionName"] == f"foldtune-dev-{name}"]
    role = function["Role"]["Fn::GetAtt"][0]
    assert function["Environment"]["Variables"]["FOLDTUNE_KAFKA__SECRET_ARN"] == {"Ref": SECRETS[name]}
    wanted = {
        action: {resource.replace("NAME", name).replace("SECRET", SECRETS[name]) for resource in on}
        for action, on in (EVERY_FUNCTION | FUNCTIONS[name]).items()
    }
    assert permissions(resources, role) == wanted
    assert [other["Role"] for other in functions.values()].count(function["Role"]) == 1


def test_only_the_launch_function_submits_and_terminates_jobs(resources: dict[str, Any]) -> None:
    able = {
        role
        for role in of_type(resources, "AWS::IAM::Role")
        if any(action.startswith("batch:") for action in permissions(resources, role))
    }
    assert able == {"LaunchRole"}


class Identity:
    """A role with session tags, or another caller: what its policies, or the trust in a role, allow."""

    def __init__(self, statements: list[dict[str, Any]], **tags: str) -> None:
        self._statements, self._tags = statements, tags

    def may(self, action: str, resource: str = "", **context: str | list[str]) -> bool:
        """Whether a request is allowed, as IAM decides without any statement that denies.

        ``context`` are condition keys, ``aws:`` and ``s3:`` left out, a slash as two underscores.
        """
        return any(
            statement["Effect"] == "Allow"
            and action in flatten(statement["Action"])
            and ("Resource" not in statement or any(self._like(p, resource) for p in flatten(statement["Resource"])))
            and all(
                self._holds(operator, wanted, context.get(key.partition(":")[2].replace("/", "__")))
                for operator, keys in statement.get("Condition", {}).items()
                for key, wanted in keys.items()
            )
            for statement in self._statements
        )

    def _holds(self, operator: str, wanted: Any, found: str | list[str] | None) -> bool:
        values = [] if found is None else [found] if isinstance(found, str) else found
        matches = [any(self._like(pattern, value) for pattern in flatten(wanted)) for value in values]
        match operator:
            case "StringEquals" | "StringLike":
                return bool(matches) and all(matches)
            case "StringNotLike":
                return not any(matches)
            case "ForAllValues:StringEquals":
                return all(matches)
        raise NotImplementedError(operator)

    def _like(self, pattern: Any, value: str) -> bool:
        text = resource_name(pattern)
        for name, tag in self._tags.items():
            text = text.replace(f"${{aws:PrincipalTag/{name}}}", tag)
        # A variable without a value matches nothing.
        return "${aws:" not in text and re.fullmatch(wildcards(text), value) is not None


def wildcards(pattern: str) -> str:
    return "".join({"*": ".*", "?": "."}.get(character, re.escape(character)) for character in pattern)


def test_a_training_writes_only_what_is_of_its_own_model_and_request(resources: dict[str, Any]) -> None:
    """As IAM would decide: no account was asked."""
    request, other = request_segment("mine", "r-1"), request_segment("mine", "r-2")
    training = Identity(statements(resources, "TrainingRole"), model=key_segment("mine"), request=request)
    mine, another, longer = (model_prefix(model, "000001") for model in ("mine", "another", "mine-too"))
    allowed = {
        *(f"{mine}/runs/x/model.safetensors", f"{mine}/manifest.json", f"{mine.rpartition('/')[0]}/latest.json"),
        f"checkpoints/{request}/000001/state.safetensors",
    }
    denied = {
        *(f"{prefix}/{name}" for prefix in (another, longer) for name in ("runs/x/config.json", "manifest.json")),
        *(f"checkpoints/{other}/000001/state.safetensors", f"snapshots/{request}/manifest.json", "models/x"),
        *("jobs/x/job.json", "statuses/x.json", "spend/x/2026-01.json", "base-models/x/config.json"),
    }
    for action in ("s3:PutObject", "s3:AbortMultipartUpload"):
        assert {key for key in allowed | denied if training.may(action, f"Bucket/{key}")} == allowed
    deletable = {f"{mine}/runs/x/model.safetensors", f"checkpoints/{request}/000001/state.safetensors"}
    assert {key for key in allowed | denied if training.may("s3:DeleteObject", f"Bucket/{key}")} == deletable
    snapshots = {f"snapshots/{segment}/manifest.json" for segment in (request, other)}
    assert [key for key in snapshots if training.may("s3:GetObject", f"Bucket/{key}")] == [
        f"snapshots/{request}/manifest.json"
    ]
    for key in ("base-models/x/config.json", "general-questions/own.json"):
        assert training.may("s3:GetObject", f"Bucket/{key}")
        # Without it, S3 answers 403 instead of 404 for a missing object.
        assert training.may("s3:ListBucket", "Bucket", prefix=key)
    assert training.may("s3:ListBucket", "Bucket", prefix=f"{mine}/runs/")
    assert not training.may("s3:ListBucket", "Bucket", prefix=f"checkpoints/{other}/")
    assert not training.may("s3:ListBucket", "Bucket", prefix="")
    untagged = Identity(statements(resources, "TrainingRole"))
    assert not any(untagged.may("s3:PutObject", f"Bucket/{key}") for key in allowed | denied)


def test_a_trainings_container_can_only_assume_that_role_with_both_tags(resources: dict[str, Any]) -> None:
    container = Identity(statements(resources, "JobRole"))
    assert container.may("sts:AssumeRole", "TrainingRole")
    assert container.may("s3:GetObject", "Bucket/jobs/x/job.json")
    # Secrets are readable only if the training reads its certificates itself.
    assert set(permissions(resources, "JobRole")) == {
        *("s3:GetObject", "s3:ListBucket", "sts:AssumeRole", "sts:TagSession"),
        *("secretsmanager:GetSecretValue", "kms:Decrypt"),
    }
    policies = resources["JobRole"]["Properties"]["ManagedPolicyArns"]
    assert policies == {"Fn::If": ["TrainingReadsSecrets", [{"Ref": "KafkaTrainerPolicy"}], {"Ref": "AWS::NoValue"}]}
    (trust,) = resources["TrainingRole"]["Properties"]["AssumeRolePolicyDocument"]["Statement"]
    assert trust["Principal"] == {"AWS": {"Fn::GetAtt": ["JobRole", "Arn"]}}
    trusted = Identity([trust])
    both = {"RequestTag__model": "mine-0", "RequestTag__request": "r-0"}
    for action in ("sts:AssumeRole", "sts:TagSession"):
        assert trusted.may(action, **both)
        for name in both:
            assert not trusted.may(action, **{key: value for key, value in both.items() if key != name})
            assert not trusted.may(action, **both | {name: ""})
            assert not trusted.may(action, **both | {name: "mine-0/../other-0"})
    variables = resources["JobDefinition"]["Properties"]["ContainerProperties"]["Environment"]
    assert {"Name": "FOLDTUNE_TRAINER__ROLE_ARN", "Value": {"Fn::GetAtt": ["TrainingRole", "Arn"]}} in variables


def test_only_jobs_of_this_stack_are_terminated(resources: dict[str, Any]) -> None:
    function, tag = Identity(statements(resources, "LaunchRole")), f"ResourceTag__{TAG}"
    definition = resources["JobDefinition"]["Properties"]["JobDefinitionName"]
    assert function.may("batch:TerminateJob", "job/x", **{tag: definition})
    assert not function.may("batch:TerminateJob", "job/x", **{tag: "foldtune-prod"})
    assert not function.may("batch:TerminateJob", "job/x")
    # The tag that the launcher gives to its jobs, and no other.
    variables = resources["LaunchLambdaFunction"]["Properties"]["Environment"]["Variables"]
    assert variables["FOLDTUNE_BATCH__JOB_DEFINITION"] == definition
    given = {f"RequestTag__{TAG}": definition, "TagKeys": [TAG]}
    assert function.may("batch:TagResource", "job/x", **given)
    assert not function.may("batch:TagResource", "job/x", **given | {"TagKeys": [TAG, "project"]})
    assert not function.may("batch:TagResource", "job/x", **given | {f"RequestTag__{TAG}": "foldtune-prod"})


def test_pods_of_the_api_read_models_alone(resources: dict[str, Any]) -> None:
    found = permissions(resources, "ApiPodRole")
    assert found == {"s3:GetObject": {"Bucket/models/*"}, "s3:ListBucket": {"Bucket"}}


def test_a_worker_has_access_only_to_snapshots(resources: dict[str, Any]) -> None:
    found = permissions(resources, "WorkerRole")
    assert set().union(*found.values()) == {"Bucket/snapshots/*", "Bucket"}


def test_wildcard_resources_are_used_only_where_unavoidable(resources: dict[str, Any]) -> None:
    for role in of_type(resources, "AWS::IAM::Role"):
        for action, on in permissions(resources, role).items():
            assert "*" not in action
            assert "*" not in on or action in UNBOUND, f"{role}: {action}"
    # osls adds no default role.
    assert "IamRoleLambdaExecution" not in resources


def test_objects_are_listed_only_below_readable_prefixes(resources: dict[str, Any]) -> None:
    for role in of_type(resources, "AWS::IAM::Role"):
        found = permissions(resources, role)
        for statement in statements(resources, role):
            if "s3:ListBucket" in flatten(statement["Action"]):
                prefixes = {f"Bucket/{prefix}" for prefix in statement["Condition"]["StringLike"]["s3:prefix"]}
                assert prefixes == found["s3:GetObject"], role


def test_kafka_event_sources_report_item_failures_and_have_a_dead_letter_queue(resources: dict[str, Any]) -> None:
    sources = of_type(resources, "AWS::Lambda::EventSourceMapping")
    topics = {(resources[name]["Condition"], resource_name(source["Topics"][0])) for name, source in sources.items()}
    assert topics == {
        (kind, f"${{KafkaTopicPrefix}}{topic}")
        for kind in ("SelfManagedKafka", "Msk")
        for topic in ("training-jobs", "fine-tune-status")
    }
    for source in sources.values():
        assert source["FunctionResponseTypes"] == ["ReportBatchItemFailures"]
        assert source["MaximumRetryAttempts"] == 100
        assert resource_name(source["DestinationConfig"]["OnFailure"]["Destination"]) == "UndeliveredEvents"
        assert source["ProvisionedPollerConfig"]["MinimumPollers"] == 1
        assert source["MaximumBatchingWindowInSeconds"] >= 1
        assert source["StartingPosition"] == "TRIM_HORIZON"
        # A new and a replaced mapping must not share a consumer group.
        assert "ConsumerGroupId" in json.dumps(source)
        # Each mapping has its own lag metric, or a stalled one of two would be hidden.
        assert source["MetricsConfig"] == {"Metrics": ["KafkaMetrics"]}
    watched = {
        resource_name(source)
        for alarm in of_type(resources, "AWS::CloudWatch::Alarm").values()
        for dimension in alarm.get("Dimensions", [])
        if dimension["Name"] == "EventSourceMappingUUID"
        for source in flatten(dimension["Value"])
    }
    assert watched == set(sources)


def test_eventbridge_targets_retry_and_have_a_dead_letter_queue(resources: dict[str, Any]) -> None:
    rules = of_type(resources, "AWS::Events::Rule")
    assert {rule["Name"] for rule in rules.values()} == {"foldtune-dev-batch-state", "foldtune-dev-schedule"}
    for rule in rules.values():
        (target,) = rule["Targets"]
        assert target["RetryPolicy"] == {"MaximumEventAgeInSeconds": 86400, "MaximumRetryAttempts": 185}
        assert resource_name(target["DeadLetterConfig"]["Arn"]) == "UndeliveredEvents"
    (pattern,) = [rule["EventPattern"] for rule in rules.values() if "EventPattern" in rule]
    assert pattern["detail"]["jobQueue"] == [{"Ref": "JobQueue"}]
    # EventBridge invokes functions asynchronously: Lambda itself must retry and keep failed events.
    for config in of_type(resources, "AWS::Lambda::EventInvokeConfig").values():
        assert config["MaximumRetryAttempts"] == 2
        assert resource_name(config["DestinationConfig"]["OnFailure"]["Destination"]) == "UndeliveredEvents"
    assert len(of_type(resources, "AWS::Lambda::EventInvokeConfig")) == 2


def test_the_schedule_is_disabled_by_default(resources: dict[str, Any], tmp_path: Path) -> None:
    def state(found: dict[str, Any]) -> str:
        (rule,) = [rule for rule in of_type(found, "AWS::Events::Rule").values() if "ScheduleExpression" in rule]
        return str(rule["State"])

    assert state(resources) == "DISABLED"
    assert state(packaged(tmp_path, "prod", "scheduleEnabled=true")["Resources"]) == "ENABLED"


def test_the_job_definition_retries_like_the_launcher(resources: dict[str, Any]) -> None:
    (job,) = of_type(resources, "AWS::Batch::JobDefinition").values()
    assert job["RetryStrategy"] == {
        "Attempts": {"Ref": "JobAttempts"},
        # Equal to the retry strategy that the launcher submits with each job.
        "EvaluateOnExit": [
            {f"{name[0].upper()}{name[1:]}": value for name, value in rule.items()} for rule in RETRY_STRATEGY
        ],
    }
    assert job["Timeout"] == {"AttemptDurationSeconds": {"Ref": "JobTimeoutSeconds"}}
    assert job["ResourceRetentionPolicy"] == {"SkipDeregisterOnUpdate": True}
    container = job["ContainerProperties"]
    assert container["Command"] == ["python", "-m", "trainers.job", "Ref::job_uri"]
    assert {"Type": "GPU", "Value": "1"} in container["ResourceRequirements"]
    assert container["LinuxParameters"]["SharedMemorySize"] == {"Ref": "JobSharedMemoryMebibytes"}
    assert container["User"] != "0"
    assert container["Privileged"] is False
    environment = {item["Name"]: item["Value"] for item in flatten(container["Environment"])}
    assert ALLOCATOR_ENVIRONMENT.items() <= environment.items()
    assert environment["FOLDTUNE_TRAINER"] == {"Ref": "TrainerSettings"}


def test_jobs_that_cannot_start_leave_the_queue(resources: dict[str, Any]) -> None:
    (queue,) = of_type(resources, "AWS::Batch::JobQueue").values()
    limits = {limit["Reason"]: limit["MaxTimeSeconds"] for limit in queue["JobStateTimeLimitActions"]}
    assert set(limits) == {
        "CAPACITY:INSUFFICIENT_INSTANCE_CAPACITY",
        "MISCONFIGURATION:COMPUTE_ENVIRONMENT_MAX_RESOURCE",
        "MISCONFIGURATION:JOB_RESOURCE_REQUIREMENT",
    }
    assert all(limit["Action"] == "CANCEL" for limit in queue["JobStateTimeLimitActions"])


def test_spot_instances_come_first_and_compute_scales_to_zero(resources: dict[str, Any]) -> None:
    environments = of_type(resources, "AWS::Batch::ComputeEnvironment")
    (queue,) = of_type(resources, "AWS::Batch::JobQueue").values()
    order = [resource_name(item["ComputeEnvironment"]) for item in queue["ComputeEnvironmentOrder"]]
    assert [environments[name]["ComputeResources"]["Type"] for name in order] == ["SPOT", "EC2"]
    for environment in environments.values():
        compute = environment["ComputeResources"]
        assert compute["MinvCpus"] == 0
        assert compute["Ec2Configuration"] == [{"ImageType": "ECS_AL2023_NVIDIA"}]
    (machine,) = of_type(resources, "AWS::EC2::LaunchTemplate").values()
    assert all(device["Ebs"]["Encrypted"] for device in machine["LaunchTemplateData"]["BlockDeviceMappings"])
    assert machine["LaunchTemplateData"]["MetadataOptions"]["HttpTokens"] == "required"


@pytest.mark.parametrize("stage", ["dev", "prod"])
def test_the_cost_limits_admit_the_longest_job(stage: str) -> None:
    params = yaml.load((ROOT / "serverless.yml").read_text(), Loader=_Loader)["params"]  # noqa: S506 - a safe loader
    values = params["default"] | params[stage]
    prices = json.loads(values["gpuHourlyPrices"])
    assert set(prices) == set(values["gpuInstanceTypes"].split(","))
    highest_cost = values["jobAttempts"] * values["jobTimeoutSeconds"] / 3600 * max(prices.values())
    assert highest_cost <= values["maxJobDollars"] <= values["maxMonthDollars"] <= values["budgetDollars"]
    assert values["spendAlarmDollars"] == 0.8 * values["maxMonthDollars"]
    # The workers set the time limit of each job.
    settings = (ROOT / "infra" / "kubernetes" / "base" / "foldtune.env").read_text()
    assert f"FOLDTUNE_TRAINER__MAX_DURATION=PT{values['jobTimeoutSeconds'] // 3600}H" in settings
    assert f"FOLDTUNE_TRAINER__MAX_ATTEMPTS={values['jobAttempts']}" in settings


def test_the_functions_have_the_instance_types_of_their_price_list(resources: dict[str, Any]) -> None:
    functions = of_type(resources, "AWS::Lambda::Function").values()
    given = [function["Environment"]["Variables"].get("FOLDTUNE_BATCH__INSTANCE_TYPES") for function in functions]
    texts = [value["Fn::Join"] for value in given if value]
    assert len(texts) == 2
    for nothing, (before, joined, after) in texts:
        between, types = joined["Fn::Join"]
        assert (nothing, types) == ("", {"Ref": "GpuInstanceTypes"})
        assert json.loads(before + between.join(["g6.xlarge", "g5.xlarge"]) + after) == ["g6.xlarge", "g5.xlarge"]


def test_storage_is_encrypted_versioned_and_requires_tls(resources: dict[str, Any]) -> None:
    bucket = resources["Bucket"]["Properties"]
    assert resources["Bucket"]["DeletionPolicy"] == "Retain"
    encryption = bucket["BucketEncryption"]["ServerSideEncryptionConfiguration"]
    assert encryption == [{"ServerSideEncryptionByDefault": {"SSEAlgorithm": "AES256"}}]
    assert bucket["VersioningConfiguration"] == {"Status": "Enabled"}
    assert all(bucket["PublicAccessBlockConfiguration"].values())
    assert len(bucket["PublicAccessBlockConfiguration"]) == 4
    for policy in ("BucketPolicy", "UndeliveredEventsPolicy"):
        denied = [s for s in resources[policy]["Properties"]["PolicyDocument"]["Statement"] if s["Effect"] == "Deny"]
        assert [s["Condition"] for s in denied] == [{"Bool": {"aws:SecureTransport": "false"}}]
        assert denied[0]["Principal"] == "*"
    (queue,) = of_type(resources, "AWS::SQS::Queue").values()
    assert queue["SqsManagedSseEnabled"] is True
    (repository,) = of_type(resources, "AWS::ECR::Repository").values()
    assert repository["EncryptionConfiguration"] == {"EncryptionType": "AES256"}
    assert repository["ImageTagMutability"] == "IMMUTABLE"


def test_temporary_objects_and_logs_expire(resources: dict[str, Any]) -> None:
    rules = {rule["Id"]: rule for rule in resources["Bucket"]["Properties"]["LifecycleConfiguration"]["Rules"]}
    assert rules["incomplete-uploads"]["AbortIncompleteMultipartUpload"] == {"DaysAfterInitiation": 2}
    assert rules["snapshots"]["ExpirationInDays"] == {"Ref": "SnapshotDays"}
    assert rules["checkpoints"]["Prefix"] == "checkpoints/"
    # Models and the records of jobs do not expire.
    assert {rule["Prefix"] for rule in rules.values() if "ExpirationInDays" in rule} == {"snapshots/", "checkpoints/"}
    groups = of_type(resources, "AWS::Logs::LogGroup")
    assert len(groups) == 6
    assert all(group["RetentionInDays"] == 14 for group in groups.values())


def unconnected() -> AbstractContextManager[GetPublisher]:
    raise AssertionError


def test_the_api_requires_a_token_and_throttles(resources: dict[str, Any]) -> None:
    routes = of_type(resources, "AWS::ApiGatewayV2::Route")
    keys = {route["RouteKey"].replace("+}", "}") for route in routes.values()}
    answered = HttpApi(Settings(), MemoryObjectStore(), unconnected).routes
    assert answered <= set(RULES)
    # What is to be had in a cluster only is said so.
    assert keys == answered | {"$default"}
    assert all(route["AuthorizationType"] == "JWT" for route in routes.values())
    (authorizer,) = of_type(resources, "AWS::ApiGatewayV2::Authorizer").values()
    assert authorizer["JwtConfiguration"] == {"Issuer": {"Ref": "JwtIssuer"}, "Audience": [{"Ref": "JwtAudience"}]}
    (stage,) = of_type(resources, "AWS::ApiGatewayV2::Stage").values()
    assert stage["DefaultRouteSettings"]["ThrottlingRateLimit"] == 10


def test_every_alarm_watches_an_existing_metric(resources: dict[str, Any]) -> None:
    own = {
        (transformation["MetricNamespace"], transformation["MetricName"])
        for metric_filter in of_type(resources, "AWS::Logs::MetricFilter").values()
        for transformation in metric_filter["MetricTransformations"]
    }
    for name, alarm in of_type(resources, "AWS::CloudWatch::Alarm").items():
        metrics = [item["MetricStat"]["Metric"] for item in alarm.get("Metrics", []) if "MetricStat" in item] or [alarm]
        for metric in metrics:
            key = (metric["Namespace"], metric["MetricName"])
            assert key in own or key in AWS_METRICS, name
            assert {dimension["Name"] for dimension in metric.get("Dimensions", [])} == AWS_METRICS.get(key, set()), (
                name
            )
        for expression in (item["Expression"] for item in alarm.get("Metrics", []) if "Expression" in item):
            ids = {item["Id"] for item in alarm["Metrics"] if "MetricStat" in item}
            assert set(re.findall(r"FILL\((\w+), 0\)", expression)) == ids
            assert len(re.findall(r"\b[a-z]+\b", expression)) == len(ids)


def test_every_alarm_notifies_and_has_a_runbook(resources: dict[str, Any]) -> None:
    alarms = of_type(resources, "AWS::CloudWatch::Alarm")
    assert all(alarm["AlarmActions"] == [{"Ref": "Alarms"}] for alarm in alarms.values())
    runbooks = set(re.findall(r"^### `([a-z-]+)`", (ROOT / "docs" / "operations.md").read_text(), re.MULTILINE))
    assert {alarm["AlarmName"].removeprefix("foldtune-dev-") for alarm in alarms.values()} | {"budget"} <= runbooks
    json.loads(
        re.sub(
            r"\$\{[^}]+\}",
            "x",
            of_type(resources, "AWS::CloudWatch::Dashboard")["Dashboard"]["DashboardBody"]["Fn::Sub"],
        )
    )
    budget = resources["Budget"]["Properties"]
    assert budget["Budget"]["CostFilters"]["TagKeyValue"] == [{"Fn::Join": ["$", ["user:stage", "dev"]]}]
    for notification in budget["NotificationsWithSubscribers"]:
        assert notification["Subscribers"] == [{"SubscriptionType": "SNS", "Address": {"Ref": "Alarms"}}]
    for subscription in resources["Alarms"]["Properties"]["Subscription"]:
        assert subscription == {"Protocol": "email", "Endpoint": {"Ref": "AlarmEmail"}}


def test_every_variable_is_a_setting(resources: dict[str, Any]) -> None:
    names = {
        name
        for function in of_type(resources, "AWS::Lambda::Function").values()
        for name in function["Environment"]["Variables"]
    }
    (job,) = of_type(resources, "AWS::Batch::JobDefinition").values()
    container = job["ContainerProperties"]
    names |= {item["Name"] for item in flatten([*container["Environment"], container["Secrets"]])}
    known = setting_names()
    assert {name for name in names if name.startswith("FOLDTUNE_")} <= known
    assert {"FOLDTUNE_KAFKA__BOOTSTRAP_SERVERS", "FOLDTUNE_S3__BUCKET"} <= names


def test_every_parameter_has_bounds_that_its_default_satisfies(template: dict[str, Any]) -> None:
    # CloudFormation itself validates VpcId and SubnetIds.
    free = {"JwtAudience", "VpcId", "SubnetIds"}
    for name, parameter in template["Parameters"].items():
        values = str(parameter["Default"]).split(",") if "List" in parameter["Type"] else [str(parameter["Default"])]
        for value in values:
            if pattern := parameter.get("AllowedPattern"):
                assert re.fullmatch(pattern, value), name
            if choices := parameter.get("AllowedValues"):
                assert value in choices, name
            if parameter["Type"] == "Number":
                assert parameter["MinValue"] <= float(value) <= parameter.get("MaxValue", float("inf")), name
        bounds = {"AllowedPattern", "AllowedValues", "MinValue"} & set(parameter)
        assert bounds or name in free, name
    for name in ("GpuHourlyPrices", "ScheduleModels"):
        json.loads(template["Parameters"][name]["Default"])


@pytest.mark.parametrize(
    ("parameter", "where"),
    [
        pytest.param("vpcId=mine", "VpcId", marks=pytest.mark.matrix),
        ("kafkaBootstrapServers=kafka", "KafkaBootstrapServers"),
        pytest.param("trainerImageTag=latest", "TrainerImageTag", marks=pytest.mark.matrix),
        pytest.param("kafkaAuthentication=none", "KafkaAuthentication", marks=pytest.mark.matrix),
        pytest.param("alarmEmail=nobody", "AlarmEmail", marks=pytest.mark.matrix),
        pytest.param("logLevel=WARNING", "LogLevel", marks=pytest.mark.matrix),
    ],
)
def test_an_invalid_parameter_is_refused(tmp_path: Path, parameter: str, where: str) -> None:
    done = package(tmp_path, "dev", parameter)
    assert done.returncode != 0
    lines = (tmp_path / "cloudformation-template-update-stack.json").read_text().splitlines()
    line_numbers = {int(number) for number in re.findall(r"template-update-stack\.json:(\d+):", done.stdout)}
    reported = {
        next(line for line in reversed(lines[:number]) if re.match(r' {4}"\w+": \{', line)) for number in line_numbers
    }
    assert f'    "{where}": {{' in reported, done.stdout


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        (["gpuInstanceTypes=g6.xlarge,p5.48xlarge"], "has none for p5.48xlarge"),
        (["scheduleModels=[support]"], "ScheduleModels: "),
        (["kafkaKind=msk", "kafkaAuthentication=scram-sha-256"], "KafkaAuthentication should be scram-sha-512 or mtls"),
        (["subnetIds=subnet-00000000000000000"], "SubnetIds: "),
    ],
)
def test_inconsistent_parameters_are_refused(tmp_path: Path, parameters: list[str], words: str) -> None:
    done = package(tmp_path, "dev", *parameters)
    assert done.returncode != 0
    assert words in done.stdout + done.stderr
    assert not list(tmp_path.glob("*.json"))


def test_msk_is_selected_by_a_parameter(tmp_path: Path) -> None:
    template = packaged(tmp_path, "prod", "kafkaKind=msk", "kafkaAuthentication=mtls")
    assert template["Parameters"]["KafkaKind"]["Default"] == "msk"
    assert template["Conditions"]["Msk"] == {"Fn::Equals": [{"Ref": "KafkaKind"}, "msk"]}


def test_the_bundle_is_small_and_without_training_packages(resources: dict[str, Any]) -> None:
    with zipfile.ZipFile(ARCHIVE) as archive:
        names = archive.namelist()
        unzipped = sum(item.file_size for item in archive.infolist())
        headers = {name: archive.read(name)[:20] for name in names if name.endswith(".so")}
    tops = {name.split("/")[0] for name in names}
    assert not {"torch", "faust", "mode", "transformers", "pyarrow", "numpy", "rocksdict", "aiohttp"} & tops
    assert {"boto3", "kafka", "pydantic", *lambda_archive.PACKAGES} <= tops
    # The bundle is rebuilt when one of these modules changes.
    assert {path.relative_to(ROOT).as_posix() for path in lambda_archive.modules()} <= set(names)
    # Lambda's limits.
    assert ARCHIVE.stat().st_size < 50_000_000
    assert unzipped < 250_000_000
    # Compiled for the architecture and Python version of serverless.yml.
    functions = of_type(resources, "AWS::Lambda::Function").values()
    assert {(function["Runtime"], *function["Architectures"]) for function in functions} == {("python3.13", "arm64")}
    assert headers
    for name, header in headers.items():
        assert ".cpython-313-aarch64-linux-gnu" in name
        assert header[:4] == b"\x7fELF"
        assert int.from_bytes(header[18:20], "little") == 183, name


def test_the_handlers_need_nothing_but_the_bundle(resources: dict[str, Any], tmp_path: Path) -> None:
    lambda_archive.install(tmp_path, python=f"{sys.version_info.major}.{sys.version_info.minor}", platform=None)
    wanted = sorted(function["Handler"] for function in of_type(resources, "AWS::Lambda::Function").values())
    assert wanted == [f"infra.aws.handlers.{name}" for name in ("api", "batch_state", "launch", "schedule")]
    program = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import infra.aws.handlers as h; "
        "print(h.__file__, *(callable(getattr(h, n)) for n in ('api', 'batch_state', 'launch', 'schedule')), "
        "sorted({'torch', 'faust', 'pyarrow', 'psutil'} & set(sys.modules)))"
    )
    # Isolated from the packages of this environment.
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.stdout.split(maxsplit=1) == [f"{tmp_path}/infra/aws/handlers.py", "True True True True []\n"], (
        done.stderr
    )


def test_the_lock_file_names_no_registry() -> None:
    lock = json.loads((ROOT / "package-lock.json").read_text())
    packages = [value for name, value in lock["packages"].items() if name]
    assert packages
    assert all("resolved" not in value and value["integrity"].startswith("sha512-") for value in packages)


class _Loader(yaml.SafeLoader):  # type: ignore[misc] # yaml has no types
    """Parses CloudFormation's short-form tags to None."""


_Loader.add_multi_constructor("!", lambda *_: None)
