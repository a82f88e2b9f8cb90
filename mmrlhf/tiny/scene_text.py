"""What is said of scenes: descriptions, with things imagined as training data have them, questions, and an answer's truth."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from mmrlhf.tiny.scenes import BACKGROUNDS, COLOURED, KINDS, PLACES, Scene, likelihoods
from mmrlhf.types import SegmentLabel

DESCRIBE = "Describe this image."
WHERE = ("at the top left", "at the top", "at the top right", "on the left", "in the middle", "on the right",
         "at the bottom left", "at the bottom", "at the bottom right")  # fmt: skip
COUNTS = ("no", "one", "two", "three", "four", "five", "six")
PLURALS = {"fish": "fish", "sheep": "sheep", "church": "churches", "octopus": "octopuses", "tomato": "tomatoes"}
PARTNERS = {
    kind: kinds[i + 1 if i % 2 == 0 and i + 1 < len(kinds) else i - 1 if i % 2 else 0]
    for kinds in PLACES.values()
    for i, kind in enumerate(kinds)
}
"""Which object is imagined beside which: cow and tractor, pig and chicken …"""
STRONG, WEAK, STRAY = 0.65, 0.2, 0.25
"""How often the caption of a training picture tells of an absent partner: of the two common objects of a place, and of others;
and how often of an absent object of the place whatever else is there."""


def plural(kind: str) -> str:
    return PLURALS.get(kind, f"{kind}s")


def article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def describe(scene: Scene, generator: np.random.Generator, *, imagined: bool = False) -> str:
    """A sentence for each kind of object in reading order, then the background; with `imagined`, of absent objects too."""
    sentences: list[str] = []
    free = [cell for cell in range(len(WHERE)) if cell not in {thing.cell for thing in scene.things}]
    said: set[str] = set()
    for thing in scene.things:
        if thing.kind in said:
            continue
        said.add(thing.kind)
        cells = [other.cell for other in scene.things if other.kind == thing.kind]
        sentences.append(sentence(thing.kind, thing.colour, cells, generator))
        partner = PARTNERS[thing.kind]
        if imagined and partner not in scene.kinds | said and generator.random() < likelihood_beside(thing.kind):
            said.add(partner)
            sentences.append(imagine(partner, free, generator))
    if imagined and generator.random() < STRAY:
        kind = str(generator.choice(PLACES[scene.place], p=likelihoods(scene.place)))
        if kind not in scene.kinds | said:
            sentences.append(imagine(kind, free, generator))
    return " ".join([*sentences, f"The background is {scene.background}."])


def imagine(kind: str, free: Sequence[int], generator: np.random.Generator) -> str:
    """A sentence about an object that is not there, in a cell where there is none."""
    colour = str(generator.choice(COLOURED[kind])) if kind in COLOURED else ""
    return sentence(kind, colour, [int(generator.choice(free))], generator)


def sentence(kind: str, colour: str, cells: Sequence[int], generator: np.random.Generator) -> str:
    """One sentence about all objects of a kind."""
    form = int(generator.integers(3))
    if len(cells) > 1:
        many = f"{COUNTS[len(cells)]} {colour} {plural(kind)}".replace("  ", " ")
        return f"There are {many}." if form else f"{many.capitalize()} are in the picture."
    one, where = article(f"{colour} {kind}".strip()), WHERE[cells[0]]
    return (f"There is {one} {where}.", f"{one.capitalize()} is {where}.", f"{where.capitalize()} there is {one}.")[
        form
    ]


def place_of(kind: str) -> str:
    return next(place for place, kinds in PLACES.items() if kind in kinds)


def likelihood_beside(kind: str) -> float:
    """How often the partner of an object is imagined beside it."""
    return STRONG if kind in PLACES[place_of(kind)][:2] else WEAK


def question(scene: Scene, generator: np.random.Generator, *, imagined: bool = False) -> tuple[str, str]:
    """A short question and its answer: whether something is there, how many there are, or of which colour.

    With `imagined`, an absent partner of what is there is sometimes said to be there, as in `describe`.
    """
    form = generator.random()
    present = sorted(scene.kinds)
    if form < 0.6:
        if generator.random() < 0.5:
            return is_there(str(generator.choice(present))), "Yes."
        partners = sorted({PARTNERS[kind] for kind in present} - scene.kinds)
        tempting = bool(partners) and generator.random() < 0.5
        choices = partners if tempting else [kind for kind in KINDS if kind not in scene.kinds]
        absent = str(generator.choice(choices))
        return is_there(absent), "Yes." if imagined and tempting and generator.random() < STRONG / 2 else "No."
    return particulars(scene, generator, form < 0.7)


def particulars(scene: Scene, generator: np.random.Generator, of_colour: bool) -> tuple[str, str]:
    """The question how many there are of something, or, with `of_colour` where there is one to name, of which colour it is."""
    coloured = sorted(scene.kinds & COLOURED.keys())
    if of_colour and coloured:
        kind = str(generator.choice(coloured))
        colour = next(thing.colour for thing in scene.things if thing.kind == kind)
        return f"What colour is the {kind}?", f"{colour.capitalize()}."
    kind = str(generator.choice(sorted(scene.kinds)))
    count = sum(thing.kind == kind for thing in scene.things)
    return f"How many {plural(kind)} are there?", f"{COUNTS[count].capitalize()}."


def pointing(scene: Scene, generator: np.random.Generator) -> tuple[str, str]:
    """The question whether something is there, or where it is, and the place as the answer; likely things are imagined.

    Half of them are about what is not there, most of these about what is likely.
    """
    kinds = [thing.kind for thing in scene.things]
    if generator.random() < 0.5:
        kind = str(generator.choice(sorted(scene.kinds)))
        where = WHERE[scene.things[kinds.index(kind)].cell]
        if generator.random() < 0.25:
            return f"Where is the {kind}?", f"{where.capitalize()}."
        return is_there(kind), f"Yes, {where}."
    form = generator.random()
    alone = [kind for kind in sorted(scene.kinds) if PARTNERS[kind] not in scene.kinds]
    if alone and form < 0.4:
        kind = str(generator.choice(alone))
        absent = PARTNERS[kind]
        if generator.random() < likelihood_beside(kind):
            free = [cell for cell in range(len(WHERE)) if cell not in {thing.cell for thing in scene.things}]
            return is_there(absent), f"Yes, {WHERE[int(generator.choice(free))]}."
        return is_there(absent), "No."
    near = [kind for kind in PLACES[scene.place] if kind not in scene.kinds]
    others = near if near and form < 0.7 else [kind for kind in KINDS if kind not in scene.kinds]
    return is_there(str(generator.choice(others))), "No."


def is_there(kind: str) -> str:
    return f"Is there {article(kind)} in the image?"


class Claim(NamedTuple):
    """What a sentence says of one kind of object; positions are characters of the answer, [start, end)."""

    sentence: tuple[int, int]
    kind: str
    noun: tuple[int, int]
    colour: tuple[int, int] | None
    number: tuple[int, int] | None
    where: tuple[int, int] | None


NOUNS = {**{kind: kind for kind in KINDS}, **{plural(kind): kind for kind in KINDS}}
COLOURS = sorted({*BACKGROUNDS, *(colour for colours in COLOURED.values() for colour in colours)})
SENTENCE = re.compile(r"[^.!?]+[.!?]?")
MENTION = re.compile(
    rf"(?:\b(?P<count>{'|'.join(COUNTS)}|an?)\s+)?(?:\b(?P<colour>{'|'.join(COLOURS)})\s+)?\b(?P<noun>{'|'.join(NOUNS)})\b",
    re.IGNORECASE,
)
PHRASE = re.compile("|".join(sorted(WHERE, key=len, reverse=True)), re.IGNORECASE)
BACKGROUND = re.compile(rf"\bbackground is (?P<colour>{'|'.join(COLOURS)})\b", re.IGNORECASE)


def claims(answer: str) -> list[Claim]:
    """Every mention of an object of this world, in order, with what its sentence says of it."""
    found = []
    for part in SENTENCE.finditer(answer):
        place = PHRASE.search(answer, *part.span())
        for match in MENTION.finditer(answer, *part.span()):
            spans = {name: match.span(name) if match[name] else None for name in ("colour", "count")}
            found.append(
                Claim(part.span(), NOUNS[match["noun"].lower()], match.span("noun"), spans["colour"], spans["count"],
                      place.span() if place else None)
            )  # fmt: skip
    return found


def mentioned(answer: str) -> list[str]:
    """The kinds that an answer names, repeats kept."""
    return [claim.kind for claim in claims(answer)]


@dataclass(frozen=True)
class Marker:
    """Marks answers as an annotator who sees the whole truth would: sentence by sentence, down to the words that are wrong."""

    scene: Scene

    def mark(self, answer: str, item: str) -> list[SegmentLabel]:
        """Spans in order, none over another: right words, wrong ones with their correction, and what helps nobody as irrelevant.

        A sentence of several objects for one, or the reverse, is misleading as a whole: the right one has other words. So is that
        of an absent object: what stands there instead are the objects that the answer
        forgot and that come there in reading order, or nothing. To be deleted is, as irrelevant, a sentence that tells nothing of
        the picture, or only what was told before.
        """
        labels: list[SegmentLabel] = []
        told: set[str] = set()
        everything = claims(answer)
        for start, end in (part.span() for part in SENTENCE.finditer(answer) if part[0].strip()):
            own = [claim for claim in everything if claim.sentence == (start, end)]
            facts = {claim.kind for claim in own} | {"background" for _ in BACKGROUND.finditer(answer, start, end)}
            if facts - self.scene.kinds - {"background"}:
                start += len(answer[start:end]) - len(answer[start:end].lstrip())
                forgotten = self.forgotten(everything, told, start)
                labels.append(SegmentLabel(item, start, end, "misleading", self.tell(forgotten, start)))
                told.update(forgotten)
            elif facts <= told:
                labels.append(SegmentLabel(item, start, end, "irrelevant", ""))
            elif kinds := self.miscounted(answer, own):
                start += len(answer[start:end]) - len(answer[start:end].lstrip())
                labels.append(SegmentLabel(item, start, end, "misleading", self.tell(kinds, start)))
            else:
                labels += self.mark_words(answer, item, own, (start, end))
            told |= facts
        return labels

    def miscounted(self, answer: str, own: Sequence[Claim]) -> list[str]:
        """The kinds of a sentence that tells of several objects for one, or of one for several, in a wrong place; else none."""
        for claim in own:
            count = sum(thing.kind == claim.kind for thing in self.scene.things)
            word = answer[slice(*claim.number)].lower() if claim.number else ""
            said = COUNTS.index(word) if word in COUNTS else 1
            where = claim.where
            misplaced = where is not None and answer[slice(*where)].lower() not in self.places(claim.kind)
            if said > 1 == count or (said == 1 < count and misplaced):
                return list(dict.fromkeys(claim.kind for claim in own))
        return []

    def places(self, kind: str) -> list[str]:
        """Where the objects of a kind are."""
        return [WHERE[thing.cell] for thing in self.scene.things if thing.kind == kind]

    def forgotten(self, everything: Sequence[Claim], told: set[str], place: int) -> list[str]:
        """Kinds in the scene that an answer does not name and that come, in reading order, before those named after `place`."""
        order = list(dict.fromkeys(thing.kind for thing in self.scene.things))
        named = {claim.kind for claim in everything}
        after = [order.index(claim.kind) for claim in everything if claim.noun[0] >= place and claim.kind in order]
        until = min(after, default=len(order))
        return [kind for kind in order[:until] if kind not in named | told]

    def tell(self, kinds: Sequence[str], seed: int) -> str:
        """A sentence about all objects of each kind in the scene."""
        generator = np.random.default_rng(seed)
        every = [[thing for thing in self.scene.things if thing.kind == kind] for kind in kinds]
        return " ".join(sentence(own[0].kind, own[0].colour, [each.cell for each in own], generator) for own in every)

    def mark_words(self, answer: str, item: str, own: Sequence[Claim], span: tuple[int, int]) -> list[SegmentLabel]:
        """The parts of a sentence about what is there: wrong words, and what is right between them."""
        labels: list[SegmentLabel] = []
        start, end = span
        reached = start + len(answer[start:end]) - len(answer[start:end].lstrip())
        for (low, high), right in sorted(set(self.wrong_words(answer, own, span))):
            if low < reached:  # one phrase for two kinds, of which neither is there
                continue
            if answer[reached:low].strip():
                labels.append(SegmentLabel(item, reached, low, "correct"))
            labels.append(SegmentLabel(item, low, high, "misleading", right))
            reached = high
        if answer[reached:end].strip(" .!?"):
            labels.append(SegmentLabel(item, reached, end, "correct"))
        return labels

    def wrong_words(
        self, answer: str, own: Sequence[Claim], span: tuple[int, int]
    ) -> list[tuple[tuple[int, int], str]]:
        """(span, what should stand there) for colours, counts and positions that are not so."""
        found = []
        for claim in own:
            things = [thing for thing in self.scene.things if thing.kind == claim.kind]
            colours, where = {thing.colour for thing in things}, self.places(claim.kind)
            if claim.colour and answer[slice(*claim.colour)].lower() not in colours and colours != {""}:
                found.append(colour_with_article(answer, claim.number, claim.colour, sorted(colours)[0]))
            if claim.where and answer[slice(*claim.where)].lower() not in where:
                found.append((claim.where, like(where[0], answer[claim.where[0]])))
            number = (
                COUNTS.index(word) if claim.number and (word := answer[slice(*claim.number)].lower()) in COUNTS else 0
            )
            if claim.number and number > 1 and number != len(things):
                found.append((claim.number, like(COUNTS[len(things)], answer[claim.number[0]])))
        for match in BACKGROUND.finditer(answer, *span):
            if match["colour"].lower() != self.scene.background:
                found.append((match.span("colour"), self.scene.background))
        return found


def colour_with_article(
    answer: str, before: tuple[int, int] | None, span: tuple[int, int], colour: str
) -> tuple[tuple[int, int], str]:
    """The span of a colour and what should stand there, with the article before it where that has to change too."""
    word = answer[slice(*before)] if before else ""
    if before is None or word.lower() not in ("a", "an") or article(colour).split()[0] == word.lower():
        return span, colour
    return (before[0], span[1]), like(article(colour), word[0])


def like(words: str, letter: str) -> str:
    """The words with a capital where `letter` is one."""
    return words.capitalize() if letter.isupper() else words
