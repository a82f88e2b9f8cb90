"""Which pairs to ask people about: those an ensemble disagrees on, spread over what pairs can differ in and over prompts."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm

from mmrlhf.errors import UserError
from selection.groups import Limit


class PairChoice(NamedTuple):
    """Pair numbers in the order of choice, why each was chosen, and its uncertainty^strength × distance^strength then."""

    indices: list[int]
    why: list[str]
    gains: list[float]


def candidate_pairs(prompt_ids: Int[Tensor, " n"]) -> Int[Tensor, "p 2"]:
    """Every pair (i, j), i < j, of items of the same prompt, in ascending order."""
    rows = []
    for prompt in prompt_ids.unique():
        rows.append(torch.combinations((prompt_ids == prompt).nonzero().flatten()))
    pairs = torch.cat(rows) if rows else torch.empty(0, 2, dtype=torch.long)
    return pairs[(pairs[:, 0] * max(1, len(prompt_ids)) + pairs[:, 1]).argsort()]


def choose_pairs(
    pair_embeddings: Float[Tensor, "p d"],
    scores: Float[Tensor, " p"] | None,
    budget: int,
    *,
    per_prompt_cap: int,
    prompt_ids: Int[Tensor, " p"],
    generator: torch.Generator,
    diversity: float = 1.0,
    top_share: float = 0.5,
    limit: Limit | None = None,
    asked: Float[Tensor, "a d"] | None = None,
) -> PairChoice:
    """`budget` pairs, at most `per_prompt_cap` a prompt: greedily the largest score × distance^`diversity`.

    `pair_embeddings` are differences of two items' embeddings; z and -z are the same pair, so the distance between two is
    min(|z - y|, |z + y|), and the pair of two equal items (z = 0) counts as asked: what differs little teaches little.
    `scores` ≥ 0 say how uncertain the answer is (`bald`); None, before there is any scorer, leaves k-center on the
    differences. With scores, the most uncertain `top_share` come first, the rest only when the caps exhaust those.
    `diversity` 0 ranks by score alone. Of equals, `generator` draws. Pairs chosen earlier, `asked`, are kept away from, too.
    `limit` is a further rule, which may end the choice before the budget. UserError where the caps leave too few pairs.
    """
    check_request(pair_embeddings, scores, budget, per_prompt_cap, prompt_ids)
    count = len(pair_embeddings)
    order = torch.randperm(
        count, generator=generator
    )  # from here on in drawn order, so that the first of equals is a draw
    z, prompts = pair_embeddings[order].double(), prompt_ids[order].unique(return_inverse=True)[1]
    weight = torch.ones(count, dtype=torch.double) if scores is None else scores[order].double()
    rank = weight.argsort(descending=True, stable=True).argsort()  # 0 is the most uncertain
    first = rank < max(budget, round(top_share * count)) if scores is not None else torch.ones(count, dtype=torch.bool)
    squared = near = z.square().sum(1)
    for before in [] if asked is None else asked.double():
        near = nearer(near, z, squared, before)
    free = torch.ones(count, dtype=torch.bool)
    chosen = torch.zeros(len(prompts), dtype=torch.long)
    choice = PairChoice([], [], [])
    for left in tqdm(range(budget, 0, -1), desc="pairs", disable=None, delay=2):
        free &= chosen[prompts] < per_prompt_cap
        open_now = free if limit is None else free & torch.from_numpy(limit.allows(left))[order]
        if not open_now.any():
            break
        pool = (open_now & first if (open_now & first).any() else open_now).nonzero().flatten()
        distance = near[pool].sqrt()
        gain = weight[pool] * distance**diversity
        gain = gain if gain.max() > 0 else distance  # nothing is uncertain here: spread out
        at = int(gain.argmax())
        best = int(pool[at])
        choice.indices.append(int(order[best]))
        choice.gains.append(float(gain[at]))
        choice.why.append(explain(scores is not None, float(weight[best]), int(rank[best]), count, float(distance[at])))
        free[best] = False
        chosen[prompts[best]] += 1
        if limit is not None:
            limit.take(choice.indices[-1])
        near = nearer(near, z, squared, z[best])
    return choice


def nearer(
    near: Float[Tensor, " p"], z: Float[Tensor, "p d"], squared: Float[Tensor, " p"], other: Float[Tensor, " d"]
) -> Float[Tensor, " p"]:
    """The squared distances `near` with one more pair to be near to, or to its swap."""
    return torch.minimum(near, (squared + other.square().sum() - 2 * (z @ other).abs()).clamp(min=0))


def explain(scored: bool, uncertainty: float, rank: int, count: int, distance: float) -> str:
    """Why a pair was chosen, in words that a report can show."""
    different = f"differs by {distance:.3g} from every pair chosen before"
    if not scored:
        return f"diverse: {different}"
    return f"uncertain: {uncertainty:.3g} (number {rank + 1} of {count}), and {different}"


def check_request(
    pair_embeddings: Float[Tensor, "p d"],
    scores: Float[Tensor, " p"] | None,
    budget: int,
    per_prompt_cap: int,
    prompt_ids: Int[Tensor, " p"],
) -> None:
    """UserError for values that nothing can be chosen by, or a budget that the pairs and caps do not allow."""
    if not pair_embeddings.isfinite().all():
        raise UserError("the pair embeddings hold NaN or infinity: leave such pairs out")
    if scores is not None and not (scores.isfinite().all() and (scores >= 0).all()):
        raise UserError("the uncertainties hold NaN, infinity or values below 0: leave such pairs out")
    available = int(prompt_ids.unique(return_counts=True)[1].clamp(max=max(0, per_prompt_cap)).sum())
    if not 1 <= budget <= available:
        raise UserError(
            f"got budget {budget}, allowed is 1 to {available}: {len(prompt_ids)} pairs, at most {per_prompt_cap} a prompt"
        )
