"""The head: found wherever a model has it, made so that it can learn, grown by rows."""

from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from mmrlhf.errors import UserError
from mmrlhf.rewards.language.model import LanguageReward
from mmrlhf.rewards.language.network import fresh_head, head_name, load_network, with_rows
from tests.rewards.language.small_models import WIDTH, llama_config, word_tokenizer

COMMON = {"vocab_size": 30, "num_labels": 1, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}


def test_the_head_is_found_by_any_name() -> None:
    deep = RobertaConfig(**COMMON, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=1)
    assert head_name(RobertaForSequenceClassification(deep)) == "classifier.out_proj"
    llama = AutoModelForSequenceClassification.from_config(llama_config(num_labels=1))
    assert head_name(llama) == "score"
    llama.score = torch.nn.Identity()
    with pytest.raises(UserError, match="LlamaForSequenceClassification has no linear head outside its backbone"):
        head_name(llama)


@pytest.mark.parametrize("kind", ["roberta", "gpt2"])
def test_other_shapes_of_model_score_by_their_own_formula(tmp_path: Path, kind: str) -> None:
    """A head of two layers (RoBERTa), and learnt absolute positions in a causal model (GPT-2)."""
    torch.manual_seed(0)
    model = (
        RobertaForSequenceClassification(
            RobertaConfig(**COMMON, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
                          max_position_embeddings=66)
        ) if kind == "roberta" else
        GPT2ForSequenceClassification(GPT2Config(**COMMON, n_embd=8, n_layer=1, n_head=2, n_positions=64))
    )  # fmt: skip
    for value in model.parameters():
        torch.nn.init.normal_(value, 0, 0.5)
    model.eval().save_pretrained(tmp_path)
    word_tokenizer(padding_side="left").save_pretrained(tmp_path)
    reward = LanguageReward.from_pretrained(tmp_path)
    rows = reward.rows(["what is it", "it", "the cat is a dog"], ["kind", "rude", "a"], None)
    scores = reward.score([row.prompt for row in rows], [row.answer or "" for row in rows])
    alone = [model(**reward.reader.encode([row])).logits[0, 0] for row in rows]
    torch.testing.assert_close(scores, torch.stack(alone), atol=1e-5, rtol=1e-4)


def test_a_fresh_head_spreads_normalised_features_by_one() -> None:
    features = torch.nn.functional.rms_norm(torch.randn(4000, 64, generator=torch.Generator().manual_seed(0)), (64,))
    spread = torch.stack([fresh_head(64, 1, seed)(features).detach().std() for seed in range(20)]).mean()
    assert float(spread) == pytest.approx(1, abs=0.05)
    head = fresh_head(64, 2, 0, bias=True)
    assert head.bias.tolist() == [0, 0] and not torch.equal(head.weight[0], head.weight[1])


def test_new_rows_leave_the_old_ones() -> None:
    for bias in (False, True):
        head = fresh_head(8, 1, 0, bias=bias)
        grown = with_rows(head, 3, 1)
        assert grown.weight.shape == (3, 8) and torch.equal(grown.weight[:1], head.weight)
        assert (grown.bias is not None) is bias


def test_features_are_read_at_the_last_token_of_each_row(folders: dict[str, Path]) -> None:
    network, _, has_head = load_network(folders["llama"])
    assert not has_head and network.head.in_features == WIDTH
    ids = torch.tensor([[8, 9, 10, 0], [8, 9, 10, 11]])
    found = network.features({"input_ids": ids, "attention_mask": (ids != 0).long()})
    hidden = network.backbone.model(
        input_ids=ids
    ).last_hidden_state  # causal: padding on the right changes nothing before
    torch.testing.assert_close(found, torch.stack([hidden[0, 2], hidden[1, 3]]))


def test_loading_changes_no_randomness_of_others(folders: dict[str, Path]) -> None:
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    load_network(folders["llama"], seed=5)
    assert torch.equal(torch.rand(1), expected)
