"""The tiny umT5 encoder, in the layout of ComfyUI's umT5 files: HF names, and the tokenizer as `spiece_model`.

Its weights are random and stay so. Embeddings of random directions tell words apart as well as trained ones for a
vocabulary of this size, and what they mean is for the video model's text embedding to learn; attention and FFN add
less to a token than it brings, so that a word's neighbours tint it without hiding it.

    python -m turbowan.demo.text_encoder          writes demo/bundle/text_encoders/turbowan_demo_umt5.safetensors
"""

from __future__ import annotations

import argparse
import io
import string
import tempfile
from collections.abc import Iterator
from pathlib import Path

import sentencepiece
import torch
from safetensors.torch import save_file
from torch import Tensor

from turbowan.demo.vocabulary import BACKGROUNDS, HELD_OUT, TRAINED, caption
from turbowan.turbo_core import demo_bundle

FILE = demo_bundle.FOLDER / demo_bundle.TEXT_ENCODER
D_MODEL, D_FF, HEADS, LAYERS = 128, 256, 2, 2
LICENSE = "CC0-1.0"
BUCKETS = 32  # of relative positions, umT5's own number
CAPTIONS_OF_EACH = 12  # wordings drawn of each triple for the tokenizer
PIECES = 256
READ_AS = {c: c.lower() for c in string.ascii_uppercase} | dict.fromkeys("\t\n\r", " ")
BRANCH = 0.5  # what an attention or an FFN adds to a token, of the token's own size


def corpus() -> Iterator[str]:
    """Captions of every triple in many wordings, then their words before other signs than a space.

    Without the latter, a word that always stands whole is no candidate for a piece: the trainer takes those from what
    different words share. Held-out triples have no words that the others lack.
    """
    generator = torch.Generator().manual_seed(0)
    words: set[str] = set()
    for triple in (*TRAINED, *HELD_OUT):
        for background in (*BACKGROUNDS, None) * (CAPTIONS_OF_EACH // 6):
            sentence = caption(triple, background, generator).lower()
            words.update(sentence.split())
            yield sentence
    for word in sorted(words):
        yield from (f"{word}{sign}" for sign in (".", ",", "!", "?", ":", ";"))


def tokenizer() -> bytes:
    """A sentencepiece model (unigram; pad 0, end 1, unknown 2) of the captions' words and every printable character.

    Capitals are read as small letters and line ends as spaces: rules inside the model, so that every reader follows.
    """
    model = io.BytesIO()
    with tempfile.TemporaryDirectory() as folder:
        rules = Path(folder) / "rules.tsv"
        rules.write_text("".join(f"{ord(c):X}\t{ord(read):X}\n" for c, read in READ_AS.items()))
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=corpus(),
            model_writer=model,
            model_type="unigram",
            vocab_size=PIECES,
            hard_vocab_limit=False,
            character_coverage=1.0,
            required_chars="".join(c for c in string.printable if c.isprintable() and not c.isupper() and c != " "),
            normalization_rule_tsv=str(rules),
            pad_id=0,
            eos_id=1,
            unk_id=2,
            bos_id=-1,
            num_threads=1,
            minloglevel=2,
        )
    return model.getvalue()


def tensors() -> dict[str, Tensor]:
    """The whole file."""
    model = tokenizer()
    pieces = sentencepiece.SentencePieceProcessor(model_proto=model).get_piece_size()
    generator = torch.Generator().manual_seed(0)

    def random(rows: int, columns: int, gain: float = 1.0) -> Tensor:
        return gain * torch.randn(rows, columns, generator=generator) / columns**0.5

    weights = {"shared.weight": torch.randn(pieces, D_MODEL, generator=generator)}
    for layer in range(LAYERS):
        attention, ffn = (f"encoder.block.{layer}.layer.{i}" for i in (0, 1))
        for name, gain in (("q", 0.25), ("k", 1.0), ("v", 1.0), ("o", BRANCH)):  # umT5 does not scale its scores
            weights[f"{attention}.SelfAttention.{name}.weight"] = random(D_MODEL, D_MODEL, gain)
        weights[f"{attention}.SelfAttention.relative_attention_bias.weight"] = _towards_neighbours()
        for name, rows, columns in (("wi_0", D_FF, D_MODEL), ("wi_1", D_FF, D_MODEL), ("wo", D_MODEL, D_FF)):
            weights[f"{ffn}.DenseReluDense.{name}.weight"] = random(rows, columns, 2 * BRANCH if name == "wo" else 1.0)
        for part in (attention, ffn):
            weights[f"{part}.layer_norm.weight"] = torch.ones(D_MODEL)
    weights["encoder.final_layer_norm.weight"] = torch.ones(D_MODEL)
    file = {name: weight.to(torch.float16) for name, weight in weights.items()}
    return file | {"spiece_model": torch.frombuffer(bytearray(model), dtype=torch.uint8)}


def _towards_neighbours() -> Tensor:
    """Biases [BUCKETS, HEADS] that fall with the distance, for later heads more steeply; lowest for the token itself.

    Half of the buckets are of earlier tokens, half of later ones; the first ones of each half hold one distance each.
    """
    distance = torch.arange(BUCKETS) % (BUCKETS // 2)
    distance[0] = BUCKETS // 2
    return -distance[:, None] * 0.5 * torch.arange(1, HEADS + 1)


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the demo's text encoder (seconds on a CPU).")
    parser.add_argument("--output", type=Path, default=FILE)
    output = parser.parse_args().output
    output.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors(), output, metadata={"license": LICENSE, "made_by": "turbowan.demo"})
    print(f"{output}: {output.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
