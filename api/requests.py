"""What an HTTP caller asks for: the same in a cluster (``foldtune api``) and on AWS (``infra.aws.handlers``)."""

import json
import secrets

from api.errors import BodyError, UnknownFieldsError
from foldtune.events import FineTuneRequested, now

# As much as the coordinator takes.
MAX_BODY_BYTES = 256 * 1024
# What a caller may say; who asked, when and by which way is not the caller's to say.
_ASKED = frozenset({"request_id", "model", "base_model", "data", "dataset", "training", "weights", "seed"})
_SHOWN = 10


def request_of(body: bytes, caller: str) -> FineTuneRequested:
    """The request that a JSON body makes, by ``caller``; without an id in it, under one that is made up.

    Raises:
        BodyError, UnknownFieldsError: it is no JSON object, or says what is not its to say.
        pydantic.ValidationError: it is no valid request.
    """
    try:
        asked = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise BodyError("should be JSON") from error
    if not isinstance(asked, dict):
        raise BodyError("should be a JSON object")
    if unknown := sorted(set(asked) - _ASKED):
        raise UnknownFieldsError(*(name[:100] for name in unknown[:_SHOWN]))
    said = {"requested_at": now().isoformat(), "requested_by": caller[:256], "origin": "api"}
    named = {"request_id": f"api-{now():%Y%m%dT%H%M%S}-{secrets.token_hex(4)}"} | asked
    return FineTuneRequested.model_validate_json(json.dumps(named | said))
