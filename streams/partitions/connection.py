"""The connection to the brokers, as the options of aiokafka and of Faust."""

import asyncio
from typing import Any

import faust
from aiokafka.abc import AbstractTokenProvider
from aiokafka.errors import KafkaConnectionError
from faust.types.auth import CredentialsT
from kafka.errors import KafkaError

from foldtune.kafka import client_options
from foldtune.settings import KafkaSettings
from foldtune.tokens import Tokens

_PROVIDER = "sasl_oauth_token_provider"


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
    if tokens := options.get(_PROVIDER):
        options[_PROVIDER] = _AsyncTokens(tokens)
    return options


def faust_credentials(settings: KafkaSettings) -> CredentialsT | None:
    """The credentials, ``None`` without any; raises like ``client_options``."""
    options = aiokafka_options(settings)
    context = options.get("ssl_context")
    if tokens := options.get(_PROVIDER):
        return faust.OAuthCredentials(oauth_cb=tokens, ssl_context=context)
    if "sasl_mechanism" in options:
        return faust.SASLCredentials(
            username=options["sasl_plain_username"],
            password=options["sasl_plain_password"],
            mechanism=options["sasl_mechanism"],
            ssl_context=context,
        )
    return faust.SSLCredentials(context) if context else None
