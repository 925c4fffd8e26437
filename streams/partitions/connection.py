"""The connection to the brokers, as the options of aiokafka."""

import asyncio
from typing import Any

from aiokafka.abc import AbstractTokenProvider
from aiokafka.errors import KafkaConnectionError
from kafka.errors import KafkaError

from foldtune.kafka import client_options
from foldtune.settings import KafkaSettings
from foldtune.tokens import Tokens

TOKEN_PROVIDER = "sasl_oauth_token_provider"  # noqa: S105  the option's name


class _AsyncTokens(AbstractTokenProvider):  # type: ignore[misc]
    def __init__(self, tokens: Tokens) -> None:
        self._tokens = tokens

    async def token(self) -> str:
        try:
            return await asyncio.to_thread(self._tokens.token)
        except KafkaError as error:
            # aiokafka connects again after its own errors alone.
            raise KafkaConnectionError(str(error)) from error


def aiokafka_options(settings: KafkaSettings) -> dict[str, Any]:
    """Address and credentials of the brokers; raises like ``client_options``."""
    options = client_options(settings)
    if tokens := options.get(TOKEN_PROVIDER):
        options[TOKEN_PROVIDER] = _AsyncTokens(tokens)
    return options
