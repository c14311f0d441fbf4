"""Trains English spelling to phonemes with gru_jax, NNX and optax: see `scripts/train --help`."""
