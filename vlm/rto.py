"""Reinforced Token Optimization of a vision-language model (Zhong et al. 2024, https://arxiv.org/abs/2404.18922).

A policy that direct preference optimization trained tells by log π_dpo − log π_ref what each token is worth. PPO learns from
that, with or without a reward of the whole answer at its end (their section 4).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from mmrlhf.config import check
from mmrlhf.errors import UserError
from mmrlhf.rewards.language.inputs import Row
from mmrlhf.runs import CONTENT, RunResult, content_digest, run_settings
from vlm.answer_rewards import AnswerReward, Judgement
from vlm.loading import ADAPTER, load_adapter
from vlm.policy import VisionLanguagePolicy
from vlm.ppo import Sampled, begin_actor_critic, judged_tokens, learn_epoch, sample
from vlm.ppo_config import PPOConfig
from vlm.ppo_config import validate as validate_ppo
from vlm.preference_data import read_prompts, told
from vlm.rollouts import Measured, Rollout, encoded
from vlm.segment_reward import load_answer_reward
from vlm.training import load_policy
from vlm.twin import twin_start

WHOLE = "model"  # where a run of all weights writes


@dataclass(frozen=True, kw_only=True)
class RTOConfig(PPOConfig):
    """Fine-tune a vision-language model on its own answers, a DPO policy telling what each token is worth: RTO."""

    dpo: Path
    """Folder that mmrlhf vlm dpo or dense-dpo wrote, from the model (and --adapter) that this run starts from."""
    dpo_weight: float = 0.05
    """What a token earns is this times log π_dpo − log π_ref."""
    dpo_clip: float = 0.0
    """A token earns and loses at most this by that; 0 is no limit, the authors' code has 0.05."""
    reward: str = ""
    """Folder of a trained reward, module:function or file.py:function, that judges answers beside the DPO policy; left out is
    none."""
    reward_weight: float = 1.0
    """What that reward is multiplied by."""
    reward_clip: float = 10.0
    """A token gets at least minus and at most this from it, before the weight; 0 is no limit."""
    reward_at: Literal["segments", "end"] = "end"
    """segments: the last token of each part that the reward judged gets that part's reward; end: the answer's last token gets
    everything."""
    beta: float = 0.01
    """Each token loses this times log π − log π_ref: how strongly the policy is held to the start."""


def validate(config: RTOConfig) -> None:
    """UserError for a value outside its range."""
    validate_ppo(config)
    check(config, "dpo_weight", lambda value: value > 0, "above 0: without it this is vlm ppo")
    for name in ("dpo_clip", "reward_weight", "reward_clip"):
        check(config, name, lambda value: value >= 0, "0 or more")


def train(
    config: RTOConfig,
    *,
    reward: AnswerReward | None = None,
    on_epoch: Callable[[dict[str, Any]], None] | None = None,
) -> RunResult:
    """Run the algorithm; `reward` stands in for the one that `config.reward` names, `on_epoch` gets each line of metrics.

    A line is PPO's, and `dpo_reward_mean`, what the DPO policy gives an answer; without a reward `reward_mean` is that too.
    UserError where rewards or gradients are no longer numbers: the last checkpoint stays as it is.
    """
    validate(config)
    prompts = read_prompts(config.prompts)
    check_dpo(config)
    judge = judge_of(config, reward)
    digest = content_digest(config.dpo, (*CONTENT["adapter"], f"{WHOLE}/*.safetensors", "*.safetensors"))
    policy = load_policy(config, [*told(prompts), digest])
    dpo = load_dpo(config, policy)
    actor = begin_actor_critic("rto", config, policy, prompts, judge or unjudged, on_epoch, data=[digest])
    for epoch in actor.run.epochs():
        sampled = sample(actor, epoch)
        implied = implied_rewards(dpo, sampled.rollout, sampled.old, config)
        judged = judged_tokens(policy, sampled.rollout, config)
        figures = implied_figures(implied, sampled, alone=judge is None)
        learn_epoch(actor, sampled, implied + config.reward_weight * limited(judged, config.reward_clip), epoch,
                    figures=figures)  # fmt: skip
    return actor.run.close()


