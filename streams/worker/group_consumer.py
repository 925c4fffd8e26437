"""Faust's consumer, which joins the group and reads the changelogs, with a shorter wait for records."""

from typing import Any, cast

import faust
from aiokafka import AIOKafkaConsumer
from faust.transport.drivers.aiokafka import AIOKafkaConsumerThread, Consumer

from streams.partitions.broker_reader import FETCH_WAIT_MS


class _Thread(AIOKafkaConsumerThread):
    def _create_worker_consumer(self, transport: Any) -> AIOKafkaConsumer:
        consumer = super()._create_worker_consumer(transport)
        # Recovery asks for offsets three times; Faust lets a fetch wait for 1.5 s each time, in which a partition that
        # has moved stands still.
        cast(Any, consumer)._fetch_max_wait_ms = FETCH_WAIT_MS
        return consumer


class GroupConsumer(Consumer):
    """The ``Consumer`` of a transport."""

    def _new_consumer_thread(self) -> AIOKafkaConsumerThread:
        return _Thread(cast(Any, self), loop=self.loop, beacon=self.beacon)


def install(app: faust.App) -> None:
    """Have ``app`` use it; to be called before anything of the app has started."""
    cast(Any, app.transport).Consumer = GroupConsumer
