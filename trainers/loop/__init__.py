"""The training loop: batches, loss, optimizer, validation, checkpoints."""
