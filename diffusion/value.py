"""A learned baseline: a small network that foretells, from a denoising state, the reward of the sample it becomes.

The value function of PPO (Schulman et al. 2017, https://arxiv.org/abs/1707.06347) for a reward that comes after the last step.
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import skip_init

from diffusion.policy import DiffusionPolicy
from mmrlhf.distributed import sum_gradients, total
from mmrlhf.rl import explained_variance, gae, value_loss, whiten
from mmrlhf.seeding import seeded
from mmrlhf.types import Rollout

GRID = 4  # latents are averaged to this many rows and columns
HIDDEN = 128
FARTHEST = 5.0  # a feature counts up to this many standard deviations of the first epoch
SMALLEST_SPREAD = 1e-3


def steps_of(
    final: Float[Tensor, " b"], values: Float[Tensor, "b t"], decay: float
) -> tuple[Float[Tensor, "b t"], Float[Tensor, "b t"]]:
    """(advantages, returns) of each step where the reward comes after the last one, undiscounted; decay 1: R − V, and R."""
    rewards = torch.zeros_like(values)
    rewards[:, -1] = final
    return gae(rewards, values, discount=1.0, decay=decay)


def state_features(policy: DiffusionPolicy, rollout: Rollout) -> list[Float[Tensor, "b t _"]]:
    """Of each denoising state: a coarse picture of its latents, mean and spread of each channel, the sampler's time."""
    groups: list[list[Tensor]] = [[], [], []]
    for latents in rollout.latents.float().unbind(dim=1):  # a step at a time: all at once are large
        groups[0].append(functional.adaptive_avg_pool2d(latents, GRID).flatten(1))
        mean = latents.mean(dim=(2, 3))
        groups[1].append(mean)
        groups[2].append((latents - mean[:, :, None, None]).square().mean(dim=(2, 3)).sqrt())
    times = policy.sampler.times(rollout.timesteps.flatten()).view_as(rollout.timesteps).float().unsqueeze(2)
    return [*(torch.stack(group, dim=1).cpu() for group in groups), times.cpu()]


def prompt_features(policy: DiffusionPolicy, rollout: Rollout) -> list[Float[Tensor, "b _"]]:
    """Of each prompt: the mean over tokens of whatever conditions the policy's family has."""
    conditions = policy.embed(rollout.prompts or ("",))  # a process that drew no sample learns the widths all the same
    pooled = [
        values.float().flatten(1, -2).mean(dim=1) if values.ndim > 2 else values.float()
        for values in conditions.values()
    ]
    return [values[: len(rollout.prompts)].cpu() for values in pooled]


class Standardised(nn.Module):
    """Features less their mean, over their spread; groups of features weigh alike, whatever the number of features in each."""

    mean: Tensor
    spread: Tensor
    weight: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        for name in ("mean", "spread", "weight"):
            self.register_buffer(name, torch.ones(width))

    def fit(self, groups: list[Tensor]) -> None:
        """Take mean and spread from these features, and those of other processes; a group is a tensor."""
        rows = torch.cat(groups, dim=-1).flatten(0, -2).double()
        count = total(torch.tensor([len(rows)], dtype=torch.float64))
        mean = total(rows.sum(dim=0)) / count
        spread = (total((rows - mean).square().sum(dim=0)) / count).sqrt().clamp_min(SMALLEST_SPREAD)
        weights = [torch.full((group.shape[-1],), group.shape[-1] ** -0.5) for group in groups]
        for buffer, values in ((self.mean, mean), (self.spread, spread), (self.weight, torch.cat(weights))):
            buffer.copy_(values)

    def forward(self, features: Float[Tensor, "*shape f"]) -> Float[Tensor, "*shape f"]:
        """At most FARTHEST from 0, before the weight."""
        return ((features - self.mean) / self.spread).clamp(-FARTHEST, FARTHEST) * self.weight


