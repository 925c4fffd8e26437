"""From a snapshot to training pairs: deduplication, split, hard and easy negatives."""
