"""The credentials at the brokers, as Faust takes them."""

import faust
from faust.types.auth import CredentialsT

from foldtune.settings import KafkaSettings
from streams.partitions.connection import TOKEN_PROVIDER, aiokafka_options


def faust_credentials(settings: KafkaSettings) -> CredentialsT | None:
    """The credentials, ``None`` without any; raises like ``client_options``."""
    options = aiokafka_options(settings)
    context = options.get("ssl_context")
    if tokens := options.get(TOKEN_PROVIDER):
        return faust.OAuthCredentials(oauth_cb=tokens, ssl_context=context)
    if "sasl_mechanism" in options:
        return faust.SASLCredentials(
            username=options["sasl_plain_username"],
            password=options["sasl_plain_password"],
            mechanism=options["sasl_mechanism"],
            ssl_context=context,
        )
    return faust.SSLCredentials(context) if context else None
