"""The demo's text encoder: what ComfyUI's umT5 files hold, and whether prompts stay apart in it."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from sentencepiece import SentencePieceProcessor
from torch.nn.functional import cosine_similarity

from turbowan.demo import dataset, text_encoder
from turbowan.demo.vocabulary import BACKGROUNDS, HELD_OUT, TRAINED, caption
from turbowan.turbo_core import demo_bundle
from turbowan.turbo_core.text_encoder import LENGTH, TextEncoder

CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> TextEncoder:
    path = tmp_path_factory.mktemp("text") / "umt5.safetensors"
    save_file(text_encoder.tensors(), path)
    return TextEncoder.open(path)


def every_caption() -> list[str]:
    generator = torch.Generator().manual_seed(1)
    return [caption(triple, place, generator) for triple in (*TRAINED, *HELD_OUT) for place in (*BACKGROUNDS, None)]


def test_the_file_says_the_same_each_time():
    """Of the tokenizer, the trainer writes the rule for capitals in another order each time."""
    first, second = text_encoder.tensors(), text_encoder.tensors()
    models = [SentencePieceProcessor(model_proto=t.pop("spiece_model").numpy().tobytes()) for t in (first, second)]
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    pieces = [[(m.id_to_piece(i), m.get_score(i)) for i in range(m.get_piece_size())] for m in models]
    assert pieces[0] == pieces[1]


def test_the_bundles_file_is_the_one_that_is_written():
    kept = load_file(demo_bundle.FOLDER / demo_bundle.TEXT_ENCODER)
    written = text_encoder.tensors()
    assert kept.keys() == written.keys()
    for name in kept.keys() - {"spiece_model"}:
        torch.testing.assert_close(kept[name], written[name])
    for text in every_caption()[::50]:
        models = [SentencePieceProcessor(model_proto=t["spiece_model"].numpy().tobytes()) for t in (kept, written)]
        assert models[0].encode(text) == models[1].encode(text)


def test_each_word_of_a_caption_is_one_token(encoder):
    for text in every_caption():
        assert len(encoder.tokens(text)) == len(text.split()) + 1 < dataset.ROWS


def test_capitals_and_line_ends_are_read_as_the_rest(encoder):
    assert encoder.tokens("A Red Ball\nmoving\tup") == encoder.tokens("a red ball moving up")


def test_any_text_has_tokens(encoder):
    unknown = 2
    assert unknown not in encoder.tokens("Zephyrs (quick & 37% jaunty) vex_my Big-Fox's quart?")
    assert unknown in encoder.tokens("日本語")


def test_conditioning_is_padded_with_zeros(encoder):
    (states,) = encoder.encode(["a red ball moving up"], CPU)
    own = len(encoder.tokens("a red ball moving up"))
    assert states.shape == (1, LENGTH, text_encoder.D_MODEL)
    assert states[0, :own].square().mean(-1).sqrt().sub(1).abs().max() < 1e-2
    assert not states[0, own:].any()


def test_words_stay_apart_and_their_neighbours_show(encoder):
    (states,) = encoder.encode(["a blue ball on a dark blue background"], CPU)
    shape, ball, ground = states[0, 1], states[0, 2], states[0, 6]
    assert cosine_similarity(shape, ball, dim=0) < 0.3
    assert 0.6 < cosine_similarity(shape, ground, dim=0) < 0.95


def test_short_states_are_the_padded_ones(encoder):
    texts = ["", "a red ball moving up", "A red ball moving up on a dark blue background", "a red ball moving up"]
    short = dataset.text_states(encoder, texts, CPU)
    assert short.shape == (4, dataset.ROWS, text_encoder.D_MODEL)
    for row, text in zip(short, texts, strict=True):
        torch.testing.assert_close(row, encoder.encode([text], CPU)[0][0, : dataset.ROWS], rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="less than 16 tokens"):
        dataset.text_states(encoder, ["a " * 16], CPU)
