"""The adapter for AWS Batch."""
