"""A speller: an encoder GRU reads a word's letters, a decoder GRU says its phonemes. And how well it does."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from published import END, GRAPHEMES, MOST_PHONEMES, PHONEMES, START, g2p_en

import gru_jax
from gru_jax import from_torch, stacked_step
from training.data import Batch, Word, spelled


class Speller(nnx.Module):
    """Letters in, logits of phonemes out.

    Args:
      embedding: features of a letter, and of a phoneme.
      hidden: H of both GRUs.
      layers: of both GRUs.
      dropout: of what enters the GRUs, of what leaves them, and between their layers.
      rngs: draws the parameters.
    """

    def __init__(self, embedding: int, hidden: int, layers: int, dropout: float, rngs: nnx.Rngs):
        between = dropout if layers > 1 else 0.0
        self.letters = nnx.Embed(len(GRAPHEMES), embedding, rngs=rngs)
        self.phonemes = nnx.Embed(len(PHONEMES), embedding, rngs=rngs)
        self.encoder = gru_jax.nnx.GRU(embedding, hidden, layers, dropout=between, rngs=rngs)
        self.decoder = gru_jax.nnx.GRU(embedding, hidden, layers, dropout=between, rngs=rngs)
        self.logits = nnx.Linear(hidden, len(PHONEMES), rngs=rngs)
        self.dropout = nnx.Dropout(dropout)

    def __call__(self, batch: Batch, *, deterministic: bool, rngs: nnx.Rngs | None = None) -> jax.Array:
        """Teacher forcing: the logits [P, N, phonemes] after each phoneme that was really said."""
        drop = lambda x: self.dropout(x, deterministic=deterministic, rngs=rngs)
        options = {"deterministic": deterministic, "rngs": rngs}
        _, h_n = self.encoder(drop(self.letters(batch.letters)), seq_lengths=batch.letter_lengths, **options)
        spoken = drop(self.phonemes(batch.spoken))
        output, _ = self.decoder(spoken, h_n, seq_lengths=batch.phoneme_lengths, **options)
        return self.logits(drop(output))

    def spell_out(self, letters: jax.Array, lengths: jax.Array) -> jax.Array:
        """Greedy decoding: the phonemes [MOST_PHONEMES, N], each the likeliest after those before it."""
        _, h_n = self.encoder(self.letters(letters), seq_lengths=lengths, deterministic=True)
        decoder = parameters(self.decoder)

        def advance(carry, _):
            h, phoneme = carry
            y, h = stacked_step(decoder, h, self.phonemes(phoneme))
            phoneme = jnp.argmax(self.logits(y), axis=-1).astype(phoneme.dtype)
            return (h, phoneme), phoneme

        start = jnp.full_like(lengths, START)
        return jax.lax.scan(advance, (h_n, start), length=MOST_PHONEMES)[1]


def parameters(module: gru_jax.nnx.GRU) -> dict[str, dict[str, jax.Array]]:
    """GRUParams of a module."""
    return nnx.to_pure_dict(nnx.state(module, nnx.Param))


def published(dropout: float, rngs: nnx.Rngs) -> Speller:
    """The speller with the weights of g2p-en."""
    arrays = g2p_en()
    (config, encoder), (_, decoder) = from_torch(arrays.encoder), from_torch(arrays.decoder)
    speller = Speller(config.input_size, config.hidden_size, 1, dropout, rngs)
    weights = {
        "letters": {"embedding": arrays.letters},
        "phonemes": {"embedding": arrays.phonemes},
        "encoder": encoder,
        "decoder": decoder,
        "logits": {"kernel": arrays.weight.T, "bias": arrays.bias},
    }
    nnx.update(speller, jax.tree.map(jnp.asarray, weights))
    return speller


def loss(logits: jax.Array, batch: Batch) -> jax.Array:
    """The mean cross-entropy of a phoneme, padding left out."""
    present = jnp.arange(logits.shape[0])[:, None] < batch.phoneme_lengths
    entropy = optax.softmax_cross_entropy_with_integer_labels(logits, batch.expected)
    return jnp.sum(entropy, where=present) / present.sum()


def error_rates(
    spell_out: Callable[[np.ndarray, np.ndarray], np.ndarray], words: list[Word], batch_size: int
) -> dict[str, float]:
    """The share of words said unlike each of their pronunciations, and of phonemes wrong against the nearest one."""
    wrong = edits = phonemes = 0
    for some, letters, lengths in spelled(words, batch_size):
        for word, said in zip(some, spell_out(letters, lengths).T.tolist(), strict=False):  # filling rows at the end
            said = said[: said.index(END)] if END in said else said
            distance, length = min((edit_distance(said, right), len(right)) for right in word.pronunciations)
            wrong, edits, phonemes = wrong + (distance > 0), edits + distance, phonemes + length
    return {"words": len(words), "word_error_rate": wrong / len(words), "phoneme_error_rate": edits / phonemes}


def edit_distance(a: list[int], b: list[int]) -> int:
    """The fewest insertions, deletions and replacements that make `b` of `a`.

    >>> edit_distance([1, 2, 3], [2, 3, 4])
    2
    """
    row = list(range(len(b) + 1))
    for i, left in enumerate(a, 1):
        before, row[0] = row[0], i
        for j, right in enumerate(b, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (left != right))
    return row[-1]
