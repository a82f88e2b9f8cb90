"""D3PO learns what its reward prefers, resumes as if never killed, and fits every family."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from diffusion.d3po import ranked, sample_pairs, step_loss
from diffusion.dpo import DPOConfig, train
from diffusion.policy import DiffusionPolicy
from diffusion.rollouts import select, single_steps
from diffusion.training import load_policy
from mmrlhf.errors import UserError
from mmrlhf.seeding import seeded
from tests.diffusion.helpers import Brightness, timeless, trained_weights
from tests.diffusion.test_policy import disturb
from tests.diffusion.test_preference_data import faithful
from tests.small_flow_models import small_pipeline
from tests.small_models import small_stable_diffusion


@pytest.fixture
def config(model: Path, tmp_path: Path) -> DPOConfig:
    (tmp_path / "prompts.txt").write_text("a cat\na dog\n")
    return DPOConfig(
        str(model), tmp_path / "run", method="d3po", prompts=tmp_path / "prompts.txt", reward="brightness", epochs=2,
        pairs_per_epoch=2, sample_batch_size=2, train_batch_size=2, num_steps=2, guidance_scale=1.0, lora_rank=2,
        learning_rate=1e-2, kl_samples=1, images_every=0, device="cpu",
    )  # fmt: skip


def test_it_learns_to_draw_brighter_pictures(
    config: DPOConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    faithful(monkeypatch)
    small_stable_diffusion(tmp_path / "v", prediction_type="v_prediction")
    config = replace(
        config, model=str(tmp_path / "v"), epochs=3, pairs_per_epoch=16, sample_batch_size=16, train_batch_size=16,
        num_steps=2, lora_rank=4, lora_targets="all", learning_rate=5e-3, beta=10.0, save_every=9,
    )  # fmt: skip
    first, *_, last = train(config, reward=Brightness()).metrics
    policy = DiffusionPolicy.load(config.model, lora=config.out, num_steps=2, guidance_scale=1.0, device="cpu")
    prompts = ["a cat", "a dog"] * 8
    after = policy.sample(prompts, seeded(9)).images.mean(dim=(1, 2, 3))
    with policy.reference():
        before = policy.sample(prompts, seeded(9)).images.mean(dim=(1, 2, 3))
    assert (after - before).mean() > 0.75 * before.std()  # the same noise; 1.3 to 2 of it with four seeds
    assert last["reward_mean"] > first["reward_mean"] and first["kl"] == 0 < last["kl"]


def test_killed_and_resumed_is_never_killed(config: DPOConfig, tmp_path: Path) -> None:
    whole = train(config, reward=Brightness())
    wanted = {
        "epoch",
        "samples",
        "seconds",
        "kl",
        "loss",
        "reward_mean",
        "implicit_accuracy",
        "implicit_margin",
        "pairs",
    }
    assert wanted <= whole.metrics[0].keys() and whole.metrics[0]["samples"] == 4

    def kill(score: torch.Tensor, calls: int) -> torch.Tensor:
        if calls == 4:  # two batches an epoch: in the middle of the last
            raise KeyboardInterrupt
        return score

    again = replace(config, out=tmp_path / "again")
    with pytest.raises(KeyboardInterrupt):
        train(again, reward=Brightness(kill))
    assert len((again.out / "metrics.jsonl").read_text().splitlines()) == 1
    assert timeless(train(replace(again, resume=True), reward=Brightness()).metrics) == timeless(whole.metrics)
    ended = trained_weights(again.out)
    assert all(weight.equal(ended[name]) for name, weight in trained_weights(config.out).items())


def test_two_images_of_a_prompt_start_from_the_same_noise(config: DPOConfig) -> None:
    policy = load_policy(config)
    rollout = sample_pairs(policy, ["a cat", "red", "a dog"], 2, seeded(0))
    assert rollout.prompts == ("a cat", "red", "a dog") * 2
    assert rollout.latents[:3, 0].equal(rollout.latents[3:, 0])
    assert not any(a.equal(b) for a, b in zip(rollout.next_latents[:3, 0], rollout.next_latents[3:, 0], strict=True))
    with torch.no_grad():
        torch.testing.assert_close(policy.log_prob(rollout), rollout.log_probs, atol=1e-5, rtol=0)


def test_the_better_of_each_pair_wins_and_ties_and_abstentions_are_left_out() -> None:
    winners, losers = ranked(torch.tensor([1.0, 5.0, 2.0, float("nan"), 3.0, 4.0, 2.0, 1.0]))
    assert (winners.tolist(), losers.tolist()) == ([4, 1], [0, 5])


def test_a_step_is_the_formula_of_the_paper(config: DPOConfig) -> None:
    """−log σ of β times the difference of log-ratios, from the means of the two Gaussians."""
    policy = load_policy(config)
    disturb(policy)
    rollout = sample_pairs(policy, ["a cat", "red"], 2, seeded(0))
    winners, losers, column = torch.tensor([2, 1]), torch.tensor([0, 3]), torch.tensor([[1], [0]])
    loss, figures = step_loss(
        policy, single_steps(rollout, torch.cat([winners, losers]), column.flatten().repeat(2)), 30.0
    )
    ratios = []
    for rows in (winners, losers):
        part = select(rollout, rows)
        with torch.no_grad():
            drawn, now, sigma = next(policy.each_step(part, column))
            with policy.reference():
                _, then, _ = next(policy.each_step(part, column))
        squares = (drawn - then).square().mean(dim=(1, 2, 3)) - (drawn - now).square().mean(dim=(1, 2, 3))
        ratios.append(squares / (2 * sigma**2))
    margins = 30.0 * (ratios[0] - ratios[1])
    torch.testing.assert_close(loss.detach(), -torch.nn.functional.logsigmoid(margins).mean(), atol=1e-4, rtol=1e-4)
    assert figures["implicit_margin"] == pytest.approx(margins.mean().item(), abs=1e-4)
    loss.backward()
    assert sum(float(weight.grad.abs().sum()) for weight in policy.parameters() if weight.grad is not None) > 0


@pytest.mark.parametrize("name", ["StableDiffusionXLPipeline", "StableDiffusion3Pipeline", "FluxPipeline"])
def test_every_family(config: DPOConfig, tmp_path: Path, name: str) -> None:
    small_pipeline(name, tmp_path / name)
    config = replace(config, model=str(tmp_path / name), size=64, guidance_scale=3.0, eta=0.7, num_steps=2)
    (line,) = train(replace(config, epochs=1), reward=Brightness()).metrics
    assert line["pairs"] == 2 and line["updates"] == 1 and line["grad_norm"] > 0


def test_a_reward_that_cannot_tell_them_apart_trains_nothing_and_says_so(
    config: DPOConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    config = replace(config, epochs=1)
    (line,) = train(config, reward=Brightness(lambda score, _: torch.zeros_like(score))).metrics
    assert (line["pairs"], line["ties"], line["updates"], line["problems"]) == (0, 2, 0, ["no winners"])
    assert "not learning (no winners) in epoch 0: in no pair did the reward" in capsys.readouterr().err
    start = load_policy(config).state_dict()
    assert all(weight.equal(start[name]) for name, weight in trained_weights(config.out).items())


def test_bad_input(config: DPOConfig, tmp_path: Path) -> None:
    small_pipeline("StableDiffusion3Pipeline", tmp_path / "sd3")
    with pytest.raises(UserError, match="--num-steps got 1, of which none has noise"):
        train(replace(config, model=str(tmp_path / "sd3"), num_steps=1, size=64), reward=Brightness())
    with pytest.raises(UserError, match="cannot read .*missing.txt"):
        train(replace(config, prompts=Path("missing.txt")), reward=Brightness())
    assert not config.out.exists()
    with pytest.raises(UserError, match="the reward .* not a finite number in epoch 0: check what the reward says"):
        train(config, reward=Brightness(lambda score, _: score * float("nan")))
