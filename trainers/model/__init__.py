"""The encoder: loading a base model, tokens, pooling, and the split into frozen and trainable layers."""
