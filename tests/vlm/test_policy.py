"""Log-probabilities against the whole table of logits; answers that follow from rows and seed; the start; what is written."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForImageTextToText, AutoProcessor

from mmrlhf.errors import UserError
from mmrlhf.rewards.language.inputs import Row
from vlm import policy as module
from vlm.generate import GenerateConfig, generate
from vlm.policy import VisionLanguagePolicy

GENERATOR = torch.Generator().manual_seed(0)
ROWS = [
    Row("What is it?", "A cat here.", torch.rand(3, 40, 56, generator=GENERATOR)),
    Row("Where?", " no idea at all", torch.rand(3, 32, 32, generator=GENERATOR)),
    Row("Who?", "B", torch.rand(3, 64, 32, generator=GENERATOR)),
]


def moved(policy: VisionLanguagePolicy) -> VisionLanguagePolicy:
    """The policy after an update of some kind."""
    with torch.no_grad():
        for i, weight in enumerate(policy.parameters()):
            weight.add_(0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(i)))
    return policy


def brute_force(policy: VisionLanguagePolicy, row: Row, tokens: tuple[int, ...], temperature: float) -> torch.Tensor:
    """Log-probabilities of a single answer from the model's own full logits."""
    batch = policy.encode([row], [tokens])
    with torch.no_grad():
        logits = policy.network(**batch.inputs).logits[0].float() / temperature
    logits[:, policy.banned] = -torch.inf
    start = int(batch.starts[0])
    found = logits[start - 1 : start - 1 + len(tokens)].log_softmax(-1)
    return found.gather(1, torch.tensor(tokens).unsqueeze(1)).squeeze(1)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probs_equal_those_of_the_full_logits(
    model: str, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = moved(VisionLanguagePolicy.load(model, lora_rank=4))
    monkeypatch.setattr(module, "LOGITS_AT_ONCE", 5 * 270)  # five tokens or so at a time
    tokens = [policy.tokens(row).ids for row in ROWS]
    batch = policy.encode(ROWS)
    found = policy.score(batch, temperature=temperature, entropy=True)
    for i, row in enumerate(ROWS):
        expected = brute_force(policy, row, tokens[i], temperature)
        torch.testing.assert_close(found.log_probs[i, : len(expected)], expected, atol=1e-5, rtol=1e-4)
        assert (found.log_probs[i, len(expected) :] == 0).all() and (found.entropies[i, len(expected) :] == 0).all()
    assert (found.entropies[batch.mask] > 0).all() and found.states.shape[-1] == policy.width


def test_gradients_do_not_depend_on_how_many_logits_are_held(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    gradients = []
    for held in (2**24, 3 * 270):
        monkeypatch.setattr(module, "LOGITS_AT_ONCE", held)
        policy = moved(VisionLanguagePolicy.load(model, lora_rank=4))
        policy.log_probs(policy.encode(ROWS)).sum().backward()
        gradients.append([weight.grad for weight in policy.parameters()])
    for whole, parts in zip(*gradients, strict=True):
        torch.testing.assert_close(whole, parts, atol=1e-4, rtol=1e-3)


def test_gradient_checkpointing_changes_nothing(model: str) -> None:
    gradients = []
    for checkpointing in (False, True):
        policy = moved(VisionLanguagePolicy.load(model, lora_rank=4, gradient_checkpointing=checkpointing))
        policy.log_probs(policy.encode(ROWS)).sum().backward()
        gradients.append([weight.grad for weight in policy.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, recomputed, atol=1e-5, rtol=1e-4)


def test_answers_follow_from_rows_and_seed(model: str) -> None:
    policy = VisionLanguagePolicy.load(model)
    torch.manual_seed(5)
    first = policy.generate(ROWS, seed=1, max_new_tokens=8)
    torch.manual_seed(6)
    assert policy.generate(ROWS, seed=1, max_new_tokens=8) == first
    assert policy.generate(ROWS, seed=2, max_new_tokens=8).tokens != first.tokens
    assert all(len(tokens) == 8 or ended for tokens, ended in zip(first.tokens, first.ended, strict=True))


def test_the_likeliest_answer_has_the_likeliest_tokens(model: str) -> None:
    """The models' own settings, a penalty on repetitions for instance, do not come between policy and answer."""
    policy = VisionLanguagePolicy.load(model)
    answers = policy.generate(ROWS, seed=0, max_new_tokens=10, temperature=0.0)
    for row, tokens in zip(ROWS, answers.tokens, strict=True):
        batch = policy.encode([row], [tokens])
        with torch.no_grad():
            logits = policy.network(**batch.inputs).logits[0]
        logits[:, policy.banned] = -torch.inf
        start = int(batch.starts[0])
        assert logits[start - 1 : start - 1 + len(tokens)].argmax(-1).tolist() == list(tokens)


def test_sampled_tokens_occur_as_often_as_they_are_likely(small_llava: str) -> None:
    policy = VisionLanguagePolicy.load(small_llava)
    row = ROWS[0]
    drawn = policy.generate([row] * 400, seed=3, max_new_tokens=1).tokens
    assert not {token for tokens in drawn for token in tokens} & set(policy.banned)
    count = policy.network.get_output_embeddings().weight.shape[0]
    every = torch.tensor([token for token in range(count) if token not in policy.banned])
    batch = policy.encode([row] * len(every), [(int(token),) for token in every])
    probabilities = policy.log_probs(batch)[:, 0].exp()
    counts = torch.bincount(torch.tensor([tokens[0] for tokens in drawn]), minlength=count)[every]
    assert probabilities.sum() == pytest.approx(1, abs=1e-4)
    expected = 400 * probabilities
    kept = expected > 3
    spread = ((counts - expected)[kept].square() / expected[kept]).sum()
    assert spread < 2.5 * kept.sum(), "χ² of the counts"


@pytest.mark.parametrize("rank", [4, 0])
def test_the_reference_is_the_start(model: str, rank: int) -> None:
    policy = VisionLanguagePolicy.load(model, lora_rank=rank)
    batch = policy.encode(ROWS)
    with torch.no_grad():
        start = policy.log_probs(batch)
        moved(policy)
        assert not torch.allclose(policy.log_probs(batch), start)
        with policy.reference():
            torch.testing.assert_close(policy.log_probs(batch), start)
        after = policy.log_probs(batch)
    state = policy.state_dict()
    fresh = VisionLanguagePolicy.load(model, lora_rank=rank, seed=1)
    fresh.load_state_dict(state)
    with torch.no_grad():
        torch.testing.assert_close(fresh.log_probs(batch), after)
        with fresh.reference():
            torch.testing.assert_close(fresh.log_probs(batch), start)


def test_the_adapter_loads_with_plain_peft(model: str, tmp_path: Path) -> None:
    policy = moved(VisionLanguagePolicy.load(model, lora_rank=4))
    assert policy.save(tmp_path / "run") == tmp_path / "run"
    plain = PeftModel.from_pretrained(AutoModelForImageTextToText.from_pretrained(model), str(tmp_path / "run")).eval()
    batch = policy.encode(ROWS)
    with torch.no_grad():
        expected = policy.network(**batch.inputs).logits
        torch.testing.assert_close(plain(**batch.inputs).logits, expected, atol=1e-5, rtol=1e-4)
    again = VisionLanguagePolicy.load(model, adapter=tmp_path / "run")
    torch.testing.assert_close(again.log_probs(batch), policy.log_probs(batch).detach())
    merged = VisionLanguagePolicy.load(model, adapter=tmp_path / "run", lora_rank=2)  # goes on from it
    torch.testing.assert_close(merged.log_probs(batch).detach(), again.log_probs(batch), atol=1e-4, rtol=1e-3)


def test_half_of_an_adapter_is_one_of_half_the_alpha(small_llava: str, tmp_path: Path) -> None:
    policy = moved(VisionLanguagePolicy.load(small_llava, lora_rank=4))
    policy.save(tmp_path / "run")
    half = VisionLanguagePolicy.load(small_llava, adapter=tmp_path / "run", adapter_scale=0.5)
    merged = VisionLanguagePolicy.load(small_llava, adapter=tmp_path / "run", adapter_scale=0.5, lora_rank=2)
    file = tmp_path / "run" / "adapter_config.json"
    file.write_text(
        json.dumps(json.loads(file.read_text()) | {"lora_alpha": policy.model.peft_config["default"].lora_alpha / 2})
    )
    expected = VisionLanguagePolicy.load(small_llava, adapter=tmp_path / "run")
    batch = policy.encode(ROWS)
    torch.testing.assert_close(half.log_probs(batch), expected.log_probs(batch))
    torch.testing.assert_close(merged.log_probs(batch).detach(), expected.log_probs(batch), atol=1e-4, rtol=1e-3)
    assert not torch.allclose(half.log_probs(batch), policy.log_probs(batch))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"adapter_scale": 0.0}, "adapter.scale got 0.0, allowed is above 0; leave --adapter out for none of it"),
        (
            {"adapter_scale": 0.5, "adapter": None},
            "--adapter-scale got 0.5, but there is no --adapter: give one, or leave it out",
        ),
    ],
)
def test_a_scale_of_no_adapter_is_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    given: dict[str, Any] = {
        "model": "m",
        "prompts": tmp_path / "p",
        "out": tmp_path / "o",
        "adapter": tmp_path,
    } | change
    with pytest.raises(UserError, match=message):
        generate(GenerateConfig(**given))


