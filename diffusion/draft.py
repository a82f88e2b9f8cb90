"""Fine-tuning by the gradient of a differentiable reward through the denoising steps.

DRaFT-K and DRaFT-LV (Clark et al. 2023, https://arxiv.org/abs/2309.17400), AlignProp (Prabhudesai et al. 2023,
https://arxiv.org/abs/2310.03739), ReFL (Xu et al. 2023, https://arxiv.org/abs/2304.05977; without its pre-training loss).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from tqdm import tqdm

from diffusion.draft_config import DRaFTConfig, validate
from diffusion.families import Conditions
from diffusion.noise import Generators, gaussian, own_share
from diffusion.policy import DiffusionPolicy
from diffusion.rollouts import draw_prompts, one_each, own_rows, reward_figures, sample_epoch, whole
from diffusion.sampling import Sampler, column
from diffusion.training import Run, begin, hold_to_budget, load_reward, path_kl
from diffusion.tuning_config import TuningConfig
from mmrlhf.data import read_prompts
from mmrlhf.distributed import is_main_process, own_part, total
from mmrlhf.errors import UserError
from mmrlhf.figures import Figures
from mmrlhf.runs import RunResult
from mmrlhf.seeding import seeded

Latents = Float[Tensor, "b c h w"]
LATE_SHARE = 0.25  # ReFL stops in the last 10 of 40 steps


def train(
    config: DRaFTConfig,
    *,
    reward: Callable[..., Tensor] | None = None,
    on_epoch: Callable[[dict[str, Any]], None] | None = None,
) -> RunResult:
    """Run the method; `reward(images, prompts)` stands in for the one that `config.reward` names, `on_epoch` gets each line.

    Writes the folder that `DRaFTConfig.out` describes. In a line of metrics, `kl` is of the policy at the epoch's start, and
    `reward_mean` of the samples trained on, between which the policy is updated. UserError where the reward is not
    differentiable (nothing is written then), has no gradient, or is no number: the last checkpoint stays as it is.
    """
    validate(config)
    prompts = read_prompts(config.prompts)
    reward = load_reward(config.reward, config.device) if reward is None else reward
    check_differentiable(reward, config.reward)
    run = begin("draft", config, prompts, on_epoch=on_epoch)
    for epoch in run.epochs():
        generator = seeded(config.seed, epoch)
        chosen = draw_prompts(prompts, config.samples_per_epoch, 1, generator)
        with kl_sampling(run.policy, config):
            paths = chosen[: config.kl_samples]
            measured = sample_epoch(run.policy, paths, len(paths), seeded(config.seed, epoch, 1))
            kl, before = path_kl(run.policy, measured), run.snapshot()
        rewards, figures = improve(run, reward, chosen, config, generator, epoch)
        with kl_sampling(run.policy, config):
            hold_to_budget(run, measured, before)
        line = {"epoch": epoch, "samples": len(chosen), "seconds": run.seconds(), **reward_figures(rewards), "kl": kl}
        run.record(
            line | figures, {} if figures["updates"] else all_reached(config, rewards), ("reward_mean", "kl", "loss")
        )
    return run.close()


def check_differentiable(reward: Callable[..., Tensor], name: str) -> None:
    """UserError where gradients do not reach the images."""
    if not getattr(reward, "differentiable", False):
        raise UserError(
            f"--reward got '{name}', which is not differentiable: allowed are rewards with gradients in the images, such as "
            "tiny-clip, brightness, or a folder of `mmrlhf reward train`; for others use mmrlhf diffusion ddpo or grpo"
        )


@contextmanager
def sampling_with(policy: DiffusionPolicy, sampler: Sampler) -> Iterator[None]:
    """Inside, the policy's steps are those of `sampler`."""
    own, policy.sampler = policy.sampler, sampler
    try:
        yield
    finally:
        policy.sampler = own


def kl_sampling(policy: DiffusionPolicy, config: TuningConfig) -> AbstractContextManager[None]:
    """Inside, steps have the noise of --eta, or of eta 1 where that is 0: without noise there is no KL to the start."""
    steps = max(2, config.num_steps)
    return sampling_with(policy, policy.family.sampler(steps, config.eta or 1.0, policy.latent_shape))


