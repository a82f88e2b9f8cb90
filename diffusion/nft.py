"""DiffusionNFT: online reinforcement learning on the forward process (Zheng et al. 2025, https://arxiv.org/abs/2509.16117).

The loss is on the network's output, whatever it predicts: a flow's velocity as in the paper, or likewise ε or v.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from diffusion.diagnosis import diagnose_samples
from diffusion.diversity import DiversityWatch
from diffusion.draft import kl_sampling
from diffusion.families import Conditions
from diffusion.policy import DiffusionPolicy
from diffusion.rollouts import check_numbers, draw_prompts, own_rows, reward_figures, sample_and_rate, whole
from diffusion.sft import Latents, fit, kl_paths
from diffusion.training import begin, hold_to_budget, load_policy, load_reward, path_kl
from diffusion.tuning_config import TuningConfig, validate_tuning
from mmrlhf.config import check
from mmrlhf.data import read_prompts
from mmrlhf.runs import RunResult
from mmrlhf.seeding import seeded
from mmrlhf.sharding import exchange, like


@dataclass(frozen=True, kw_only=True)
class NFTConfig(TuningConfig):
    """Fine-tune a text-to-image model with DiffusionNFT: no log-probs, any sampler, no guidance."""

    prompts: Path
    """Text file with a training prompt a line."""
    reward: str
    """Folder that `mmrlhf reward train` wrote, or a reward's name."""
    guidance_scale: float = 1.0
    """Classifier-free guidance of sampling; the method needs none (1). Flux takes it as an input of its network."""
    eta: float = 0.0
    """Noise of the denoising steps; the method needs none."""
    strength: float = 1.0
    """The paper's β: how far the implicit positive and negative policies lie from the old one."""
    reward_scale: float = 1.0
    """The paper's Z, in standard deviations of the epoch's rewards: what a reward's distance to its prompt's mean counts by."""
    old_decay: float = 0.5
    """Most that the old policy keeps of itself at an epoch's end; 0 is on-policy."""
    old_decay_growth: float = 0.001
    """What it keeps grows by this each epoch, from 0 up to --old-decay."""
    samples_per_epoch: int = 64
    """Images drawn each epoch."""
    samples_per_prompt: int = 8
    """Images of each prompt drawn in an epoch."""
    sample_batch_size: int = 16
    """Images drawn at a time."""
    inner_epochs: int = 1
    """Passes over an epoch's samples, each with new noise."""


def validate(config: NFTConfig) -> None:
    """UserError for a value outside its range."""
    names = ("samples_per_epoch", "sample_batch_size", "inner_epochs", "kl_samples")
    validate_tuning(
        config, at_least_one=names, above_zero=("strength", "reward_scale"), not_negative=("old_decay_growth",)
    )
    check(config, "old_decay", lambda value: 0 <= value < 1, "0 up to, but not, 1")
    check(config, "samples_per_prompt", lambda value: value >= 2, "2 or more: samples of a prompt are compared")


