"""Spans of characters find their tokens, a text is read alike alone and among others, and a misleading word is found out."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import ByT5Tokenizer, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast, T5Config, T5Model

from mmrlhf.errors import UserError
from mmrlhf.rewards.segments.fit import fit_segments
from mmrlhf.rewards.segments.labels import SpanLabel
from mmrlhf.rewards.segments.text import TextEncoder, TextFeatures, span_labels, token_spans
from mmrlhf.segments import SegmentedItem, SegmentScore, with_rest
from mmrlhf.types import SegmentLabel
from tests.rewards.language.small_models import small_llama

ANSWERS = ["a red cat", "one two red dog is kind . it is a red cat .", "kind", "ünï 𝄞 blue\n\n two"]
PROMPTS = ["what is it : ", "user : a dog ? bot : ", "", "a "]


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE whose tokens take the space before them, with a token before each text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=alphabet, special_tokens=["<s>"], show_progress=False
    )
    tokenizer.train_from_iterator(["red red cat", "the red dog is kind", "one two red blue cat"] * 10, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="<s>")


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A causal GPT-2 with positions of its own and a byte-level tokenizer."""
    folder, tokenizer = tmp_path_factory.mktemp("gpt2"), byte_tokenizer()
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(tokenizer), n_positions=48, n_embd=32, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0
    )
    GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def encoder(request: pytest.FixtureRequest) -> Iterator[TextEncoder]:
    yield TextEncoder.load(request.getfixturevalue(request.param))


@st.composite
def cut_text(draw: st.DrawFn) -> tuple[str, list[tuple[int, int]]]:
    """A text and tokens of it: pieces, some twice as those of one character's bytes, special ones, and those of a prompt."""
    text = draw(st.text(st.sampled_from("ab é𝄞 \n"), min_size=1, max_size=12))
    before = draw(st.integers(0, 4))
    inner = st.integers(-before, len(text))
    places = sorted({-before, len(text), *draw(st.lists(inner, max_size=8))})
    offsets = [pair for pair in zip(places, places[1:], strict=False) for _ in range(draw(st.integers(1, 2)))]
    empty = (-before, -before)
    return text, [empty] * draw(st.integers(0, 2)) + offsets + [empty] * draw(st.integers(0, 1))


def characters_of(first: int, last: int, text: str) -> set[int]:
    """Which characters of the text a token is there for."""
    inside = [i for i in range(first, last) if i >= 0]
    words = [i for i in inside if not text[i].isspace()]
    return set(range(words[0], words[-1] + 1)) if words else set(inside)


@given(cut_text(), st.data())
def test_spans_of_tokens_are_those_found_character_by_character(
    cut: tuple[str, list[tuple[int, int]]], data: st.DataObject
) -> None:
    text, offsets = cut
    start = data.draw(st.integers(0, len(text) - 1))
    end = data.draw(st.integers(start + 1, len(text)))
    inside = [i for i, token in enumerate(offsets) if characters_of(*token, text) & set(range(start, end))]
    if inside:
        assert token_spans(offsets, [(start, end)], text) == [(inside[0], inside[-1] + 1)]
    else:
        with pytest.raises(UserError, match=f"the characters {start} to {end} .* are in no token: leave that segment"):
            token_spans(offsets, [(start, end)], text)


def test_a_space_is_not_of_the_word_after_it() -> None:
    offsets = [(0, 0), (0, 3), (3, 7)]
    assert token_spans(offsets, [(0, 4), (4, 7), (0, 5)], "one two") == [(1, 2), (2, 3), (1, 3)]
    with pytest.raises(UserError, match=r"the characters 3 to 4 \(' '\) are in no token"):
        token_spans(offsets, [(3, 4)], "one two")


def test_each_word_is_in_its_own_tokens_of_bytes(gpt2: Path) -> None:
    encoder = TextEncoder.load(gpt2)
    text = "the réd cat,𝄞𝄞 is\n two  dogs"
    (ids,), (offsets,) = encoder.tokens([text])
    assert offsets[0] == (0, 0) and len(ids) > len(text.split()) + 1
    for word in ("the", "réd", "cat", "𝄞𝄞", "is", "two", "dogs"):
        start = text.index(word)
        ((first, last),) = token_spans(offsets, [(start, start + len(word))], text)
        assert encoder.tokenizer.decode(ids[first:last]).strip() == word


