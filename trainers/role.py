"""The role that a training assumes on AWS, so that it writes what is of its own model and request only.

All jobs of AWS Batch have one identity, whose rights cannot be of one model. What this bounds are our own code and the
job that it is given, not what else might run in the container, which could assume the role for another model.
"""

from typing import Any, cast

import boto3
import botocore.session
from botocore.credentials import AssumeRoleCredentialFetcher, DeferredRefreshableCredentials

from foldtune.events import FineTuneRequested
from foldtune.object_keys import key_segment, request_segment

# The most for a role that is assumed by a role; renewed before it is over.
_SESSION_SECONDS = 3600
_MAX_NAME = 64


def role_session(role_arn: str, request: FineTuneRequested, region: str) -> boto3.Session:
    """A session of the role, tagged with the segments of the request's object keys."""
    source = boto3.Session(region_name=region)
    segment = request_segment(request.model, request.request_id)
    tags = {"model": key_segment(request.model), "request": segment}
    fetcher = AssumeRoleCredentialFetcher(
        source._session.create_client,
        source.get_credentials(),
        role_arn,
        extra_args={
            "RoleSessionName": segment[-_MAX_NAME:],
            "DurationSeconds": _SESSION_SECONDS,
            "Tags": [{"Key": name, "Value": value} for name, value in tags.items()],
        },
    )
    session = botocore.session.Session()
    # It has no public way to set credentials that are renewed.
    cast(Any, session)._credentials = DeferredRefreshableCredentials(
        method="assume-role", refresh_using=fetcher.fetch_credentials
    )
    return boto3.Session(botocore_session=session, region_name=region)
