"""Synthetic product reviews, for a first run without network or download.

Configs name the functions `train` and `validation` by dotted path, such as `trainer_loop.quickstart.reviews.train`.

A small grammar generates the reviews. A pattern such as "although {lost}, {verdict}" joins clauses, which are filled
with words that fit the product. The label follows from the clauses:

- `{verdict}`, `{won}` and `{merit}` support the label. `{lost}` and `{flaw}` are concessions against it.
- Every clause is written for a happy customer: "the lid is not {bad} at all". For an unhappy customer, good and bad
  words are exchanged: "the lid is not {good} at all".

So negations and conjunctions are equally common in both classes, and most reviews contain praise and complaint. The
structure decides: a bag-of-words classifier gets about seven of ten reviews right. The patterns of the validation
reviews do not occur in the training reviews, but all their words do.
"""

import functools
import random
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeVar

T = TypeVar("T")

NUM_TRAIN_ROWS = 10_000
NUM_VALIDATION_ROWS = 1_000

_CONTRAST_SHARE = 0.5  # share of reviews with a concession
_DENIAL_SHARE = 0.33  # share of clauses that express praise by a negated bad word, or a complaint by a good word
_OPENING_SHARE = 0.35  # share of reviews that start with a sentence without an opinion


class _Opposites(NamedTuple):
    good: tuple[str, ...]
    bad: tuple[str, ...]


class _Clauses(NamedTuple):
    plain: tuple[str, ...]
    denial: tuple[str, ...]


class _Patterns(NamedTuple):
    agreeing: tuple[str, ...]
    contrasting: tuple[str, ...]


# Product -> the aspects that a review may mention, in addition to those shared by all products.
_PRODUCTS = {
    "backpack": ("strap", "fabric", "zipper"),
    "blender": ("motor", "lid", "handle", "manual"),
    "camera": ("screen", "battery", "menu", "strap", "manual"),
    "drill": ("motor", "handle", "battery", "manual"),
    "jacket": ("fabric", "zipper", "collar"),
    "kettle": ("handle", "lid", "switch"),
    "lamp": ("switch", "light", "stand"),
    "phone": ("screen", "battery", "sound", "menu"),
    "speaker": ("sound", "battery", "manual"),
    "suitcase": ("handle", "zipper", "lock"),
    "tablet": ("screen", "battery", "sound", "menu", "stand"),
    "tent": ("fabric", "zipper", "manual"),
    "vacuum cleaner": ("motor", "handle", "switch", "manual"),
    "watch": ("strap", "screen", "battery", "menu"),
}
_SHARED_ASPECTS = ("price", "delivery", "design")
_ADJECTIVES = {
    "battery": _Opposites(("strong", "reliable"), ("weak", "unreliable")),
    "collar": _Opposites(("soft", "comfortable", "warm"), ("stiff", "scratchy", "tight")),
    "delivery": _Opposites(("quick", "punctual", "careful"), ("slow", "late", "careless")),
    "design": _Opposites(("elegant", "clever", "modern"), ("ugly", "clumsy", "dated")),
    "fabric": _Opposites(("soft", "thick", "elegant"), ("scratchy", "thin", "shabby")),
    "handle": _Opposites(("sturdy", "solid", "comfortable"), ("flimsy", "loose", "uncomfortable")),
    "lid": _Opposites(("solid", "sturdy", "practical"), ("loose", "flimsy", "leaky")),
    "light": _Opposites(("warm", "bright", "soft"), ("harsh", "dim", "dull")),
    "lock": _Opposites(("reliable", "solid", "sturdy"), ("unreliable", "flimsy", "loose")),
    "manual": _Opposites(("clear", "helpful", "accurate"), ("confusing", "useless", "misleading")),
    "menu": _Opposites(("clear", "simple", "tidy"), ("confusing", "clumsy", "messy")),
    "motor": _Opposites(("quiet", "powerful", "smooth"), ("noisy", "weak", "rough")),
    "price": _Opposites(("fair", "reasonable"), ("unfair", "excessive")),
    "screen": _Opposites(("bright", "sharp", "clear"), ("dim", "blurry", "dull")),
    "sound": _Opposites(("rich", "clear", "warm"), ("tinny", "muffled", "harsh")),
    "stand": _Opposites(("stable", "sturdy", "solid"), ("shaky", "flimsy", "wobbly")),
    "strap": _Opposites(("soft", "sturdy", "comfortable"), ("stiff", "flimsy", "scratchy")),
    "switch": _Opposites(("solid", "practical", "reliable"), ("loose", "flimsy", "unreliable")),
    "zipper": _Opposites(("smooth", "reliable", "sturdy"), ("rough", "unreliable", "flimsy")),
}
_SHARED_ADJECTIVES = _Opposites(("good", "nice", "impressive"), ("bad", "poor", "disappointing"))
_FEELINGS = _Opposites(
    ("happy", "delighted", "satisfied", "pleased", "impressed"),
    ("unhappy", "disappointed", "frustrated", "annoyed", "upset"),
)
_ACTIONS = _Opposites(
    ("keep {it}", "recommend {it}", "praise {it}", "buy another one", "give {it} five stars"),
    ("return {it}", "send {it} back", "complain about {it}", "throw {it} away", "give {it} one star"),
)
_DEGREES = ("very", "really", "truly", "extremely", "super")
_PEOPLE = ("Anna", "Omar", "Mei", "Lucas", "Priya", "my sister", "my father", "my boss", "my neighbor", "my roommate")
_TIMES = ("last week", "last month", "in May", "in October", "two weeks ago", "three weeks ago")