def test_all_weights_load_with_plain_transformers(model: str, tmp_path: Path) -> None:
    policy = moved(VisionLanguagePolicy.load(model, lora_rank=0))
    frozen = [name for name, weight in policy.network.named_parameters() if not weight.requires_grad]
    assert frozen and all("vision_tower" in name or "visual" in name for name in frozen)
    where = policy.save(tmp_path / "run")
    plain = AutoModelForImageTextToText.from_pretrained(where).eval()
    AutoProcessor.from_pretrained(where)
    batch = policy.encode(ROWS)
    with torch.no_grad():
        torch.testing.assert_close(plain(**batch.inputs).logits, policy.network(**batch.inputs).logits)


def test_bad_models_are_told_in_one_line(small_llava: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="dtype got 'int8', allowed are float32, bfloat16"):
        VisionLanguagePolicy.load(small_llava, dtype="int8")
    with pytest.raises(UserError, match="dtype got 'bfloat16' with lora_rank 0, allowed is float32"):
        VisionLanguagePolicy.load(small_llava, dtype="bfloat16", lora_rank=0)
    with pytest.raises(UserError, match="no adapter in .*: give the --out folder of a run with a LoRA"):
        VisionLanguagePolicy.load(small_llava, adapter=tmp_path)
    with pytest.raises(UserError, match="model tiny-clip is a clip, allowed is"):
        VisionLanguagePolicy.load("tiny-clip")
    policy = VisionLanguagePolicy.load(small_llava, lora_rank=4)
    with pytest.raises(UserError, match="the checkpoint is that of another model"):
        policy.load_state_dict(VisionLanguagePolicy.load(small_llava, lora_rank=2).state_dict())


