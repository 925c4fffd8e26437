"""What is wrong with topics while a worker runs is told once, and shown until it is mended."""

import asyncio

from structlog.testing import capture_logs

from foldtune.errors import InvalidSettingsError, NoBrokerError
from foldtune.topic_admin import Misconfigured, TopicsFound
from streams.metrics import TOPIC_MISCONFIGURED
from streams.partitions.topic_watch import TopicWatch

COMPACTED = Misconfigured("t-logs", "cleanup.policy", "compact", "delete")
GROWN = Misconfigured("t-logs", "partitions", "8", "4")


def test_what_two_looks_in_a_row_have_found_is_logged_once_and_shown_until_it_is_mended() -> None:
    found: list[TopicsFound | Exception] = []

    def inspect() -> TopicsFound:
        if isinstance(found[0], Exception):
            raise found[0]
        return found[0]

    watch = TopicWatch(inspect, "t-")

    def shown(look: TopicsFound | Exception) -> tuple[list[str], float, float]:
        found[:] = [look]
        with capture_logs() as logs:
            asyncio.run(watch.look())
        told = [log["setting"] for log in logs if (log["event"], log["log_level"]) == ("topic misconfigured", "error")]
        cleanup, grown = (TOPIC_MISCONFIGURED.labels("logs", wrong.setting) for wrong in (COMPACTED, GROWN))
        return told, cleanup._value.get(), grown._value.get()

    ids = {"t-logs": "a"}
    assert shown(TopicsFound(ids, [COMPACTED])) == ([], 0, 0)
    assert shown(TopicsFound(ids, [COMPACTED, GROWN])) == (["cleanup.policy"], 1, 0)
    # The second: a certificate that is rotated halfway.
    for error in (NoBrokerError("b"), InvalidSettingsError("kafka.ssl_certfile"), ConnectionResetError()):
        assert shown(error) == ([], 1, 0)
    assert shown(TopicsFound({}, [COMPACTED, GROWN])) == (["partitions"], 1, 1)
    assert watch.ids == ids
    assert shown(TopicsFound({"t-logs": "b"}, [COMPACTED._replace(found="compact,delete")])) == ([], 0, 0)
    assert watch.ids == {"t-logs": "b"}
    assert shown(TopicsFound({}, [])) == ([], 0, 0)
