"""Kafka and an S3 server on this machine, without Docker or root."""
