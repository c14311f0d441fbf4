"""Two trained PyTorch GRUs that other people published, carried to JAX and run beside PyTorch.

    uzmorph-bigru   an Uzbek morphological tagger; its state_dict holds a 2-layer bidirectional GRU
    g2p-en          English spelling to phonemes; an encoder and a decoder GRUCell under names of its own

Only the files are read: neither package is imported, and nothing is unpickled but tensors.
"""

import argparse
import json
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import torch
from published import MOST_PHONEMES, START, g2p_en, letter_ids, packaged_file, spelling
from rich import box
from rich.console import Console
from rich.table import Table

from gru_jax import find_grus, from_torch, gru, gru_step
from gru_jax.verify import Verdict, judge

UZBEK = ["kitobim", "maktabda", "yozyapmiz", "bolalar", "kitoblarimizdan", "ishladik", "qizil", "toshkentdan"]
ENGLISH = ["hello", "gated", "recurrent", "unit", "jax", "pytorch"]
# The verdict is on more words than are shown: over a single one either side may be unlucky.
JUDGED = [*ENGLISH, "saliency", "transformation", "network", "evaluation", "sequence", "reset", "update", "state"]


def tag_uzbek(words: list[str], console: Console) -> list[tuple[str, str, Verdict]]:
    """Runs the whole tagger in JAX and in PyTorch; prints each word's stem and suffix, and returns the verdicts."""
    folder = "uzmorph_bigru/data"
    state_dict = torch.load(packaged_file("uzmorph-bigru", f"{folder}/morph_bigru.pth"), weights_only=True)
    characters, tags = (
        json.loads(packaged_file("uzmorph-bigru", f"{folder}/{name}.json").read_text(encoding="utf-8"))
        for name in ("char_vocab", "tag_vocab")
    )
    ((prefix, found),) = find_grus(state_dict).items()
    _, params = from_torch(state_dict, prefix)
    # The published analyzer pads every word to 30 characters, and its reverse direction reads that padding.
    ids = np.array([[characters.get(c, characters["UNK"]) for c in word.ljust(30, "\0")] for word in words])
    ids[ids == characters["UNK"]] = characters["PAD"]

    @jax.jit
    def tagger(ids):
        embedded = jnp.asarray(state_dict["char_embeddings.weight"].numpy())[ids]
        output, h_n = gru(params, embedded, batch_first=True, precision="highest")
        weight, bias = (jnp.asarray(state_dict[f"hidden2tag.{name}"].numpy()) for name in ("weight", "bias"))
        return output, h_n, jnp.matmul(output, weight.T, precision="highest") + bias

    def original(dtype):
        rnn = torch.nn.GRU(64, 64, num_layers=2, bidirectional=True, batch_first=True)
        rnn.load_state_dict({k.removeprefix(prefix): v for k, v in state_dict.items() if k.startswith(prefix)})
        weights = {name: tensor.to(dtype) for name, tensor in state_dict.items()}
        output, h_n = rnn.to(dtype)(weights["char_embeddings.weight"][torch.tensor(ids)])
        logits = output @ weights["hidden2tag.weight"].T + weights["hidden2tag.bias"]
        return [a.detach().numpy() for a in (output, h_n, logits)]

    ours, theirs, reference = tagger(ids), original(torch.float32), original(torch.float64)
    verdicts = [judge(*row) for row in zip(("output", "h_n", "logits"), ours, theirs, reference, strict=True)]
    name_of = {number: tag for tag, number in tags.items()}
    table = Table("word", "stem", "suffix", "PyTorch", title="Uzbek morphology", box=box.SIMPLE)
    same_everywhere = True
    for i, word in enumerate(words):
        ours_here, theirs_here = (
            [name_of[t] for t in a[i, : len(word)].argmax(-1).tolist()] for a in (ours[2], theirs[2])
        )
        stem = "".join(c for c, tag in zip(word, ours_here, strict=True) if "ROOT" in tag)
        same_everywhere &= ours_here == theirs_here
        table.add_row(word, stem, suffix(ours_here), "the same" if ours_here == theirs_here else suffix(theirs_here))
    console.print(table)
    sizes = f"{found.num_layers} x {found.num_directions}, {found.input_size} -> {found.hidden_size}"
    same = Verdict("tags", float(not same_everywhere), 0.0, 0.0)
    return [(f"{prefix}*: GRU {sizes}", "uzmorph-bigru", verdict) for verdict in [*verdicts, same]]


def suffix(tags: list[str]) -> str:
    """What the last suffix of a word says, out of the tags of its characters: "B-SUFF-NOUN-cases=Locative"."""
    said = [tag.removeprefix("B-SUFF-") for tag in tags if tag.startswith("B-SUFF-")]
    return said[-1] if said else "no suffix"


