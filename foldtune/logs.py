"""Structured logs: readable on a terminal, JSON Lines elsewhere."""

import logging
import sys

import structlog

from foldtune.settings import LogLevel


def configure_logs(log_level: LogLevel = "INFO") -> None:
    """Send the logs of foldtune and of libraries to stderr; called again, the last level counts."""
    level = logging.getLevelNamesMapping()[log_level]
    common: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    terminal: list[structlog.typing.Processor] = [structlog.dev.ConsoleRenderer()]
    file: list[structlog.typing.Processor] = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    renderers = terminal if sys.stderr.isatty() else file
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*common, structlog.stdlib.add_logger_name, structlog.stdlib.ExtraAdder()],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderers],
        )
    )
    logging.basicConfig(level=level, handlers=[handler], force=True)
    for library in ("boto3", "botocore", "faust", "httpx", "mode", "onnx_ir", "onnxscript", "urllib3"):
        logging.getLogger(library).setLevel(max(level, logging.WARNING))
    # The Kafka clients warn about errors that they recover from, and whenever a thread was starved of CPU.
    for client in ("aiokafka", "kafka"):
        logging.getLogger(client).setLevel(max(level, logging.ERROR))
    # But what happens to a member of a group is worth a line.
    logging.getLogger("aiokafka.consumer.group_coordinator").setLevel(max(level, logging.WARNING))
    # It warns of a record that was not acknowledged, with all that is in it; the caller logs the error.
    logging.getLogger("faust.topics").setLevel(max(level, logging.ERROR))
    logging.getLogger("aiohttp.server").addFilter(_malformed_call)
    structlog.configure(
        processors=[*common, *renderers],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )


def _malformed_call(record: logging.LogRecord) -> bool:
    """What is not HTTP is its sender's error, which aiohttp logs as one of the server, with a traceback."""
    kind = record.exc_info[0] if record.exc_info else None
    if kind and kind.__module__ == "aiohttp.http_exceptions":
        record.levelno, record.levelname, record.exc_info = logging.WARNING, "WARNING", None
        record.msg = f"malformed call, {kind.__name__}: {record.msg}"
    return True
