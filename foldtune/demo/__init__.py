"""A demonstration of the whole loop on one machine: real Kafka, real S3, an agent that is simulated."""
