"""Second and third stage: which pairs to ask about, and the answers, through the store that the rating app writes."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mmrlhf.data import Pair
from mmrlhf.errors import UserError
from mmrlhf.images import load_images
from mmrlhf.models import resolve_model
from mmrlhf.quickstart.run import QuickstartConfig, Run
from mmrlhf.rewards.clip import CLIPReward
from mmrlhf.rewards.training.fit import fit_reward
from mmrlhf.simulate import RATERS, simulate_preferences
from mmrlhf.sockets import bind
from mmrlhf.store import Store, Task
from mmrlhf.taste import taste
from mmrlhf.types import Images, Preference

IMAGE_SIZE = 64
PHASES = {"first": 0, "second": 1, "held_out": 2, "random": 3}
ASKED = ("first", "second", "held_out")  # the phases that people see, in order


def check_port(config: QuickstartConfig) -> None:
    """UserError where the address of the rating app cannot be had; without people as raters it is not needed."""
    if config.rater == "human":
        bind(config.host, config.port).close()


def rate_first_pairs(run: Run) -> dict[str, Any]:
    """The first third of the pairs: nothing is known yet, so the most different ones."""
    chosen = choose(run, run.config.pairs // 3, scores=None, taken=[])
    return ask(run, chosen, phase="first")


def rate_second_pairs(run: Run) -> dict[str, Any]:
    """The other pairs: those on which an ensemble trained on the first answers disagrees, spread out."""
    first = run.result("rate-first")["pairs"]
    scores = None
    if any(pair["labels"] for pair in first):  # else all were skipped, and still nothing is known
        prompts = [row["prompt"] for row in run.result("generate")["train"]]
        scores = fit(run, first).members(pictures(run, "train"), prompts)
    chosen = choose(run, run.config.pairs - len(first), scores, taken=[tuple(pair["rows"]) for pair in first])
    result = ask(run, chosen, phase="second")
    check_answers([*first, *result["pairs"]], prompts=2)  # one to learn from, one to calibrate on
    return result


def rate_held_out_pairs(run: Run) -> dict[str, Any]:
    """Random pairs of held-out pictures, to measure agreement; never trained on."""
    rows = run.result("generate")["held_out"]
    candidates = within_prompt_pairs([row["prompt"] for row in rows])
    order = torch.randperm(len(candidates), generator=run.generator(5))[: run.config.held_out_pairs]
    pairs = [{"rows": list(candidates[i]), "why": "random", "gain": 0.0} for i in order.tolist()]
    result = ask(run, pairs, phase="held_out")
    check_answers(result["pairs"], prompts=1)
    return result


def check_answers(pairs: Sequence[dict[str, Any]], prompts: int) -> None:
    """UserError unless the pairs of so many prompts have answers: too many were skipped to go on."""
    answered = {pair["prompt"] for pair in pairs if pair["labels"]}
    if len(answered) < prompts:
        raise UserError(
            f"prompts of which a pair has an answer: got {len(answered)}, allowed is {prompts} or more: begin anew in "
            "another --out, and skip less"
        )


def within_prompt_pairs(prompts: Sequence[str]) -> list[tuple[int, int]]:
    """Every pair of row numbers that share a prompt."""
    count = len(prompts)
    return [(i, j) for i in range(count) for j in range(i + 1, count) if prompts[i] == prompts[j]]


def pictures(run: Run, split: str) -> Images:
    """All candidate pictures of a split, in order."""
    return load_images([run.folder / row["image"] for row in run.result("generate")[split]], IMAGE_SIZE)


def choose(
    run: Run, budget: int, scores: Float[Tensor, "members rows"] | None, taken: Sequence[tuple[int, int]]
) -> list[dict[str, Any]]:
    """`budget` pairs of training pictures: diverse, and uncertain where an ensemble's `scores` are given."""
    from selection.embed import Embedder
    from selection.pairs import choose_pairs
    from selection.uncertainty import bald

    prompts = [row["prompt"] for row in run.result("generate")["train"]]
    candidates = torch.tensor([pair for pair in within_prompt_pairs(prompts) if pair not in set(taken)])
    embedded = torch.as_tensor(Embedder(run.config.backbone)(pictures(run, "train")))
    difference = embedded[candidates[:, 0]] - embedded[candidates[:, 1]]
    names = {prompt: number for number, prompt in enumerate(dict.fromkeys(prompts))}
    choice = choose_pairs(
        difference,
        None if scores is None else bald(scores[:, candidates[:, 0]] - scores[:, candidates[:, 1]]),
        budget,
        per_prompt_cap=max(2, 2 * budget // run.config.train_prompts + 1),
        prompt_ids=torch.tensor([names[prompts[i]] for i in candidates[:, 0].tolist()]),
        generator=run.generator(3 if scores is None else 4),
    )
    return [
        {"rows": candidates[index].tolist(), "why": why, "gain": float(gain)}
        for index, why, gain in zip(choice.indices, choice.why, choice.gains, strict=True)
    ]


def ask(run: Run, pairs: list[dict[str, Any]], phase: str) -> dict[str, Any]:
    """Put the pairs before the raters, through the store; the result holds every pair with its labels."""
    split = "held_out" if phase == "held_out" else "train"
    rows = run.result("generate")[split]
    tasks = [
        Task(rows[i]["prompt"], (rows[i]["hash"], rows[j]["hash"]), priority=float(-number), why=pair["why"])
        for number, pair in enumerate(pairs)
        for i, j in [pair["rows"]]
        if rows[i]["hash"] != rows[j]["hash"]
    ]
    store = Store(run.store_url)
    try:
        store.add_items({row["hash"]: (run.folder.resolve() / row["image"], row["prompt"]) for row in rows})
        store.add_tasks(tasks)
        if run.config.rater == "simulated":
            store.add_many(simulated_answers(run, tasks, phase))
        else:
            ask_people(run, store, tasks, phase)
        preferences = store.preferences()
    finally:
        store.close()
    prompts = [{"prompt": rows[pair["rows"][0]]["prompt"]} for pair in pairs]
    return {
        "pairs": [pair | prompt | answers(pair, rows, preferences) for pair, prompt in zip(pairs, prompts, strict=True)]
    }


def simulated_answers(run: Run, tasks: Sequence[Task], phase: str) -> list[Preference]:
    """What the simulated raters say; their shared taste is read off the pictures here and nowhere else before evaluation."""
    split = "held_out" if phase == "held_out" else "train"
    rows = run.result("generate")[split]
    gold = taste(pictures(run, split))
    scores = {row["hash"]: float(value) for row, value in zip(rows, gold, strict=True)}
    return simulate_preferences(tasks, scores, RATERS, run.generator(10 + PHASES[phase]))


def ask_people(run: Run, store: Store, tasks: Sequence[Task], phase: str) -> None:
    """Open the rating app until each of the tasks has an answer, or was skipped and nobody else takes it."""
    from apps.rate import serve_until

    number = ASKED.index(phase) + 1
    print(f"phase {number} of {len(ASKED)}: {len(tasks)} pairs to rate", flush=True)
    more_to_come = number < len(ASKED)
    serve_until(store, tasks, host=run.config.host, port=run.config.port, more_to_come=more_to_come)


def answers(pair: dict[str, Any], rows: list[dict[str, Any]], preferences: Sequence[Preference]) -> dict[str, Any]:
    """The labels of one pair (weight of its first picture) and who gave them; none where everybody skipped it."""
    first, second = (rows[row] for row in pair["rows"])
    labels, annotators = [], []
    for preference in preferences:
        if preference.prompt == first["prompt"] and set(preference.items) == {first["hash"], second["hash"]}:
            labels.append(preference.label if preference.items[0] == first["hash"] else 1 - preference.label)
            annotators.append(preference.annotator)
    return {"labels": labels, "annotators": annotators}


def labelled_pairs(run: Run, pairs: Sequence[dict[str, Any]], split: str = "train") -> list[Pair]:
    """One `Pair` a rating, as the reward's trainer takes them; none for a pair without labels."""
    rows = run.result("generate")[split]
    return [
        Pair(rows[i]["prompt"], run.folder / rows[i]["image"], run.folder / rows[j]["image"], label)
        for pair in pairs
        for i, j in [pair["rows"]]
        for label in pair["labels"]
    ]


def fit(run: Run, pairs: Sequence[dict[str, Any]]) -> CLIPReward:
    """An ensemble of reward heads on the frozen CLIP backbone, trained on the pairs' ratings."""
    model = resolve_model(run.config.backbone)
    return fit_reward(labelled_pairs(run, pairs), model, seed=run.config.seed, progress=False)
