"""`mmrlhf reward calibrate`: the temperature at which a reward's probabilities come true, and the tie threshold."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from scipy.optimize import minimize_scalar
from scipy.special import expit

from mmrlhf.answers import read_comparisons
from mmrlhf.calibration import ece
from mmrlhf.errors import UserError
from mmrlhf.models import pick_device
from mmrlhf.rewards import load_trained
from mmrlhf.rewards.clip import CLIPReward
from mmrlhf.rewards.evaluation.measures import nll, tie_credits
from mmrlhf.rewards.evaluation.scored_pairs import pair_margins
from mmrlhf.rewards.language.model import LanguageReward

TIE_THRESHOLDS = tuple(step / 10 for step in range(11))
RANGE = 1e3  # how far the temperature may be from the root mean square of the margins, either way


@dataclass(frozen=True)
class CalibrateConfig:
    """Fit temperature and tie threshold on pairs that the reward was not trained on; they are kept in its reward.json."""

    reward: Path
    """Folder that `mmrlhf reward train` wrote."""
    data: Path
    """PAIRS.jsonl, or ANSWERS.jsonl for a reward that reads."""
    batch_size: int = 32
    """Images scored at a time."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 …"""


def calibrate(config: CalibrateConfig) -> CLIPReward | LanguageReward:
    """Fit both, rewrite reward.json, return the calibrated reward."""
    pairs = [pair for pair in read_comparisons(config.data) if pair.has_label]
    if not pairs:
        raise UserError(f"no pair of {config.data} has a label: give pairs that somebody judged")
    reward = load_trained(config.reward).to(pick_device(config.device))
    margins = pair_margins(reward, pairs, batch_size=config.batch_size, progress=True)
    if not np.isfinite(margins).all():
        raise UserError(f"the reward in {config.reward} gives scores that are not numbers: train it again")
    labels = np.array([pair.label_0 for pair in pairs])
    change = fit_temperature(margins, labels)
    fitted = reward.with_temperature(reward.temperature * change, fit_tie_threshold(expit(margins / change), labels))
    fitted.save_settings(config.reward)
    print(
        f"temperature {reward.temperature:.4g} → {fitted.temperature:.4g}, tie threshold {fitted.tie_threshold:g}; on these "
        f"{len(pairs)} pairs NLL {nll(margins, labels):.4f} → {nll(margins / change, labels):.4f}, ECE "
        f"{ece(expit(margins), labels):.3f} → {ece(expit(margins / change), labels):.3f}: {config.reward}"
    )
    return fitted


def fit_temperature(margins: torch.Tensor | np.ndarray, labels: torch.Tensor | np.ndarray) -> float:
    """The T > 0 that minimises the NLL of σ(margin / T) on `labels` (weights of the first item). Guo et al. 2017.

    Where the best T is 0 or infinite (all labels on the right side; no better than chance), the end of its range: the
    margins' root mean square divided or multiplied by `RANGE`. Margins that are all 0 give 1.
    """
    m, y = (
        np.asarray(v.detach().cpu() if isinstance(v, torch.Tensor) else v, float).ravel() for v in (margins, labels)
    )
    if not len(m) or len(m) != len(y) or not np.isfinite(m).all() or not ((y >= 0) & (y <= 1)).all():
        raise UserError(
            f"a temperature got {len(m)} margins and {len(y)} labels, allowed are as many finite margins as labels from 0 to 1"
        )
    unit = float(np.sqrt(np.mean(m**2)))
    if unit == 0:
        return 1.0
    m = m / unit  # and the NLL is convex in 1 / T, with one minimum, so that a bounded search finds it
    found = minimize_scalar(
        lambda log_t: nll(m / np.exp(log_t), y), bounds=(-np.log(RANGE), np.log(RANGE)), method="bounded",
        options={"xatol": 1e-6},
    )  # fmt: skip
    return unit * float(np.exp(found.x))


def fit_tie_threshold(probabilities: Float[np.ndarray, " n"], labels: Float[np.ndarray, " n"]) -> float:
    """The threshold of {0, 0.1, …, 1} with the best agreement, the smallest of equals (Kirstain et al. 2023)."""
    return max(TIE_THRESHOLDS, key=lambda threshold: tie_credits(probabilities, labels, threshold).mean())