_OPENINGS = (
    "I bought this {product} {time}. ",
    "I ordered this {product} for {person} {time}. ",
    "{person} gave me this {product} {time}. ",
    "{person} and I bought this {product} {time}. ",
)
_STATEMENTS = _Clauses(
    plain=(
        "the {aspect} is {degree} {good}",
        "I find the {aspect} {degree} {good}",
        "anybody would call the {aspect} {good}",
        "the {aspect} turned out to be {good}",
        "you will find the {aspect} {good}",
        "I have never come across a {aspect} this {good}",
    ),
    denial=(
        "the {aspect} is not {bad}",
        "the {aspect} is not {bad} at all",
        "I do not find the {aspect} {bad}",
        "nobody would call the {aspect} {bad}",
        "the {aspect} turned out to be anything but {bad}",
        "you will not find the {aspect} {bad}",
        "the {aspect} is {good} rather than {bad}",
    ),
)
_VERDICTS = _Clauses(
    plain=(
        "I am {happy}",
        "I am {degree} {happy}",
        "I am {degree} {happy} with {it}",
        "I am sure that I will {praise}",
        "I have every reason to {praise}",
        "everybody should {praise}",
        "it is only right to {praise}",
    ),
    denial=(
        "I am anything but {unhappy}",
        "I am not {unhappy}",
        "I am not {unhappy} with {it} at all",
        "I doubt that I will {blame}",
        "I have no reason to {blame}",
        "nobody should {blame}",
        "I would rather {praise} than {blame}",
    ),
)
_HEARSAY = _Clauses(
    plain=(
        "{person} says that the {aspect} is {good}",
        "{person} calls the {aspect} {good}",
        "{person} is {happy} with {it}",
    ),
    denial=(
        "{person} does not find the {aspect} {bad}",
        "{person} would not call the {aspect} {bad}",
        "{person} is not {unhappy} with {it}",
    ),
)
_TRAIN_PATTERNS = _Patterns(
    agreeing=(
        "{won}",
        "{verdict}",
        "{won}, and {verdict}",
        "{won}, so {verdict}",
        "{won}. {verdict}",
        "{verdict}. {won}",
        "{verdict}, because {won}",
        "since {won}, {verdict}",
        "because of {merit}, {verdict}",
    ),
    contrasting=(
        "{lost}, but {verdict}",
        "{lost}. Still, {verdict}",
        "{lost}. However, {verdict}",
        "although {lost}, {verdict}",
        "{verdict}, although {lost}",
        "even though {lost}, {verdict}",
        "{verdict}, even if {lost}",
        "despite {flaw}, {verdict}",
        "{verdict} in spite of {flaw}",
        "{lost}, but {won}, so {verdict}",
        "{lost}. Still, {won}, and {verdict}",
        "{lost}. However, {won}, and {verdict}",
        "although {lost}, {won}, so {verdict}",
        "even though {lost}, {won}, and {verdict}",
        "{won}, so {verdict}, although {lost}",
        "{won}, and {verdict}, even if {lost}",
        "{verdict}, because {won}, even though {lost}",
        "even though {lost}, {verdict}, because {won}",
        "since {won}, {verdict}, although {lost}",
    ),
)
_VALIDATION_PATTERNS = _Patterns(  # the same conjunctions at other positions
    agreeing=(
        "because {won}, {verdict}",
        "{verdict}, since {won}",
        "{verdict} because of {merit}",
    ),
    contrasting=(
        "even if {lost}, {verdict}",
        "{verdict}, even though {lost}",
        "in spite of {flaw}, {verdict}",
        "{verdict} despite {flaw}",
        "{lost}, but {won}, and {verdict}",
        "{lost}. Still, {won}, so {verdict}",
        "although {lost}, {won}, and {verdict}",
        "{won}, so {verdict}, even if {lost}",
        "{verdict}, because {won}, although {lost}",
        "although {lost}, {verdict}, because {won}",
    ),
)