def improve(
    run: Run,
    reward: Callable[..., Tensor],
    prompts: Sequence[str],
    config: DRaFTConfig,
    generator: torch.Generator,
    epoch: int,
) -> tuple[Float[Tensor, " b"], dict[str, float]]:
    """Draw a sample for each prompt and follow the gradient of its reward, a batch at a time: the rewards, and figures."""
    seen, norms, given = Figures(), [], []
    advice = "check what the reward says to pictures such as those in samples/"
    with tqdm(total=len(prompts), desc="train", leave=False, unit="image", disable=not is_main_process()) as bar:
        for group in torch.arange(len(prompts)).split(config.train_batch_size * config.gradient_accumulation):
            teaching = False
            for batch in group.split(config.train_batch_size):
                chosen = [prompts[row] for row in batch.tolist()]
                drawn, last = drawn_rewards(run.policy, reward, chosen, config, generator)
                rewards = drawn[: len(own_part(len(batch)))]
                given.append(rewards.detach().cpu())
                rated = int((~rewards.isnan()).sum())
                if rewards.isinf().any():
                    raise run.not_a_number("the reward", epoch, advice)
                bar.update(len(batch))
                if not rated:
                    if run.policy.split:  # the others need its part of the weights
                        (0.0 * drawn.nan_to_num(0.0).sum()).backward()
                    continue
                loss, figures = loss_of(rewards, config)
                (loss * rated / len(group)).backward()
                seen.add(rated, figures | {"steps_with_gradient": float(last)})
                teaching |= figures.get("reached", 0.0) < 1
            if total(torch.tensor(float(teaching))) > 0:
                norms.append(run.update(epoch))
                if norms[-1] == 0:
                    raise no_gradient()
    rewards = whole(torch.cat(given), own_rows(len(prompts), config.train_batch_size), len(prompts))
    missing = int(rewards.isnan().sum())
    if 2 * missing > len(rewards):
        raise run.not_a_number(f"the reward ({missing} of {len(rewards)} are NaN)", epoch, advice)
    norm = sum(norms) / len(norms) if norms else 0.0
    return rewards, seen.means() | {"grad_norm": norm, "updates": len(norms)}


def all_reached(config: DRaFTConfig, rewards: Float[Tensor, " b"]) -> dict[str, str]:
    """The problem of an epoch of ReFL in which no sample taught anything: rewards of a scale that the target is not of."""
    lowest, median = (float(rewards.nanquantile(share)) for share in (0.0, 0.5))
    return {
        "target reached": (
            f"every sample's reward was at or above --refl-target {config.refl_target:g} (lowest {lowest:.3g}, median "
            f"{median:.3g}), so nothing was trained: raise --refl-target above the rewards"
        )
    }


def loss_of(rewards: Float[Tensor, " b"], config: DRaFTConfig) -> tuple[Float[Tensor, ""], dict[str, float]]:
    """The method's loss."""
    if config.method == "refl":
        return refl_loss(rewards, config.refl_weight, config.refl_target)
    return reward_loss(rewards)


def drawn_rewards(
    policy: DiffusionPolicy,
    reward: Callable[..., Tensor],
    prompts: Sequence[str],
    config: DRaFTConfig,
    generator: torch.Generator,
) -> tuple[Float[Tensor, " own"], int]:
    """Draw a sample for each prompt as the method does: rewards with gradients, and how many steps they pass.

    Of several processes each draws its `own_share` of the batch.
    """
    share = own_share(generator, len(prompts))
    own = prompts[share.rows.start : share.rows.stop]
    context, count, last = policy.context(own), len(policy.sampler.timesteps), 1
    noise = gaussian((len(own), *policy.latent_shape), share, policy.device)
    if config.method == "refl":
        stop = int(torch.randint(int(count * (1 - LATE_SHARE)), count, (), generator=generator))
        samples = [jump(policy, noise, context, stop, share)]
    elif config.method == "draft-lv":
        with torch.no_grad():
            clean = denoise(policy, noise, context, range(count), share)
        samples = [renoised(policy, clean, context, share) for _ in range(config.renoisings)]
    else:
        last = config.steps_with_gradient
        if config.method == "alignprop":
            last = int(torch.randint(1, count + 1, (), generator=generator))
        samples = [truncated(policy, noise, context, last, share)]
    scores = [score(policy, reward, sample, own, config.gradient_checkpointing) for sample in samples]
    return torch.stack(scores).mean(dim=0), last


