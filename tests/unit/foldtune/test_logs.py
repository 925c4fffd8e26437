"""The log as JSON Lines."""

import json
import subprocess
import sys

SCRIPT = """
import logging
import structlog
from aiohttp.http_exceptions import BadHttpMethod
from foldtune.logs import configure_logs

configure_logs()
with structlog.contextvars.bound_contextvars(request_id="r"):
    structlog.get_logger().info("exported", folder="../../x")
    logging.getLogger("faust.app").warning("a library's\\nwords")
try:
    raise ValueError("x")
except ValueError:
    structlog.get_logger().exception("failed")
    logging.getLogger("aiokafka").exception("failed too")
try:
    raise BadHttpMethod("\\xff")
except BadHttpMethod:
    logging.getLogger("aiohttp.server").exception("Error handling request from %s", "peer")
logging.getLogger("aiokafka").warning("chatter")
logging.getLogger("aiokafka.consumer.group_coordinator").info("chatter")
logging.getLogger("aiokafka.consumer.group_coordinator").warning("not recognized, rejoining")
"""


def test_every_line_including_those_of_libraries_is_json() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    ours, library, error, other, malformed, membership = [json.loads(line) for line in done.stderr.splitlines()]
    assert (ours["event"], ours["request_id"], ours["folder"], ours["level"]) == ("exported", "r", "../../x", "info")
    assert (library["event"], library["logger"], library["level"]) == ("a library's\nwords", "faust.app", "warning")
    assert library["request_id"] == "r"
    assert "ValueError: x" in error["exception"]
    assert "ValueError: x" in other["exception"]
    assert (malformed["event"][:15], malformed["level"]) == ("malformed call,", "warning")
    assert "exception" not in malformed
    assert membership["event"] == "not recognized, rejoining"
    assert all(line["timestamp"] for line in (ours, library, error, other))
