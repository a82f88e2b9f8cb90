"""Implicit language Q-learning on judged answers (Snell et al. 2022, https://arxiv.org/abs/2206.11871).

Nothing is generated: heads on the model's states learn what each token of given answers is worth, and the model to imitate these.
At decoding the values shift the model's logits (`vlm.value_heads`). The maths is in `mmrlhf.implicit_q`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from tqdm import tqdm

from mmrlhf.config import check
from mmrlhf.distributed import is_main_process
from mmrlhf.errors import UserError
from mmrlhf.figures import Figures
from mmrlhf.implicit_q import implicit_q_loss
from mmrlhf.rl import SMALL_SPREAD
from mmrlhf.runs import RunResult, settings
from mmrlhf.seeding import seeded
from mmrlhf.training import Loss, TrainingRun
from vlm.judged_answers import Judged, read_judged, told_judged
from vlm.losses import token_nll
from vlm.policy import VisionLanguagePolicy
from vlm.preference_data import hold_out, rows_that_fit, told
from vlm.rollouts import token_weighted
from vlm.token_rewards import Where, token_rewards
from vlm.training import MEMORY_ADVICE, load_policy, own_batches, own_part, updates_before, warm_up
from vlm.tuning_config import MAY_DIFFER, TuningConfig, check_no_kl_budget, validate_tuning
from vlm.value_heads import ValueHeads


@dataclass(frozen=True, kw_only=True)
class ILQLConfig(TuningConfig):
    """Learn from judged answers what each token is worth, and answer by it: implicit language Q-learning."""

    data: Path
    """Lines {"prompt", "image", "answer", "reward"}; or SEGMENTS.jsonl, of which a correct part earns 1, a misleading one -1."""
    unmarked_correct: bool = False
    """What no span covers is correct, as where people mark only what is wrong."""
    reward_at: Where = "segments"
    """segments: the last token of each marked part gets that part's reward; end: the answer's last token gets everything."""
    discount: float = 0.99
    """What a reward one token later is worth."""
    expectile: float = 0.7
    """Which expectile of Q the value of a state is: 0.5 what the answers got on average, near 1 what the best of them did."""
    conservative_weight: float = 0.1
    """Of the term that keeps low what the answers did not try."""
    imitation_weight: float = 1.0
    """Of minus the mean log-probability of the answers' tokens."""
    target_rate: float = 0.005
    """How far the slow copies of Q, which V learns from and decoding follows, move to it after an update.

    trlX moves them by 0.001 every 5 updates, for runs of many thousands; in some hundreds they would hardly leave their start.
    """
    value_weight: float = 1.0
    """How strongly decoding follows the values (the paper's beta), unless it is told otherwise."""
    validation: float = 0.05
    """Share of the prompts (about an image) that are held out of training, to measure on; 0 is none."""
    epochs: int = 10
    """Passes over the answers."""
    learning_rate: float = 1e-4
    """Of AdamW, after a warm-up constant, for the heads too; all weights take a tenth to a hundredth of a LoRA's."""


class TokenAnswers(NamedTuple):
    """Answers as tokens, with the reward of each token; 0 where there is none."""

    answers: list[Judged]
    tokens: list[tuple[int, ...]]
    rewards: Float[Tensor, "n t"]


class ValuedPolicy:
    """A policy and its heads, which learn together (a `mmrlhf.training.Tunable`)."""

    def __init__(self, policy: VisionLanguagePolicy, heads: ValueHeads, value_weight: float) -> None:
        self.policy, self.heads, self.value_weight = policy, heads, value_weight

    @property
    def device(self) -> torch.device:
        """Where both compute."""
        return self.policy.device

    def parameters(self) -> list[nn.Parameter]:
        """What training changes; the slow copies follow by themselves."""
        return self.policy.parameters() + [weight for weight in self.heads.parameters() if weight.requires_grad]

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"policy": self.policy.state_dict(), "heads": self.heads.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what `state_dict` gave."""
        self.policy.load_state_dict(state["policy"])
        self.heads.load_state_dict(state["heads"])

    def save(self, out: Path) -> Path:
        """Write the weights as the policy does, and the heads beside them."""
        where = self.policy.save(out)
        self.heads.save(where, self.value_weight)
        return where


def validate(config: ILQLConfig) -> None:
    """UserError for a value outside its range."""
    validate_tuning(
        config, not_negative=("conservative_weight", "imitation_weight", "value_weight"), up_to_one=("discount",)
    )
    check(config, "expectile", lambda value: 0 < value < 1, "above 0 and below 1")
    check(config, "target_rate", lambda value: 0 < value <= 1, "above 0 up to 1")
    check(config, "validation", lambda value: 0 <= value < 1, "0 up to, but not, 1")
    check_no_kl_budget(config)


def train(config: ILQLConfig, *, on_epoch: Callable[[dict[str, Any]], None] | None = None) -> RunResult:
    """Passes over the answers; figures are those of `implicit_q_loss` and `nll`, `validation_…` those of held-out answers.

    UserError where a gradient is no number: the last checkpoint stays as it is.
    """
    validate(config)
    answers = read_judged(config.data, unmarked_correct=config.unmarked_correct)
    data = told([each.row for each in answers]) + told_judged(answers)
    policy = load_policy(config, data)
    fits = rows_that_fit(policy, [each.row for each in answers], config.too_long)
    kept = [each for each, right in zip(answers, fits, strict=True) if right]
    if not kept:
        raise UserError(f"no answer of {config.data} fits into {policy.reader.max_length} tokens: shorten them")
    given = as_tokens(policy, kept, config)  # before the run claims its folder, as in sft
    size = config.train_batch_size
    valued = ValuedPolicy(policy, ValueHeads.fresh(policy, seeded(config.seed, 1)), config.value_weight)
    run = TrainingRun("ilql", config, valued, settings(config, data), may_differ=MAY_DIFFER,
                      on_epoch=on_epoch, memory_advice=MEMORY_ADVICE)  # fmt: skip
    learnt, held = hold_out([each.unit for each in kept], config.validation, config.seed)
    for epoch in run.epochs():
        seen, norms = Figures(), []
        order = torch.tensor(learnt)[torch.randperm(len(learnt), generator=seeded(config.seed, epoch))]
        with tqdm(total=len(order), desc="train", unit="answer", leave=False, disable=not is_main_process()) as bar:
            for number, places in enumerate(order.split(size), start=updates_before(epoch, len(order), size)):
                warm_up(run, number)
                run.learn(own_part(places), loss_of(valued, given, config, places), len(places), seen, bar)
                norms.append(run.update(epoch))
                valued.heads.follow(config.target_rate)
        line: dict[str, Any] = {"epoch": epoch, "answers": len(order), "too_long": len(answers) - len(kept)}
        line |= rewards_of(given, learnt) | a_token(seen)
        line |= {"grad_norm": sum(norms) / len(norms), "updates": len(norms)}
        if held:
            line |= held_out_figures(valued, given, config, torch.tensor(held))
        run.record(line | {"seconds": run.seconds()}, problems(line), ("loss", "q_loss", "value"))
    return run.close()


def as_tokens(policy: VisionLanguagePolicy, answers: Sequence[Judged], config: ILQLConfig) -> TokenAnswers:
    """Each answer's tokens, its end mark with them, and their rewards."""
    tokens = [policy.tokens(each.row) for each in answers]
    rewards = torch.zeros(len(answers), max(len(own.ids) for own in tokens))
    for row, own, each in zip(rewards, tokens, answers, strict=True):
        row[: len(own.ids)] = torch.tensor(token_rewards(each.judgement, own.offsets, config.reward_at))
    return TokenAnswers(list(answers), [own.ids for own in tokens], rewards)


