"""Which objects are of one request."""

from collections.abc import Callable
from functools import partial

import pytest

from foldtune.object_keys import (
    attempts_prefix,
    cancelled_key,
    checkpoint_key,
    job_key,
    snapshot_file_key,
    snapshot_manifest_key,
)


@pytest.mark.parametrize(
    "key",
    [
        attempts_prefix,
        cancelled_key,
        job_key,
        snapshot_manifest_key,
        partial(checkpoint_key, version="v"),
        partial(snapshot_file_key, kind="examples", partition=0, sha256="0" * 64),
    ],
)
def test_two_models_requests_with_one_id_have_keys_of_their_own(key: Callable[[str, str], str]) -> None:
    assert len({key("a", "friday"), key("b", "friday"), key("a-friday", "friday"), key("a", "b-friday")}) == 4
