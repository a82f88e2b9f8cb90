"""How much of a prompt a model reads."""

import sys
from collections.abc import Sequence

from tqdm import tqdm

from diffusion.families import Family

SHOWN = 60


def cut_prompts(family: Family, prompts: Sequence[str]) -> list[str]:
    """The prompts of which every text encoder cuts off the end."""
    read = family.longest_prompts()
    return [
        prompt
        for prompt in prompts
        if all(len(tokenizer(prompt, truncation=False, verbose=False).input_ids) > most for tokenizer, most in read)
    ]


def tell_of_cut_prompts(family: Family, prompts: Sequence[str]) -> None:
    """One line on stderr where prompts are longer than what the model reads of them."""
    cut = cut_prompts(family, list(dict.fromkeys(prompts)))
    if cut:
        most = max(most for _, most in family.longest_prompts())
        first = cut[0] if len(cut[0]) <= SHOWN else cut[0][:SHOWN] + "…"
        tqdm.write(
            f"{len(cut)} of the prompts are longer than the {most} tokens that the model reads, and lose their end, the first "
            f"'{first}': shorten them",
            file=sys.stderr,
        )