def judge_of(config: RTOConfig, reward: AnswerReward | None) -> AnswerReward | None:
    """Who judges whole answers, if anybody."""
    return load_answer_reward(config.reward, config.device) if reward is None and config.reward else reward


def unjudged(rows: Sequence[Row]) -> list[Judgement]:
    """A reward that has nothing to say."""
    return [Judgement(()) for _ in rows]


def check_dpo(config: RTOConfig) -> None:
    """UserError where --dpo names no weights, or those of a run that began from another adapter: its ratios would say nothing."""
    if (config.dpo / ADAPTER[0]).is_file():
        found = run_settings(config.dpo)
        theirs = found.get("adapter_sha256", "") if "lora_rank" in found else None  # None: copied without its run
        ours = content_digest(config.adapter, CONTENT["adapter"]) if config.adapter else ""
        if theirs is not None and theirs != ours:
            raise unfitting(
                config, f"it began from the adapter {found.get('adapter')}, this run begins from {config.adapter}"
            )
    elif not list(whole_model(config.dpo).glob("*.safetensors")):
        raise unfitting(config, "it holds no weights")


def load_dpo(config: RTOConfig, policy: VisionLanguagePolicy) -> VisionLanguagePolicy:
    """The policy in the folder that --dpo names, frozen; a LoRA lies beside the weights of `policy`, which has not learnt yet.

    UserError where it does not fit the model.
    """
    try:
        if (config.dpo / ADAPTER[0]).is_file():
            return VisionLanguagePolicy(load_adapter(twin_start(policy), config.dpo, merge=False), policy.reader)
        found = VisionLanguagePolicy.load(str(whole_model(config.dpo)), device=config.device, dtype=config.dtype)
    except UserError as error:
        raise unfitting(config, str(error)) from error
    if type(found.network) is not type(policy.network) or found.tokenizer.get_vocab() != policy.tokenizer.get_vocab():
        raise unfitting(config, "it is another model, or has another vocabulary")
    return found


def whole_model(folder: Path) -> Path:
    """Where a run of all weights left them, or the folder itself."""
    return folder / WHOLE if (folder / WHOLE).is_dir() else folder


def unfitting(config: RTOConfig, why: str) -> UserError:
    """The error for a --dpo that is of no use here."""
    return UserError(
        f"--dpo got '{config.dpo}', allowed is the --out folder of mmrlhf vlm dpo or dense-dpo on the model of this run ({why})"
    )


@torch.no_grad()
def implied_rewards(
    dpo: VisionLanguagePolicy, rollout: Rollout, old: Measured, config: RTOConfig
) -> Float[Tensor, "b t"]:
    """`dpo_weight` · (log π_dpo − log π_ref) of each token, within `dpo_clip`; 0 outside the mask."""
    found = torch.zeros_like(old.reference)
    lengths = old.mask.sum(dim=1)
    for places in lengths.argsort(stable=True).split(config.sample_batch_size):
        log_probs = dpo.log_probs(encoded(dpo, rollout, places), temperature=config.temperature).cpu()
        width = log_probs.shape[1]
        found[places, :width] = log_probs - old.reference[places, :width]
    return limited(config.dpo_weight * found, config.dpo_clip)


def limited(values: Float[Tensor, "b t"], limit: float) -> Float[Tensor, "b t"]:
    """Within ± the limit; 0 is none."""
    return values.clamp(-limit, limit) if limit else values


def implied_figures(implied: Float[Tensor, "b t"], sampled: Sampled, *, alone: bool) -> dict[str, float]:
    """What the DPO policy gives the rated answers, also as the reward where it is the only one."""
    summed = implied.sum(dim=1)[sampled.rated]
    mean, spread = float(summed.mean()), float(summed.std(correction=0))
    return {"dpo_reward_mean": mean} | ({"reward_mean": mean, "reward_std": spread} if alone else {})
