"""What starts a training job: one contract, a local subprocess, and a fake. Nothing in here imports torch."""