class OldPolicy:
    """The trained weights as they were, slowly following: a dict of tensors, never a second model."""

    def __init__(self, policy: DiffusionPolicy) -> None:
        self.policy = policy
        self.weights = {name: weight.clone() for name, weight in policy.state_dict().items()}

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside, the policy is the old one; nothing is to be trained there."""
        self.swap()
        try:
            yield
        finally:
            self.swap()

    def swap(self) -> None:
        """Exchange the policy's weights with these."""
        for name, weight in self.policy.network.named_parameters():
            if name in self.weights:
                self.weights[name] = exchange(weight, self.weights[name])

    def follow(self, decay: float) -> None:
        """old ← decay · old + (1 − decay) · present."""
        for name, weight in self.policy.state_dict().items():
            self.weights[name].mul_(decay).add_(weight, alpha=1 - decay)

    def state_dict(self) -> dict[str, Tensor]:
        """The weights, for a checkpoint."""
        return self.weights

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take up what `state_dict` gave."""
        for name, weight in state.items():
            self.weights[name].copy_(like(weight, self.weights[name]))


def train(
    config: NFTConfig,
    *,
    reward: Callable[..., Tensor] | None = None,
    on_epoch: Callable[[dict[str, Any]], None] | None = None,
) -> RunResult:
    """Run the algorithm; `reward(images, prompts)` stands in for the one that `config.reward` names, `on_epoch` gets each line.

    Writes the folder that `NFTConfig.out` describes. `reward_mean` is of the old policy, which draws the epoch's samples, `kl`
    of the one that is trained, at the epoch's start. UserError where rewards or gradients are no longer numbers.
    """
    validate(config)
    prompts = read_prompts(config.prompts)
    reward = load_reward(config.reward, config.device) if reward is None else reward
    diversity = DiversityWatch(config.embedder)
    policy = load_policy(config)
    old = OldPolicy(policy)
    run = begin("nft", config, prompts, parts={"old": old}, policy=policy, on_epoch=on_epoch)
    for epoch in run.epochs():
        generator = seeded(config.seed, epoch)
        chosen = draw_prompts(prompts, config.samples_per_epoch, config.samples_per_prompt, generator)
        with old.in_place():
            rollout, rewards = sample_and_rate(policy, reward, chosen, config.sample_batch_size, generator)
        check_numbers(run, rollout, rewards, epoch)
        optimality = optimality_of(rewards, chosen, config.reward_scale)
        with kl_sampling(policy, config):
            measured = kl_paths(policy, config, chosen, epoch)
            kl, before = path_kl(policy, measured), run.snapshot()
        loss = partial(batch_loss, policy, old, optimality, config.strength)
        clean = whole(rollout.clean, own_rows(len(chosen), config.sample_batch_size), len(chosen))
        rows = torch.arange(len(chosen))
        figures = fit(run, clean, chosen, rows, loss, generator, epoch, config.inner_epochs)
        with kl_sampling(policy, config):
            hold_to_budget(run, measured, before)
        old.follow(min(config.old_decay, config.old_decay_growth * epoch))
        line = {"epoch": epoch, "samples": len(chosen), "seconds": run.seconds(), **reward_figures(rewards), "kl": kl}
        line |= diversity.figures(rollout)
        run.record(line | figures, diagnose_samples([*run.metrics, line]), ("reward_mean", "kl", "loss"))
    return run.close()


def batch_loss(
    policy: DiffusionPolicy,
    old: OldPolicy,
    optimality: Float[Tensor, " samples"],
    strength: float,
    rows: Int[Tensor, " n"],
    clean: Float[Tensor, "n c h w"],
    noise: Float[Tensor, "n c h w"],
    times: Float[Tensor, " n"],
    conditions: Conditions,
) -> tuple[Float[Tensor, ""], dict[str, float]]:
    """The loss of some rows of the epoch's samples."""
    noised, target = policy.forward.noised(clean, noise, times), policy.forward.target(clean, noise, times)
    with torch.no_grad(), old.in_place():
        before = policy.family.call(noised, times, conditions, policy.guidance_scale)
    output = policy.family.call(noised, times, conditions, policy.guidance_scale)
    return nft_loss(output, before, target, optimality[rows].to(output.device), strength)


def optimality_of(rewards: Float[Tensor, " b"], prompts: Sequence[str], scale: float) -> Float[Tensor, " b"]:
    """½ + ½ clip((r − prompt mean) / Z, −1, 1), Z = scale · std of all rewards; ½ where r is NaN or all are alike."""
    given = rewards.double()
    spread = float(given[given.isfinite()].std(correction=0)) * scale
    centred = torch.zeros_like(given)
    for prompt in dict.fromkeys(prompts):
        rows = torch.tensor([other == prompt for other in prompts])
        centred[rows] = (given[rows] - given[rows].nanmean()).nan_to_num(nan=0.0)
    return (0.5 + 0.5 * (centred / max(spread, 1e-6)).clamp(-1, 1)).to(rewards)


def nft_loss(
    output: Latents, old: Latents, target: Latents, optimality: Float[Tensor, " b"], strength: float
) -> tuple[Float[Tensor, ""], dict[str, float]]:
    """mean p‖v⁺ − v‖² + (1−p)‖v⁻ − v‖², v± = (1∓β)v_old ± βv_θ, norms as means over latent dimensions (Zheng et al. 2025).

    Metrics: `loss`; `output_change`, ‖v_θ − v_old‖² likewise.
    """
    positive = (1 - strength) * old + strength * output
    negative = (1 + strength) * old - strength * output
    good, bad = ((guess - target).square().mean(dim=(1, 2, 3)) for guess in (positive, negative))
    loss = (optimality * good + (1 - optimality) * bad).mean()
    return loss, {"loss": float(loss.detach()), "output_change": float((output - old).detach().square().mean())}