def test_bfloat16_answers_and_scores(model: str) -> None:
    policy = VisionLanguagePolicy.load(model, lora_rank=4, dtype="bfloat16")
    exact = VisionLanguagePolicy.load(model, lora_rank=4)
    batch = policy.encode(ROWS)
    with torch.no_grad():
        near = policy.log_probs(batch)
        assert near.dtype == torch.float32
        assert float((near - exact.log_probs(exact.encode(ROWS))).abs().mean()) < 0.2
    assert len(policy.generate(ROWS, seed=0, max_new_tokens=2).texts) == 3


def test_a_merged_lora_answers_as_one_beside_the_weights_and_leaves_them(small_llava: str) -> None:
    policy = moved(VisionLanguagePolicy.load(small_llava, lora_rank=4))
    before = {name: value.clone() for name, value in policy.model.state_dict().items()}
    batch = policy.encode(ROWS)
    expected = policy.log_probs(batch).detach()
    with module.merged(policy.model):
        weights = [own.get_base_layer().weight for own in policy.model.modules() if hasattr(own, "lora_A")]
        assert all(weight.numel() and not torch.equal(weight, value) for weight, value in zip(
            weights, [value for name, value in before.items() if name.endswith("base_layer.weight")], strict=True))  # fmt: skip
        torch.testing.assert_close(policy.log_probs(batch).detach(), expected, atol=1e-5, rtol=1e-4)
    after = policy.model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    with policy.reference(), module.merged(policy.model):
        start = VisionLanguagePolicy.load(small_llava)
        torch.testing.assert_close(policy.log_probs(batch), start.log_probs(batch), atol=1e-5, rtol=1e-4)
