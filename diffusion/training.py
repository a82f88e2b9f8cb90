"""A run that fine-tunes a text-to-image model: the core's, with pictures on the way, and the KL of denoising paths."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from diffusion.generate import generate_images
from diffusion.policy import DiffusionPolicy
from diffusion.prompts import tell_of_cut_prompts
from diffusion.tuning_config import MAY_DIFFER, TuningConfig
from mmrlhf import distributed
from mmrlhf.errors import UserError
from mmrlhf.images import grid, save_image
from mmrlhf.models import pick_device
from mmrlhf.runs import settings
from mmrlhf.sharding import asked_for
from mmrlhf.tracking import log_pictures
from mmrlhf.training import Stateful, TrainingRun, check_run
from mmrlhf.types import Rollout

GRID_IMAGES = 16
MEMORY_ADVICE = "add --gradient-checkpointing or --dtype bfloat16, or lower --size"
GRADIENT_ADVICE = "lower --learning-rate or --guidance-scale"
Run = TrainingRun[TuningConfig, DiffusionPolicy]


def begin(
    name: str,
    config: TuningConfig,
    prompts: Sequence[str],
    *,
    parts: Mapping[str, Stateful] | None = None,
    identity: Mapping[str, Any] | None = None,
    policy: DiffusionPolicy | None = None,
    on_epoch: Callable[[dict[str, Any]], None] | None = None,
) -> Run:
    """Take up the last checkpoint, or start. `identity` tells runs apart beside the config; `on_epoch` gets each line.

    UserError for a folder of another run (before a model is loaded here), or for --shard with too small batches.
    """
    wanted = settings(config, prompts) | dict(identity or {})
    check_run(config, wanted, MAY_DIFFER)
    if asked_for(config.shard):
        check_shard(config)
    run: Run = TrainingRun(
        name,
        config,
        load_policy(config) if policy is None else policy,
        wanted,
        may_differ=MAY_DIFFER,
        parts=parts,
        on_epoch=on_epoch,
        show=lambda epoch: save_samples(run, prompts, epoch),
        memory_advice=MEMORY_ADVICE,
        gradient_advice=GRADIENT_ADVICE,
    )
    if distributed.is_main_process():
        tell_of_cut_prompts(run.policy.family, prompts)
    return run


def check_shard(config: TuningConfig) -> None:
    """UserError where a process would have no sample to keep in step with."""
    drawn = getattr(config, "sample_batch_size", distributed.size())
    if drawn < distributed.size():
        raise UserError(
            f"--sample-batch-size got {drawn} for {distributed.size()} processes that share the weights, allowed are "
            f"{distributed.size()} or more"
        )


def save_samples(run: Run, prompts: Sequence[str], epoch: int) -> None:
    """The first prompts with noise that is the same each time, as OUT/samples/epoch-NNNN.png."""
    config = run.config
    shown = [prompts[i % len(prompts)] for i in range(GRID_IMAGES)]
    images = generate_images(run.policy, shown, seed=config.seed, batch_size=config.train_batch_size)
    if not distributed.is_main_process():  # it had to compute with its part of the weights
        return
    save_image(grid(images, columns=8), config.out / "samples" / f"epoch-{epoch:04d}.png")
    log_pictures(run.trackers, images, epoch)


def path_kl(policy: DiffusionPolicy, rollout: Rollout) -> float:
    """KL of the whole path to the start, nats: the mean over these samples, and those of other processes."""
    count = len(rollout.prompts)
    if policy.split and count == 0:  # the others need its part of the weights
        policy.kl_to_reference(blank(policy, rollout))
    own = count * float(policy.kl_to_reference(rollout)) if count else 0.0
    summed, samples = distributed.total(torch.tensor([own, count], dtype=torch.float64)).tolist()
    return summed / samples if samples else 0.0


def blank(policy: DiffusionPolicy, rollout: Rollout) -> Rollout:
    """A sample of zeros with as many steps as a rollout that has none."""
    steps = rollout.log_probs.shape[1]
    parts = [part.new_zeros(1, *part.shape[1:]) for part in rollout[1:]]
    made = Rollout(("",), *parts)
    return made._replace(timesteps=policy.sampler.timesteps[:steps].to(policy.device).unsqueeze(0))


def hold_to_budget(run: Run, rollout: Rollout, before: list[Any]) -> None:
    """Where the KL on these samples now exceeds the budget, take the updates since `before` back and stop."""
    if run.config.kl_budget is not None:
        run.hold_to_budget(path_kl(run.policy, rollout), before)


def load_reward(name: str, device: str) -> Callable[..., Tensor]:
    """The reward that `--reward` names, on the run's device where it can move. To be called before a run writes its folder."""
    from mmrlhf.rewards import load_reward as load

    distributed.join()  # which says on which GPU
    reward = load(name)
    return reward.to(pick_device(device)) if hasattr(reward, "to") else reward


def load_policy(config: TuningConfig) -> DiffusionPolicy:
    """The policy that a config asks for, at its start."""
    distributed.join()  # which says on which GPU
    return DiffusionPolicy.load(
        config.model,
        lora_rank=config.lora_rank,
        num_steps=config.num_steps,
        guidance_scale=config.guidance_scale,
        eta=config.eta,
        device=config.device,
        dtype=config.dtype,
        gradient_checkpointing=config.gradient_checkpointing,
        shard=asked_for(config.shard),
        compile=config.compile,
        channels_last=config.channels_last,
        attention=config.attention,
        lora_alpha=config.lora_alpha,
        lora_targets=config.lora_targets,
        size=config.size,
        seed=config.seed,
    )