def test_a_text_is_read_alike_alone_and_among_others(encoder: TextEncoder) -> None:
    together = encoder.encode(ANSWERS, PROMPTS, batch_size=3)
    assert together.features.dtype == torch.float32 and not together.features.requires_grad
    assert together.features.shape[:2] == together.mask.shape == (4, max(map(len, together.offsets)))
    for i in range(4):
        alone = encoder.encode(ANSWERS[i : i + 1], PROMPTS[i : i + 1])
        length = len(together.offsets[i])
        assert alone.offsets == [together.offsets[i]]
        assert torch.equal(alone.mask[0], together.mask[i, :length]) and not together.mask[i, length:].any()
        torch.testing.assert_close(alone.features[0], together.features[i, :length], rtol=0, atol=1e-5)
    assert (together.features[~together.mask] == 0).all()
    assert (together.features[together.mask].abs().sum(-1) > 0).all()


def test_the_tokens_of_an_answer_are_read_after_its_prompt_without_it(encoder: TextEncoder) -> None:
    answer, prompt = "one red cat", "a dog . "
    read = encoder.encode([answer], [prompt])
    (ids,), (offsets,) = encoder.tokens([prompt + answer])
    expected = [last > len(prompt) for _, last in offsets]
    assert read.mask[0].tolist() == expected and 0 < sum(expected) < len(expected)
    assert read.offsets[0] == [(first - len(prompt), last - len(prompt)) for first, last in offsets]
    hidden = encoder.model(input_ids=torch.tensor([ids])).last_hidden_state
    torch.testing.assert_close(read.features[read.mask], hidden[0][read.mask[0]], rtol=0, atol=1e-5)
    ((first, last),) = token_spans(read.offsets[0], [(4, 7)], answer)
    assert encoder.tokenizer.decode(ids[first:last]).strip() == "red"
    other = encoder.encode([answer], ["a cat . "])
    assert not torch.allclose(other.features[other.mask][:1], read.features[read.mask][:1])


def test_a_token_that_begins_in_the_prompt_is_of_the_answer_too(gpt2: Path) -> None:
    read = TextEncoder.load(gpt2).encode(["d cat"], ["re"])
    assert read.offsets[0][1] == (-2, 1) and read.mask[0].tolist() == [False] + [True] * (len(read.offsets[0]) - 1)
    assert token_spans(read.offsets[0], [(0, 1)], "d cat") == [(1, 2)]


def test_layers_are_those_of_the_model(llama: Path) -> None:
    reads = {layer: TextEncoder.load(llama, layer=layer) for layer in (0, -3, 2, -1, 1)}
    found = {layer: one.encode(["a red cat"]).features for layer, one in reads.items()}
    (ids,), _ = reads[0].tokens(["a red cat"])
    torch.testing.assert_close(found[0][0], reads[0].model.embed_tokens.weight[ids])
    assert torch.equal(found[0], found[-3]) and torch.equal(found[2], found[-1])
    assert not torch.allclose(found[1], found[0]) and not torch.allclose(found[1], found[2])


def test_texts_without_tokens_have_no_features(llama: Path) -> None:
    encoder = TextEncoder.load(llama)
    assert encoder.encode([]).features.shape == (0, 0, 32)
    assert encoder.encode([""]).features.shape == (1, 0, 32)
    read = encoder.encode(["", "a cat", ""], ["a dog", "", ""])
    assert read.mask.tolist() == [[False, False], [True, True], [False, False]] and read.offsets[2] == []


def test_a_text_that_is_too_long_is_refused_and_nothing_cut_off(encoder: TextEncoder) -> None:
    limit = encoder.model.config.max_position_embeddings
    extra = len(encoder.tokens([""])[0][0])
    assert encoder.encode([" red" * (limit - extra)]).mask.sum() == limit - extra
    with pytest.raises(UserError, match=f"text 1 has {limit + 1} tokens, allowed are the {limit} that the model reads"):
        encoder.encode(["a", " red" * (limit + 1 - extra)])


def test_prompts_that_are_not_one_an_answer_are_refused(llama: Path) -> None:
    with pytest.raises(UserError, match="got 1 prompts for 2 answers: give one an answer"):
        TextEncoder.load(llama).encode(["a", "a"], ["a"])


@pytest.mark.parametrize("layer", [3, -4])
def test_a_layer_that_is_not_there_is_refused(llama: Path, layer: int) -> None:
    with pytest.raises(UserError, match=f"layer got {layer}, allowed is -3 to 2: the model has 2, 0 its embeddings"):
        TextEncoder.load(llama, layer=layer)


