"""What `label_savings` learns from: pictures of tiny-sd with simulated raters, and emoji with people's own sentiment counts."""

import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int

from benchmarks.emosent import outcomes, read_labelled, soft_labels
from diffusion.generate import generate_images
from diffusion.policy import DiffusionPolicy
from mmrlhf.quickstart.candidates import read_prompts
from mmrlhf.rewards.encoders.cache import encode_images
from mmrlhf.rewards.encoders.clip import load_backbone
from mmrlhf.simulate import RATERS, Rater, simulate_preferences
from mmrlhf.store import Task
from mmrlhf.taste import taste
from selection.pair_features import pair_differences

COLUMNS, WHITENINGS = 64, (0.0, 0.5, 1.0)
PROMPTS, PICTURES, POOL_PROMPTS = 240, 8, 120
EMOJI_POOL, EMOJI_TEST, KNOWN_EMOJI = 3400, 6000, 300
CARELESS = tuple(Rater(r.name, 3 * r.noise, r.tie_threshold, r.random_share + 0.2) for r in RATERS)


class World(NamedTuple):
    """A seed's pool and test: differences of features (one a whitening), the answer to each pair, who is preferred in truth."""

    pool: list[Float[np.ndarray, "n d"]]
    answers: Float[np.ndarray, " n"]
    test: list[Float[np.ndarray, "t d"]]
    truth: Float[np.ndarray, " t"]


def features_of(
    raw: Float[np.ndarray, "n f"], known: Int[np.ndarray, " k"], pairs: Sequence[Int[np.ndarray, "_ 2"]]
) -> list[list[Float[np.ndarray, "_ d"]]]:
    """For each list of pairs, their differences in the principal components of the `known` pictures, at each whitening.

    The components are scaled by variance^(-whitening/2), and then together, to a mean square of 1 a known picture.
    """
    centred = raw - raw[known].mean(axis=0)
    values, vectors = np.linalg.eigh(centred[known].T @ centred[known] / len(known))
    values, vectors = values[::-1][:COLUMNS], vectors[:, ::-1][:, :COLUMNS]
    result: list[list[Any]] = [[] for _ in pairs]
    for whitening in WHITENINGS:
        rows = centred @ (vectors * values ** (-whitening / 2))
        rows /= np.sqrt((rows[known] ** 2).sum(axis=1).mean())
        for part, which in zip(result, pairs, strict=True):
            part.append(pair_differences(rows, which))
    return result


def within(groups: Int[np.ndarray, " g"]) -> Int[np.ndarray, "p 2"]:
    """All pairs of pictures of the same prompt."""
    first, second = np.triu_indices(PICTURES, 1)
    start = groups[:, None] * PICTURES
    return np.stack([(start + first).ravel(), (start + second).ravel()], axis=1)


