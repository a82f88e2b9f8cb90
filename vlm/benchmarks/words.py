"""Which objects of a vocabulary a text names: nouns in singular or plural, of one word or several, repeats kept."""

import re
from collections.abc import Iterable, Mapping, Sequence

TOKEN = re.compile(r"[^\W_]+(?:[-'’][^\W_]+)*|[^\w\s]")
IRREGULAR = {
    "men": "man", "women": "woman", "children": "child", "mice": "mouse", "geese": "goose", "oxen": "ox", "feet": "foot",
    "teeth": "tooth", "dice": "die", "leaf": "leave",
}  # fmt: skip
ARTICLES = frozenset("a an the another each every one two three some several his her their its my your our".split())
BEFORE_VERBS = frozenset(
    "to can could may might must will would shall should i you he she it we they who which that don't doesn't not".split()
)
AFTER_VERBS = frozenset("a an the his her their its him them it this these".split())
BE = frozenset("is are was were be been being keep keeps".split())
PLACES = frozenset("on in across along through by past near down towards toward over under into away off at".split())
COLOURS = frozenset("blue brown green grey gray pink red yellow purple orange beige tan golden white black".split())
DEGREES = frozenset("is are was were very too so looks look still piping".split())
POINTERS = frozenset("this these those there".split())
NOT_AFTER_MODALS = PLACES | frozenset(
    "and or of with next is are was were to that which from for beside behind has holding containing".split()
)
VERBS = frozenset(
    "watch drink leave lock ring support switch file brush spray track fish board core stage shell note tie bear duck sink rock "
    "water bat bowl plug hose pack train ski skate can sail cook bill range star clock net grill".split()
)
"""Words that an answer may use as a verb where a vocabulary means a thing."""


class Vocabulary:
    """Objects by all the words for them: `synonyms[object]` are its other words. A word of several objects is of the first."""

    def __init__(self, synonyms: Mapping[str, Iterable[str]]) -> None:
        names = {plain(name): name for name in reversed([*synonyms])}
        others = {plain(word): name for name, words in reversed([*synonyms.items()]) for word in words}
        self.objects = {**others, **names}  # an object's own name comes before a synonym
        singulars = {singular: word for word in self.objects for singular in singular_forms(word)}
        self.words = {**singulars, **{word: word for word in self.objects}}
        self.longest = max((word.count(" ") + 1 for word in self.words), default=1)

    def mentions(self, text: str) -> list[str]:
        """The words of the vocabulary that a text names, in order, repeats kept, each in the vocabulary's own form."""
        tokens = [plain(token) for token in TOKEN.findall(text)]
        found, start = [], 0
        while start < len(tokens):
            length, word = self.at(tokens, start)
            if word is not None:
                found.append(word)
            start += length
        return found

    def mentioned_objects(self, text: str) -> list[str]:
        """The objects that a text names, in order, repeats kept, by their names."""
        return [self.objects[word] for word in self.mentions(text)]

    def at(self, tokens: Sequence[str], start: int) -> tuple[int, str | None]:
        """(how many tokens, the word) that begin at `start`: the longest of the vocabulary, else one token and None."""
        for length in range(min(self.longest, len(tokens) - start), 0, -1):
            phrase = " ".join(tokens[start : start + length])
            forms = (form for form in (phrase, *singular_forms(phrase)) if form in self.words)
            form = next(forms, None)
            if form is not None and (length > 1 or is_noun(tokens, start, form)):
                return length, self.words[form]
        return 1, None


def plain(word: str) -> str:
    """Lower case, the ’s of possession off."""
    return re.sub(r"['’]s?$", "", word.lower().strip())


def singular_forms(word: str) -> list[str]:
    """What an English noun may be the plural of, likeliest first; the last word of several."""
    head, space, last = word.rpartition(" ")
    forms = [IRREGULAR[last]] if last in IRREGULAR else []
    if last.endswith(("men", "women")) and len(last) > 5:
        forms.append(last[:-2] + "an")  # fishermen
    if last.endswith("s") and not last.endswith("ss") and len(last) > 2:
        forms.append(last[:-1])
        if last.endswith("ies"):
            forms.append(last[:-3] + "y")
        if last.endswith("ves"):
            forms += [last[:-3] + "f", last[:-3] + "fe"]
        if last.endswith("es") and last[:-2].endswith(("s", "x", "z", "ch", "sh", "o")):
            forms.append(last[:-2])
    return [head + space + form for form in forms]


def is_noun(tokens: Sequence[str], place: int, singular: str) -> bool:
    """Whether a word that has other uses is a noun here, by its neighbours: this stands in for a part-of-speech tagger."""
    word = tokens[place]
    before = tokens[place - 1] if place else ""
    after = tokens[place + 1] if place + 1 < len(tokens) else ""
    if before in ARTICLES:
        return not (word == "hot" and after.isalpha()) and not (word == "light" and after in COLOURS)
    if word == "can":
        return before not in BEFORE_VERBS | POINTERS and (not after.isalpha() or after in NOT_AFTER_MODALS)
    if word == "hot":
        return before not in DEGREES and not after.isalpha()
    if word == "light":
        return after not in COLOURS
    if word.endswith("ing") and word not in ("ring", "building", "ceiling", "earing", "railing"):
        return before not in BE and after not in PLACES
    if singular in VERBS:
        return before not in BEFORE_VERBS and after not in AFTER_VERBS and not (word == "note" and after == "that")
    return True
