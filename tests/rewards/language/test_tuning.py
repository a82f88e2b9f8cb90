"""Which weights learn, and that what was trained beside the weights ends inside them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoModelForSequenceClassification, AutoTokenizer

from mmrlhf.errors import UserError
from mmrlhf.rewards.language.model import LanguageReward
from mmrlhf.rewards.language.network import ScoreNetwork, load_network
from mmrlhf.rewards.language.train import train_language
from mmrlhf.rewards.language.tuning import (
    checkpoint_gradients,
    choose_weights,
    text_blocks,
)
from mmrlhf.rewards.training.tuning import merge
from tests.rewards.language.pairs import colour_pairs, kind_pairs

HOW: dict[str, Any] = {"lora_rank": 2, "lora_alpha": None, "last_blocks": 1, "seed": 0}


def learning(network: ScoreNetwork) -> set[str]:
    return {name for name, value in network.named_parameters() if value.requires_grad}


def test_each_way_lets_its_own_weights_learn(folders: dict[str, Path]) -> None:
    for name in ("llama", "llava", "qwen", "bert"):
        network = load_network(folders[name]).network
        everything = {key for key, _ in network.named_parameters()}
        head = {key for key in everything if key.startswith("head.")}
        choose_weights(network, "full", **HOW)
        assert learning(network) == everything
        choose_weights(network, "head", **HOW)
        assert learning(network) == head
        choose_weights(network, "last", **HOW)
        blocks = {key for key in everything if (".layers.1." in key or ".layer.1." in key) and "vis" not in key}
        assert blocks and learning(network) == blocks | head, name


@pytest.mark.parametrize("name", ["llama", "llava"])
def test_a_lora_starts_as_nothing_and_is_merged(folders: dict[str, Path], name: str) -> None:
    network = load_network(folders[name]).network
    keys = set(network.state_dict())
    tokens = {"input_ids": torch.tensor([[8, 9, 10]]), "attention_mask": torch.ones(1, 3, dtype=torch.long)}
    before = network(tokens)
    choose_weights(network, "lora", **HOW)
    assert torch.equal(network(tokens), before)
    targets = {key.split(".lora_")[0].rpartition(".")[2] for key in learning(network) if "lora_" in key}
    assert targets == {"q_proj", "k_proj", "v_proj", "o_proj"}
    assert all("lora_" in key or key.startswith("head.") for key in learning(network))
    with torch.no_grad():
        for key, value in network.named_parameters():
            if "lora_" in key:
                value.normal_(0, 0.3)
    trained = network(tokens)
    assert (trained - before).abs().max() > 1e-3
    merge(network.backbone)
    assert set(network.state_dict()) == keys
    torch.testing.assert_close(network(tokens), trained, atol=1e-5, rtol=1e-4)


def test_a_merged_lora_is_a_plain_model_of_transformers(folders: dict[str, Path], tmp_path: Path) -> None:
    how: dict[str, Any] = {"tune": "lora", "epochs": 1, "learning_rate": 3e-2, "seed": 0, "progress": False}
    text = LanguageReward.from_pretrained(folders["llama"])
    train_language(kind_pairs(16, 0), [], text, **how).save(tmp_path / "text")
    model, found = AutoModelForSequenceClassification.from_pretrained(tmp_path / "text", output_loading_info=True)
    assert not found["missing_keys"] and not found["unexpected_keys"]
    chat = [{"role": "user", "content": "what is it"}, {"role": "assistant", "content": "a kind cat"}]
    tokens = AutoTokenizer.from_pretrained(tmp_path / "text").apply_chat_template(
        chat, return_tensors="pt", return_dict=True
    )
    torch.testing.assert_close(
        model(**tokens).logits[0], text.score(["what is it"], ["a kind cat"]), atol=1e-5, rtol=1e-4
    )
    seeing = LanguageReward.from_pretrained(folders["llava"])
    train_language(colour_pairs(tmp_path, 4, 0), [], seeing, **how).save(tmp_path / "seeing")
    _, found = AutoModelForImageTextToText.from_pretrained(tmp_path / "seeing", output_loading_info=True)
    assert not found["missing_keys"] and not found["unexpected_keys"]
    image = torch.rand(1, 3, 32, 32)
    loaded = LanguageReward.load(tmp_path / "seeing")
    torch.testing.assert_close(loaded(image, ["a cat"]), seeing(image, ["a cat"]), atol=0, rtol=0)


def test_a_lora_beside_16_bit_weights_is_float32(folders: dict[str, Path]) -> None:
    network = load_network(folders["llama"], dtype="bfloat16").network
    choose_weights(network, "lora", **HOW)
    assert {value.dtype for value in network.parameters() if value.requires_grad} == {torch.float32}
    for tune in ("last", "full"):
        with pytest.raises(UserError, match=f"--train {tune} got weights in torch.bfloat16, allowed is float32"):
            choose_weights(network, tune, **HOW)


def test_training_in_bfloat16_learns(folders: dict[str, Path]) -> None:
    reward = LanguageReward.from_pretrained(folders["llama"], dtype="bfloat16")
    lines: list[float] = []
    train_language(kind_pairs(64, 0), [], reward, tune="lora", epochs=4, learning_rate=3e-2, batch_size=16, seed=0,
                   bf16=True, progress=False, on_epoch=lambda line: lines.append(line["loss"]))  # fmt: skip
    assert lines[-1] < 0.6 * lines[0]
    assert {value.dtype for value in reward.network.backbone.parameters()} == {torch.bfloat16}


def test_checkpointed_blocks_are_computed_twice_and_forget_it(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    network = load_network(folders["llama"]).network
    choose_weights(network, "full", **HOW)
    calls: list[int] = []
    attention = network.backbone.model.layers[0].self_attn
    original = attention.forward

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return original(*args, **kwargs)

    monkeypatch.setattr(attention, "forward", counted)
    tokens = {"input_ids": torch.tensor([[8, 9, 10]]), "attention_mask": torch.ones(1, 3, dtype=torch.long)}
    end = checkpoint_gradients(network.backbone)
    network(tokens).sum().backward()
    assert len(calls) == 2
    assert not network.backbone.training and network.backbone.model.layers[0].training
    assert not attention.training  # so dropout stays off
    end()
    network(tokens).sum().backward()
    assert len(calls) == 3 and not network.backbone.model.layers[0].training


def test_what_cannot_be_chosen(folders: dict[str, Path]) -> None:
    network = load_network(folders["llama"]).network
    with pytest.raises(UserError, match="--last-blocks got 3, allowed is 1 to 2"):
        choose_weights(network, "last", **HOW | {"last_blocks": 3})
    with pytest.raises(UserError, match="--lora-rank got 0, allowed is 1 or more"):
        choose_weights(network, "lora", **HOW | {"lora_rank": 0})
    with pytest.raises(UserError, match="Linear has no list of blocks"):
        text_blocks(torch.nn.Linear(1, 1))
    plain = ScoreNetwork(torch.nn.Linear(1, 1), torch.nn.Linear(1, 1), sees_images=False)
    with pytest.raises(UserError, match="Linear has no linear layer named q_proj"):
        choose_weights(plain, "lora", **HOW)
    network.backbone.supports_gradient_checkpointing = False
    with pytest.raises(UserError, match="cannot checkpoint gradients: leave --gradient-checkpointing out"):
        checkpoint_gradients(network.backbone)