def denoise(
    policy: DiffusionPolicy, latents: Latents, context: Conditions, steps: range, generator: Generators
) -> Latents:
    """The latents after these steps of the sampler (numbers from 0, the noisiest)."""
    for number in steps:
        timesteps = policy.sampler.timesteps[number].to(policy.device).expand(len(latents))
        at = policy.sampler.coefficients(timesteps)
        output = policy.predict(latents, policy.sampler.times(timesteps), context)
        latents = policy.sampler.mean(output, latents, at)
        if at.sigma.any():
            latents = latents + column(at.sigma) * gaussian(latents.shape, generator, policy.device)
    return latents


def truncated(
    policy: DiffusionPolicy, noise: Latents, context: Conditions, last: int, generator: Generators
) -> Latents:
    """The final latents, with gradients through the `last` steps (DRaFT-K)."""
    count = len(policy.sampler.timesteps)
    with torch.no_grad():
        latents = denoise(policy, noise, context, range(count - last), generator)
    return denoise(policy, latents, context, range(count - last, count), generator)


def renoised(policy: DiffusionPolicy, clean: Latents, context: Conditions, generator: Generators) -> Latents:
    """The sample noised to the last step, and that step made again with gradients (DRaFT-LV)."""
    count = len(policy.sampler.timesteps)
    times = policy.sampler.times(policy.sampler.timesteps[-1:].to(policy.device)).float().expand(len(clean))
    latents = policy.forward.noised(clean, gaussian(clean.shape, generator, policy.device), times)
    return denoise(policy, latents, context, range(count - 1, count), generator)


def jump(policy: DiffusionPolicy, noise: Latents, context: Conditions, stop: int, generator: Generators) -> Latents:
    """x̂_0 with gradients from the latents before step `stop` (ReFL)."""
    with torch.no_grad():
        latents = denoise(policy, noise, context, range(stop), generator)
    timesteps = policy.sampler.timesteps[stop].to(policy.device).expand(len(latents))
    times = policy.sampler.times(timesteps)
    return policy.forward.clean(policy.predict(latents, times, context), latents, times.float())


def score(
    policy: DiffusionPolicy,
    reward: Callable[..., Tensor],
    latents: Latents,
    prompts: Sequence[str],
    checkpointed: bool = False,
) -> Float[Tensor, " b"]:
    """The rewards of decoded latents, with gradients save for the samples with NaN. UserError where they have none."""
    if checkpointed:
        images = checkpoint(policy.decode_with_gradients, latents, use_reentrant=False)
    else:
        images = policy.decode_with_gradients(latents)
    scores = one_each(reward(images, tuple(prompts)), len(prompts))
    rated = ~scores.isnan()
    if rated.any() and not scores.requires_grad:
        raise no_gradient()
    # 0 times the infinite derivative behind a NaN is NaN, and would reach every weight
    images.register_hook(lambda gradient: gradient.where(rated.view(-1, 1, 1, 1).to(gradient.device), 0.0))
    return scores.float()


def reward_loss(rewards: Float[Tensor, " b"]) -> tuple[Float[Tensor, ""], dict[str, float]]:
    """−mean reward, of those that are not NaN (at least one)."""
    loss = -rewards[~rewards.isnan()].mean()
    return loss, {"loss": float(loss.detach())}


def refl_loss(
    rewards: Float[Tensor, " b"], weight: float = 1e-3, target: float = 2.0
) -> tuple[Float[Tensor, ""], dict[str, float]]:
    """weight · mean relu(target − reward), of those that are not NaN (at least one); `reached` is the share of loss 0."""
    rated = rewards[~rewards.isnan()]
    loss = weight * (target - rated).relu().mean()
    return loss, {"loss": float(loss.detach()), "reached": float((rated >= target).float().mean())}


def no_gradient() -> UserError:
    """The error that ends a run whose reward teaches nothing."""
    return UserError(
        "the reward gives no gradient: it is constant, or all pixels are at 0 or 1; give --reward one that changes with the "
        "image, or use mmrlhf diffusion ddpo"
    )
