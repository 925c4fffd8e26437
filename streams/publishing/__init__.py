"""What a worker publishes: events, acknowledged, and dead letters with their replay."""