class ValueNetwork(nn.Module):
    """Two layers, from features to a reward less its running mean, over its running spread. Starts as 0 everywhere."""

    rewards: Tensor

    def __init__(self, state_width: int, prompt_width: int, generator: torch.Generator) -> None:
        super().__init__()
        self.states, self.prompts = Standardised(state_width), Standardised(prompt_width)
        # the two parts of the first layer: a prompt's is computed once, not at each of its steps
        self.of_state = skip_init(nn.Linear, state_width, HIDDEN)
        self.of_prompt = skip_init(nn.Linear, prompt_width, HIDDEN, bias=False)
        self.head = skip_init(nn.Linear, HIDDEN, 1)
        for weight in (self.of_state.weight, self.of_state.bias, self.of_prompt.weight):
            nn.init.normal_(weight, std=0.5, generator=generator)  # the length of each group of features is about 1
        for weight in self.head.parameters():
            nn.init.zeros_(weight)
        self.register_buffer("rewards", torch.zeros(3, dtype=torch.float64))  # count, mean, sum of squared deviations

    def forward(self, states: Float[Tensor, "b t f"], prompts: Float[Tensor, "b p"]) -> Float[Tensor, "b t"]:
        """The reward that each state leads to, in the running standard deviations from the running mean."""
        first = self.of_state(self.states(states)) + self.of_prompt(self.prompts(prompts)).unsqueeze(1)
        return self.head(functional.silu(first)).squeeze(2)

    def scale(self) -> tuple[float, float]:
        """Running mean and spread of the rewards; a spread of 1 where there is none."""
        count, mean, squares = self.rewards.tolist()
        spread = (squares / count) ** 0.5 if count else 0.0
        return mean, spread if spread > 1e-6 * max(1.0, abs(mean)) else 1.0

    def standard(self, rewards: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """Rewards as the network counts them; 0 where there is none (NaN)."""
        mean, spread = self.scale()
        return ((rewards.double() - mean) / spread).nan_to_num(nan=0.0).float()

    @torch.no_grad()
    def follow(self, rewards: Float[Tensor, " n"]) -> None:
        """Count these rewards in; what the network says in units of the reward stays (van Hasselt et al. 2016)."""
        new = rewards.double()
        (count, mean, squares), before = self.rewards.tolist(), self.scale()
        together = count + len(new)
        apart = float(new.mean()) - mean
        squares += float((new - new.mean()).square().sum()) + apart**2 * count * len(new) / together
        self.rewards.copy_(torch.tensor([together, mean + apart * len(new) / together, squares], dtype=torch.float64))
        if count:
            now = self.scale()
            self.head.weight *= before[1] / now[1]
            self.head.bias.copy_((self.head.bias * before[1] + before[0] - now[0]) / now[1])


class Epoch(NamedTuple):
    """What the network learns from: the rows of states and prompts are the samples that this process drew, the others all."""

    states: Float[Tensor, "n t f"]
    prompts: Float[Tensor, "n p"]
    drawn: Int[Tensor, " n"]
    """Which of the `b` samples they are."""
    rated: Bool[Tensor, " b"]
    values: Float[Tensor, "b t"]
    """What the network said of them before it learned from them."""
    returns: Float[Tensor, "b t"]


class ValueBaseline:
    """The network and its optimizer, made when the first epoch shows how wide the features are. Computes on the CPU.

    `clip` is how far a value may move in an epoch, in standard deviations of the reward (inf is no limit). `decay` is the λ of
    the advantages: 1 compares the final reward itself with V, 0 the next state's V.
    """

    def __init__(self, *, seed: int, learning_rate: float, clip: float, epochs: int, decay: float = 1.0) -> None:
        self.seed, self.learning_rate, self.clip, self.epochs, self.decay = seed, learning_rate, clip, epochs, decay
        self.network: ValueNetwork | None = None

    def build(self, state_width: int, prompt_width: int) -> ValueNetwork:
        """A network for features of these widths."""
        self.network = ValueNetwork(state_width, prompt_width, seeded(self.seed))
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=self.learning_rate)
        return self.network

    def judge(
        self,
        policy: DiffusionPolicy,
        rollout: Rollout,
        drawn: Int[Tensor, " n"],
        rewards: Float[Tensor, " b"],
        batch_size: int,
        generator: torch.Generator,
    ) -> tuple[Float[Tensor, "b t"], dict[str, float]]:
        """Advantages of the steps of an epoch's samples over what earlier epochs have taught; then learn from these too.

        Whitened over the epoch; 0 where the reward abstains (NaN). `drawn` says which of the `b` samples the rollout holds: of
        several processes each has a part. Metrics: `value_explained` before the update, `value_loss` over its batches, of
        rewards in standard deviations.
        """
        state_groups, prompt_groups = state_features(policy, rollout), prompt_features(policy, rollout)
        states, prompts = torch.cat(state_groups, dim=2), torch.cat(prompt_groups, dim=1)
        network = self.network
        if network is None:
            network = self.build(states.shape[2], prompts.shape[1])
            network.states.fit(state_groups)
            network.prompts.fit(prompt_groups)
        rated = rewards.isfinite()
        network.follow(rewards[rated])
        final, values = network.standard(rewards), torch.zeros(len(rewards), states.shape[1])
        with torch.no_grad():
            values[drawn] = network(states, prompts)
        values = total(values.flatten()).view_as(values)
        advantages, returns = steps_of(final, values, self.decay)
        explained = explained_variance(values[rated], final[rated].unsqueeze(1).expand(-1, values.shape[1]))
        epoch = Epoch(states, prompts, drawn, rated, values, returns)
        figures = {"value_loss": self.learn(network, epoch, batch_size, generator), "value_explained": explained}
        return whiten(advantages, rated.unsqueeze(1).expand_as(advantages)), figures

    def learn(self, network: ValueNetwork, epoch: Epoch, batch_size: int, generator: torch.Generator) -> float:
        """Passes over an epoch's rated samples in batches of them, all steps at once; the mean loss of a sample."""
        place = torch.full((len(epoch.rated),), -1)
        place[epoch.drawn] = torch.arange(len(epoch.drawn))
        summed = torch.zeros(2, dtype=torch.float64)
        for _ in range(self.epochs):
            order = torch.randperm(len(place), generator=generator)
            for group in order[epoch.rated[order]].split(batch_size):
                rows = group[place[group] >= 0]
                if len(rows):
                    values = network(epoch.states[place[rows]], epoch.prompts[place[rows]])
                    loss, _ = value_loss(values, epoch.values[rows], epoch.returns[rows], self.clip)
                    (loss * len(rows) / len(group)).backward()
                    summed += torch.tensor([len(rows) * float(loss.detach()), len(rows)])
                sum_gradients(network.parameters())
                self.optimizer.step()
                self.optimizer.zero_grad()
        loss_sum, count = total(summed).tolist()
        return loss_sum / count

    def state_dict(self) -> dict[str, Any]:
        """The network with what it knows of features and rewards, and its optimizer; empty before the first epoch."""
        if self.network is None:
            return {}
        return {"network": self.network.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what `state_dict` gave."""
        if state:
            network = self.build(len(state["network"]["states.mean"]), len(state["network"]["prompts.mean"]))
            network.load_state_dict(state["network"])
            self.optimizer.load_state_dict(state["optimizer"])