def picture_world(
    features: Float[np.ndarray, "n f"],
    gold: Float[np.ndarray, " n"],
    seed: int,
    *,
    raters: Sequence[Rater] = RATERS,
    redundant: bool = False,
) -> World:
    """Pairs of pictures of a prompt, one rating each by one of the raters; other prompts are the test, by the noise-free taste.

    A `redundant` pool has as many pairs, drawn with replacement from prompts of popularity 1/rank: half of the
    pairs are about 8 of the prompts, and many are there several times.
    """
    random = np.random.default_rng(seed)
    order = random.permutation(PROMPTS)
    pool, test = within(order[:POOL_PROMPTS]), within(order[POOL_PROMPTS:])
    if redundant:
        popularity = np.repeat(1 / np.arange(1, POOL_PROMPTS + 1), len(pool) // POOL_PROMPTS)
        pool = pool[random.choice(len(pool), size=len(pool), p=popularity / popularity.sum())]
    tasks = [Task("a picture", (str(i), str(j))) for i, j in pool.tolist()]
    scores = {str(i): float(score) for i, score in enumerate(gold)}
    generator = torch.Generator().manual_seed(seed)
    said = simulate_preferences(tasks, scores, raters, generator, overlap=1)
    z, held_out = features_of(features, np.unique(pool), [pool, test])
    return World(z, np.array([answer.label for answer in said]), held_out, gold[test[:, 0]] - gold[test[:, 1]])


def people_world(
    features: Float[np.ndarray, "n f"],
    counts: Int[np.ndarray, "n 3"],
    seed: int,
    *,
    one: bool = False,
    new: bool = False,
) -> World:
    """Pairs of emoji; half of each emoji's labels give the answers, the other half, other people's, the test.

    An answer says which of the two the first half feels more positive about; with `one`, what a single label of each says (the
    same label: a tie). The test is by other pairs of the same emoji, or of `new` emoji.
    """
    random = np.random.default_rng(seed)
    order = random.permutation(len(counts))
    known, unseen = (order[:KNOWN_EMOJI], order[KNOWN_EMOJI:]) if new else (order, order)
    asked = np.stack([random.multivariate_hypergeometric(own, own.sum() // 2) for own in counts])
    pairs, test = (np.stack(np.triu_indices(len(part), 1), axis=1) for part in (known, unseen))
    pairs, test = known[random.permutation(pairs)], unseen[random.permutation(test)]
    pool, test = pairs[:EMOJI_POOL], test[:EMOJI_TEST] if new else pairs[EMOJI_POOL : EMOJI_POOL + EMOJI_TEST]
    first, second = pool.T
    answers = 0.5 + np.sign(soft_labels(asked)[first, second] - 0.5) / 2
    if one:
        wins, ties = (table[first, second] for table in outcomes(asked))
        point = random.random(len(pool))
        answers = np.where(point < wins, 1.0, np.where(point < wins + ties, 0.5, 0.0))
    truth = soft_labels(counts - asked)[test[:, 0], test[:, 1]] - 0.5
    test, truth = test[truth != 0], truth[truth != 0]
    z, held_out = features_of(features, known, [pool, test])
    return World(z, answers, held_out, truth)


def emoji_names(paths: Sequence[Path]) -> list[str]:
    """The Unicode name of each drawing, by the code points that its file is named after."""
    return [
        " ".join(unicodedata.name(chr(int(code, 16)), "") for code in path.stem.split("-")).lower() for path in paths
    ]


def drawn_pictures(first: int, count: int) -> Float[torch.Tensor, "n 3 h w"]:
    """PICTURES of tiny-sd for each of `count` prompts, from the `first` on in a drawn order of all."""
    prompts = read_prompts("tiny-sd")
    order = np.random.default_rng(0).permutation(len(prompts))[first : first + count]
    policy = DiffusionPolicy.load("tiny-sd", num_steps=10, guidance_scale=1.0)
    return generate_images(
        policy, [prompts[i] for i in order], seed=first, images_per_prompt=PICTURES, batch_size=48, progress=True
    )


def embedded(out: Path) -> dict[str, tuple[Float[np.ndarray, "n f"], Any]]:
    """What a head sees of each picture, and the hidden taste; of each emoji (drawing and name), and people's counts.

    Kept in `out`. The drawings' colours do not matter to people, so that of those only the embedding is seen.
    """
    file = out / "features.npz"
    if not file.exists():
        out.mkdir(parents=True, exist_ok=True)
        backbone, labelled = load_backbone("tiny-clip"), read_labelled(20)
        drawings = encode_images(backbone, labelled.paths, 64, progress=True)[:, : backbone.embedding_width]
        emoji = torch.cat([drawings, backbone.embed_prompts(emoji_names(labelled.paths))], dim=1)
        images = drawn_pictures(0, PROMPTS)
        with torch.no_grad():
            pictures = torch.cat([backbone.image_features(backbone.preprocess(part)) for part in images.split(64)])
        kept = {"pictures": pictures, "taste": taste(images), "emoji": emoji}
        partial_file = file.with_suffix(".part.npz")
        np.savez(partial_file, counts=labelled.counts, **{name: value.numpy() for name, value in kept.items()})
        partial_file.replace(file)
    with np.load(file) as kept:
        return {
            "pictures": (kept["pictures"].astype(np.float64), kept["taste"].astype(np.float64)),
            "people": (kept["emoji"].astype(np.float64), kept["counts"]),
        }


@dataclass(frozen=True)
class Source:
    """How a seed's world is made, from which of `embedded`'s data, and which strategies are tried there beside the usual ones."""

    title: str
    data: str
    make: Callable[..., World]
    more: tuple[str, ...] = ()


UNSEEN = ("distance", "D-optimal, answers unseen", "V-optimal, answers unseen")
SOURCES = {
    "pictures": Source("tiny-sd's pictures, simulated raters", "pictures", picture_world, UNSEEN),
    "redundant": Source("the same, redundant pool", "pictures", partial(picture_world, redundant=True), UNSEEN),
    "careless": Source("the same, careless raters", "pictures", partial(picture_world, raters=CARELESS)),
    "people": Source("emoji, people's counts, other people", "people", people_world, UNSEEN),
    "people-one": Source("the same, one person's label of each", "people", partial(people_world, one=True)),
    "people-new": Source("people's counts, new emoji", "people", partial(people_world, new=True)),
}