def test_a_tokenizer_without_offsets_is_refused(llama: Path) -> None:
    model = TextEncoder.load(llama).model
    with pytest.raises(UserError, match="ByT5Tokenizer tells no offsets of its tokens: give a model with a fast tok"):
        TextEncoder(model, ByT5Tokenizer())


def test_what_is_no_language_model_is_refused(tmp_path: Path, llama: Path) -> None:
    with pytest.raises(UserError, match="no language model in .*: give the folder of one with its tokenizer"):
        TextEncoder.load(tmp_path)
    with pytest.raises(UserError, match="unknown model 'nowhere'"):
        TextEncoder.load("nowhere")
    broken = small_llama(tmp_path / "broken")
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(UserError, match="no language model in .*broken") as caught:
        TextEncoder.load(broken)
    assert "\n" not in str(caught.value)


def test_a_model_without_its_tokenizer_is_refused(tmp_path: Path) -> None:
    folder = small_llama(tmp_path)
    for file in folder.glob("*token*"):
        file.unlink()
    with pytest.raises(UserError, match="no language model in .*: give the folder of one with its tokenizer"):
        TextEncoder.load(folder)


def label(start: int, end: int, tag: str) -> SegmentLabel:
    return SegmentLabel("x", start, end, tag)  # type: ignore[arg-type]


def test_segments_become_labels_on_the_rows_of_their_answers(llama: Path) -> None:
    items = [
        SegmentedItem("x", (label(0, 5, "correct"), SegmentScore("x", 6, 9, 0.5)), answer="a red cat"),
        SegmentedItem("x", (label(4, 7, "misleading"),), answer="one two dog"),
    ]
    read = TextEncoder.load(llama).encode([str(item.answer) for item in items])
    expected = [SpanLabel(0, 0, 2, "correct"), SpanLabel(0, 2, 3, 0.5), SpanLabel(1, 1, 2, "misleading")]
    assert span_labels(items, read) == expected
    with pytest.raises(UserError, match="got 0 encoded texts for 2 items: encode the answer of each"):
        span_labels(items)
    with pytest.raises(UserError, match="got 1 encoded texts for 2 items"):
        span_labels(items, TextFeatures(read.features[:1], read.mask[:1], read.offsets[:1]))


def test_segments_of_steps_are_labels_as_they_stand() -> None:
    items = [SegmentedItem("x", (), steps=4), SegmentedItem("y", (label(1, 3, "irrelevant"),), steps=4)]
    assert span_labels(items) == [SpanLabel(1, 1, 3, "irrelevant")]


def marked_answers(count: int, seed: int) -> list[SegmentedItem]:
    """Answers of different words one of which, "rude", misleads; all others are correct."""
    generator, words = torch.Generator().manual_seed(seed), "the cat dog kind red blue one two".split()
    items = []
    for number in range(count):
        chosen = [words[i] for i in torch.randperm(len(words), generator=generator)[:5].tolist()]
        chosen[int(torch.randint(5, (), generator=generator))] = "rude"
        answer = " ".join(chosen)
        start = answer.index("rude")
        items.append(SegmentedItem(str(number), (label(start, start + 4, "misleading"),), answer=answer))
    return items


def test_a_misleading_word_ranks_below_correct_ones_in_answers_that_were_not_seen(encoder: TextEncoder) -> None:
    seen = [with_rest(item) for item in marked_answers(40, 0)]
    read = encoder.encode([str(item.answer) for item in seen], ["what is it : "] * 40)
    reward = fit_segments(
        read.features, read.mask, span_labels(seen, read), seed=0, epochs=25, learning_rate=1e-2, progress=False
    )
    unseen = marked_answers(30, 1)
    assert not {item.answer for item in seen} & {item.answer for item in unseen}
    fresh = encoder.encode([str(item.answer) for item in unseen], ["user : "] * 30)
    right = 0
    for row, item in enumerate(unseen):
        answer = str(item.answer)
        words = [(answer.index(word), answer.index(word) + len(word)) for word in answer.split()]
        spans = [(row, *span) for span in token_spans(fresh.offsets[row], words, answer)]
        found = reward.segment_rewards(fresh.features, spans, fresh.mask).tolist()
        lowest = found.pop(answer.split().index("rude"))
        right += lowest < min(found)
    assert right >= 27  # by chance one in five


def test_an_encoder_decoder_is_refused() -> None:
    config = T5Config(vocab_size=32, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, decoder_start_token_id=0)
    with pytest.raises(UserError, match="T5Model reads with an encoder and answers with a decoder"):
        TextEncoder(T5Model(config), byte_tokenizer())
