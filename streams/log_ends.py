"""Where the data topics end, asked over a connection of its own.

On the worker's own connection the question would stand in line behind a fetch that waits for new events: seconds.
"""

from aiokafka import AIOKafkaConsumer, TopicPartition

from infra.kafka import tls_context
from infra.settings import KafkaSettings
from streams.topics import DATA_TOPICS, Topic


class LogEnds:
    """Asks the brokers; connects when first asked."""

    def __init__(self, settings: KafkaSettings) -> None:
        self._settings = settings
        self._client: AIOKafkaConsumer | None = None

    async def of(self, partition: int) -> dict[Topic, int]:
        """The next offset of each data topic that holds anything at all.

        Raises:
            aiokafka.errors.KafkaError: the brokers did not answer in time.
        """
        client = await self._connected()
        prefix = self._settings.topic_prefix
        places = {topic: TopicPartition(topic.named(prefix), partition) for topic in DATA_TOPICS}
        first = await client.beginning_offsets(list(places.values()))
        ends = await client.end_offsets(list(places.values()))
        return {topic: ends[place] for topic, place in places.items() if ends[place] > first[place]}

    async def close(self) -> None:
        """Disconnect."""
        if self._client is not None:
            await self._client.stop()

    async def _connected(self) -> AIOKafkaConsumer:
        if self._client is None:
            kafka = self._settings
            secret = kafka.sasl_password
            client = AIOKafkaConsumer(
                bootstrap_servers=kafka.bootstrap_servers.split(","),
                security_protocol=kafka.security_protocol,
                ssl_context=tls_context(kafka) if kafka.security_protocol.endswith("SSL") else None,
                sasl_mechanism=kafka.sasl_mechanism,
                sasl_plain_username=kafka.sasl_username,
                sasl_plain_password=secret.get_secret_value() if secret else None,
            )
            await client.start()
            self._client = client
        return self._client