def train() -> list[dict[str, str]]:
    """Return 10,000 rows with `text` and `label` ("negative" and "positive" in turn), the same on every call."""
    return _as_rows(_write_reviews(NUM_TRAIN_ROWS, patterns=_TRAIN_PATTERNS, seed=1))


def validation() -> list[dict[str, str]]:
    """Return 1,000 rows like those of `train`, with patterns that `train` never uses."""
    return _as_rows(_write_reviews(NUM_VALIDATION_ROWS, patterns=_VALIDATION_PATTERNS, seed=2))


def _as_rows(labels: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"text": text, "label": label} for text, label in labels.items()]


@functools.cache
def _write_reviews(num_rows: int, *, patterns: _Patterns, seed: int) -> Mapping[str, str]:
    """Generate reviews without duplicates. Returns the label of each text."""
    rng = random.Random(seed)
    labels: dict[str, str] = {}
    while len(labels) < num_rows:
        happy = len(labels) % 2 == 1
        labels.setdefault(_write_review(rng, patterns, happy=happy), "positive" if happy else "negative")
    return labels


def _write_review(rng: random.Random, patterns: _Patterns, *, happy: bool) -> str:
    product = _pick(rng, tuple(_PRODUCTS))
    aspect, other_aspect = _pick_two(rng, _PRODUCTS[product] + _SHARED_ASPECTS)
    companion, critic = _pick_two(rng, _PEOPLE)

    def fill(clause: str, *, concede: bool = False) -> str:
        clause_aspect = other_aspect if concede else aspect
        return _fill_clause(rng, clause, happy=happy != concede, aspect=clause_aspect, person=critic)

    pattern = _pick(rng, patterns.contrasting if rng.random() < _CONTRAST_SHARE else patterns.agreeing)
    body = pattern.format(
        verdict=fill(_pick_clause(rng, _VERDICTS)),
        won=fill(_pick_clause(rng, _STATEMENTS)),
        merit=fill("the {good} {aspect}"),
        lost=fill(_pick_clause(rng, _pick(rng, (_STATEMENTS, _HEARSAY))), concede=True),
        flaw=fill("the {good} {aspect}", concede=True),
    )
    opening = _pick(rng, _OPENINGS) if rng.random() < _OPENING_SHARE else ""
    opening = opening.format(product=product, person=companion, time=_pick(rng, _TIMES))
    if not opening:
        body = body.replace("{it}", f"this {product}", 1)  # the first mention names the product
    return _capitalize(opening + body.replace("{it}", "it") + ".")


def _fill_clause(rng: random.Random, clause: str, *, happy: bool, aspect: str, person: str) -> str:
    """Fill a clause with words. For an unhappy customer good and bad words are exchanged. `{it}` is filled later."""

    def pick_opposites(words: _Opposites) -> tuple[str, str]:
        """Return a word for the opinion of the customer, and a word for the opposite."""
        good, bad = _pick(rng, words.good), _pick(rng, words.bad)
        return (good, bad) if happy else (bad, good)

    special = _ADJECTIVES[aspect]
    adjectives = _Opposites(special.good + _SHARED_ADJECTIVES.good, special.bad + _SHARED_ADJECTIVES.bad)
    words = {"aspect": aspect, "person": person, "degree": _pick(rng, _DEGREES), "it": "{it}"}
    words["good"], words["bad"] = pick_opposites(adjectives)
    words["happy"], words["unhappy"] = pick_opposites(_FEELINGS)
    words["praise"], words["blame"] = pick_opposites(_ACTIONS)
    return clause.format(**words)


def _pick_clause(rng: random.Random, clauses: _Clauses) -> str:
    return _pick(rng, clauses.denial if rng.random() < _DENIAL_SHARE else clauses.plain)


def _pick(rng: random.Random, options: Sequence[T]) -> T:
    """Pick one option by `random()`, whose sequence is the same in all versions of Python."""
    return options[int(rng.random() * len(options))]


def _pick_two(rng: random.Random, options: Sequence[T]) -> tuple[T, T]:
    first = _pick(rng, options)
    return first, _pick(rng, [option for option in options if option != first])


def _capitalize(text: str) -> str:
    """Start every sentence with a capital letter."""
    return re.sub(r"(^|\. )([a-z])", lambda match: match[1] + match[2].upper(), text)
