"""Structured logs: readable lines on a terminal, one JSON object a line elsewhere."""

import logging
import sys

import structlog

from infra.settings import Settings


def configure_logs(settings: Settings) -> None:
    """Send foldtune's log to stderr, at the level of the settings."""
    level = logging.getLevelNamesMapping()[settings.log_level]
    logging.basicConfig(level=level, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    for chatty in ("boto3", "botocore", "faust", "mode", "urllib3"):
        logging.getLogger(chatty).setLevel(max(level, logging.WARNING))
    # The Kafka clients warn of what they then mend, and whenever a thread has waited for the processor.
    for client in ("aiokafka", "kafka"):
        logging.getLogger(client).setLevel(max(level, logging.ERROR))
    terminal: list[structlog.typing.Processor] = [structlog.dev.ConsoleRenderer()]
    file: list[structlog.typing.Processor] = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *(terminal if sys.stderr.isatty() else file),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
