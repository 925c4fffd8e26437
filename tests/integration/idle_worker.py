"""The stream worker, as it is twenty minutes after it has last read from a changelog."""

from aiokafka.consumer.subscription_state import SubscriptionState

from foldtune.cli import main

SubscriptionState.fetcher_idle_time = property(lambda _: 1200.0)

# The export process imports this module too.
if __name__ == "__main__":
    main()