def loss_of(
    valued: ValuedPolicy, given: TokenAnswers, config: ILQLConfig, places: Int[Tensor, " n"]
) -> Callable[[Tensor], Loss]:
    """The loss of some of an update's answers, in which each token counts alike; figures a token, times tokens."""
    lengths = torch.tensor([len(tokens) for tokens in given.tokens])
    whole = float(lengths[places].float().mean())
    return partial(token_weighted, partial(batch_loss, valued, given, config), lengths, whole)


def batch_loss(
    valued: ValuedPolicy,
    given: TokenAnswers,
    config: ILQLConfig,
    tokens_per_answer: float,
    places: Int[Tensor, " b"],
) -> Loss:
    """The loss of some answers, a mean over their tokens."""
    rows = places.tolist()
    batch = valued.policy.encode([given.answers[i].row for i in rows], [given.tokens[i] for i in rows], share=True)
    scored = valued.policy.score(batch)
    found = valued.heads.of_tokens(scored.states[batch.mask], batch.answers[batch.mask])
    q, log_sum_exp = (at_tokens(each, batch.mask) for each in (found.q, found.log_sum_exp))
    slow, values = at_tokens(torch.stack([found.target_q, found.values]), batch.mask)
    loss, figures = implicit_q_loss(
        q, log_sum_exp, slow, values, given.rewards[places, : batch.mask.shape[1]].to(batch.mask.device), batch.mask,
        expectile=config.expectile, discount=config.discount, conservative_weight=config.conservative_weight,
    )  # fmt: skip
    imitation, _ = token_nll(scored.log_probs, batch.mask)
    loss = loss + config.imitation_weight * imitation
    return loss, {"loss": float(loss.detach()), "nll": float(imitation.detach())} | figures


def at_tokens(values: Float[Tensor, "k n"], mask: Bool[Tensor, "b t"]) -> Float[Tensor, "k b t"]:
    """What the tokens of `mask` have, one after the other, at their places; 0 elsewhere."""
    table = torch.zeros(len(values), *mask.shape, device=values.device)
    return table.masked_scatter(mask.unsqueeze(0).expand_as(table), values)


@torch.no_grad()
def held_out_figures(
    valued: ValuedPolicy, given: TokenAnswers, config: ILQLConfig, held: Int[Tensor, " n"]
) -> dict[str, float]:
    """The loss and its parts on answers that were held out, of which each process reads a part."""
    seen, loss = Figures(), loss_of(valued, given, config, held)
    for places in own_batches(held, config.micro_batch_size or config.train_batch_size):
        seen.add(len(places), loss(places)[1])
    return {f"validation_{name}": value for name, value in a_token(seen).items()}


def a_token(seen: Figures) -> dict[str, float]:
    """Figures that were weighed by tokens, as means over tokens."""
    figures = seen.means()
    tokens = figures.pop("tokens")
    return {name: value / tokens for name, value in figures.items()}


def rewards_of(given: TokenAnswers, learnt: Sequence[int]) -> dict[str, float]:
    """Mean and spread of the answers' rewards."""
    worth = given.rewards[list(learnt)].double().sum(dim=1)
    return {"reward_mean": float(worth.mean()), "reward_std": float(worth.std(correction=0))}


def problems(line: dict[str, Any]) -> dict[str, str]:
    """Why a run does not learn, where it shows."""
    found = {}
    if line["reward_std"] <= SMALL_SPREAD * max(1.0, abs(line["reward_mean"])):
        found["flat reward"] = (
            f"all answers have nearly the same reward ({line['reward_mean']:.4g} ± {line['reward_std']:.1g}), so that no token "
            "is worth more than another: give better and worse answers"
        )
    return found