def pronounce(words: list[str], console: Console) -> list[tuple[str, str, Verdict]]:
    """Spells words out as phonemes, greedily, in JAX and in PyTorch; prints them and returns the verdicts."""
    published = g2p_en()
    (config, encoder), (_, decoder) = (from_torch(cell) for cell in (published.encoder, published.decoder))
    letters, phoneme_table, weight, bias = map(jnp.asarray, published[2:])

    @jax.jit
    def spell_out(ids):
        states, h_n = gru(encoder, letters[ids], precision="highest")

        def advance(carry, _):
            h, phoneme = carry
            h = gru_step(decoder["l0"], h, phoneme_table[phoneme], precision="highest")
            logits = jnp.matmul(weight, h, precision="highest") + bias
            return (h, jnp.argmax(logits)), (jnp.argmax(logits), logits)

        _, (phonemes, logits) = jax.lax.scan(advance, (h_n[0], START), length=MOST_PHONEMES)
        return states, phonemes, logits

    def original(ids, dtype, forced=None):
        """PyTorch's states, phonemes and logits, fed its own phonemes or `forced` ones."""
        reader, writer = (torch.nn.GRUCell(config.input_size, config.hidden_size) for _ in range(2))
        for module, cell in ((reader, published.encoder), (writer, published.decoder)):
            module.load_state_dict({name: torch.from_numpy(array) for name, array in cell.items()})
            module.to(dtype)
        letters, phoneme_table, weight, bias = (torch.from_numpy(array).to(dtype) for array in published[2:])
        h, states, phonemes, logits = torch.zeros(config.hidden_size, dtype=dtype), [], [START], []
        for i in ids:
            h = reader(letters[i], h)
            states.append(h)
        for t in range(MOST_PHONEMES):
            h = writer(phoneme_table[phonemes[-1]], h)
            logits.append(weight @ h + bias)
            phonemes.append(int(logits[-1].argmax()) if forced is None else int(forced[t]))
        return torch.stack(states).detach().numpy(), phonemes[1:], torch.stack(logits).detach().numpy()

    trios: dict[str, list[tuple]] = {"states": [], "logits": []}
    different = []
    table = Table("word", "phonemes", "PyTorch", title="English pronunciation", box=box.SIMPLE)
    for word in dict.fromkeys([*words, *JUDGED]):
        ids = letter_ids(word)
        states, phonemes, logits = spell_out(np.array(ids))
        spoken, theirs = (spelling(path) for path in (phonemes.tolist(), original(ids, torch.float32)[1]))
        if word in words:
            table.add_row(word, spoken, "the same" if spoken == theirs else theirs)
        if spoken != theirs:
            different.append(word)
        original32, reference = (original(ids, dtype, forced=phonemes) for dtype in (torch.float32, torch.float64))
        trios["states"].append((states, original32[0], reference[0]))
        trios["logits"].append((logits, original32[2], reference[2]))
    console.print(table)
    verdicts = [judge(name, *map(np.concatenate, zip(*rows, strict=True))) for name, rows in trios.items()]
    what = f"enc_*, dec_*: GRUCells {config.input_size} -> {config.hidden_size}"
    return [(what, "g2p-en", verdict) for verdict in [*verdicts, Verdict("phonemes", len(different), 0.0, 0.0)]]


def main(arguments: list[str] | None = None) -> int:
    """Runs both models; returns 0 if everything is PyTorch's, else 1."""
    parser = argparse.ArgumentParser(prog="scripts/demo", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("words", nargs="*", default=ENGLISH, help="English words to pronounce")
    words = parser.parse_args(arguments).words
    console, started = Console(), time.perf_counter()
    rows = tag_uzbek(UZBEK, console) + pronounce(words, console)
    table = Table(
        *("found", "package", "compared", "gru_jax", "PyTorch", "verdict"),
        title="Largest distance to PyTorch in float64, of gru_jax and of PyTorch in float32",
        box=box.SIMPLE,
    )
    for i, (found, package, verdict) in enumerate(rows):
        new = not i or rows[i - 1][1] != package
        numbers = (f"{verdict.distance:.1e}", f"{verdict.own:.1e}") if verdict.bound else ("", "")
        answer = "[green]PASS[/]" if verdict.passed else "[red]FAIL[/]"
        table.add_row(found if new else "", package if new else "", verdict.name, *numbers, answer)
    console.print(table)
    passed = all(verdict.passed for *_, verdict in rows)
    outcome = "Everything is PyTorch's" if passed else "Not everything is PyTorch's"
    console.print(f"{outcome}. {time.perf_counter() - started:.1f} s on {jax.devices()[0].platform}.")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
