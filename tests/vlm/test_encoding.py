"""Which tokens an answer has, which characters they stand for, and that prompts go before them unchanged."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrlhf.errors import UserError
from mmrlhf.rewards.language.inputs import Reader, Row
from vlm.encoding import answer_tokens, encode, encode_prompts
from vlm.policy import VisionLanguagePolicy

PICTURE = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def policies(small_llava: str, small_qwen_vl: str) -> list[VisionLanguagePolicy]:
    return [VisionLanguagePolicy.load(small_llava), VisionLanguagePolicy.load(small_qwen_vl)]


@settings(max_examples=40, deadline=None)
@given(answer=st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), min_size=1, max_size=30))
def test_offsets_name_the_characters_of_the_answer(policies: list[VisionLanguagePolicy], answer: str) -> None:
    if not answer.strip():
        return
    for policy in policies:
        ids, offsets = policy.tokens(Row("What?", answer, PICTURE))
        assert ids[-1] in policy.ends and len(ids) == len(offsets)
        assert all(0 <= start <= end <= len(answer) for start, end in offsets)
        covered = {i for start, end in offsets for i in range(start, end)}
        assert {i for i, letter in enumerate(answer) if letter.strip()} <= covered
        said = policy.tokenizer.decode(list(ids), skip_special_tokens=True)
        assert said.strip() == answer.strip()


def test_prompt_and_answer_are_what_the_template_makes_of_both(policies: list[VisionLanguagePolicy]) -> None:
    for policy in policies:
        rows = [Row("What is it?", "A cat.", PICTURE), Row("Who?", "Nobody at all", PICTURE)]
        batch = policy.encode(rows)
        whole = policy.reader.encode(rows)["input_ids"]
        for i, row in enumerate(rows):
            length = int(batch.starts[i]) + int(batch.mask[i].sum()) - 1  # but for the mark that ends it
            assert batch.inputs["input_ids"][i, :length].tolist() == whole[i, :length].tolist(), row
            assert batch.inputs["attention_mask"][i].sum() == length + 1
        alone = encode_prompts(policy.reader, rows[1:], "right")
        assert batch.inputs["input_ids"][1, : int(batch.starts[1])].tolist() == alone["input_ids"][0].tolist()


def test_what_is_too_long_or_has_no_place_is_refused(policies: list[VisionLanguagePolicy]) -> None:
    policy = policies[0]
    reader = Reader(policy.reader.processor, template="chat", max_length=60)
    row = Row("What?", "A" * 80, PICTURE)
    with pytest.raises(UserError, match="has with its prompt 1.. tokens, allowed are 60: shorten it"):
        encode(reader, [row], [answer_tokens(reader, row, policy.ends).ids], 0)
    backwards = Reader(policy.reader.processor, template="{answer} is the answer to {prompt}", max_length=600)
    with pytest.raises(UserError, match="template does not put the answer after the prompt"):
        answer_tokens(backwards, row, policy.ends)
