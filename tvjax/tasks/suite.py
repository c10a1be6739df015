"""The built-in text tasks: letters, numbers, words, lists and sentences of them. Nothing is downloaded; all is ours.

Tasks share their inputs on purpose: "seven" may become "eight", "six", "fourteen", "7" or "Seven", and only the
demonstrations say which. So a model that knows every pair still cannot answer without them.
"""

import itertools
import string

import numpy as np

from tvjax.tasks.text import TextTask, answers_of

_UNITS = """
zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen
nineteen
""".split()  # noqa: SIM905
_TENS = ["", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_NOUNS = """
apple bag ball bank bath bear bed bee bell bird boat bone book boot bowl box boy branch bread bridge brush bus
cake camp car card cart cat chain chair church city class clock cloud coat coin cook corn cow crown cup day deer
desk dish dog door dress duck eye face fan farm fish flag flower fly fox frog garden gate girl glass goat goose
hand hat hen hill horse house jar key king kite knife lake lamp leaf leg letter lion map mouse nest net night
nose ocean owl page pan park peach pen pig plane plant plate pond queen rain ring river road roof room rope rose
sail school sea seed sheep ship shirt shoe shop sky snake sock spoon star stone stove street sun table tail tent
toe tooth town toy train tree truck wall watch wave wheel whale wing wolf woman wood yard
""".split()  # noqa: SIM905
_IRREGULAR = {
    "deer": "deer",
    "fish": "fish",
    "goose": "geese",
    "knife": "knives",
    "leaf": "leaves",
    "mouse": "mice",
    "sheep": "sheep",
    "tooth": "teeth",
    "wolf": "wolves",
    "woman": "women",
}
_OPPOSITES = """
above below, absent present, alive dead, always never, ancient modern, asleep awake, bad good, big small, bitter
sweet, black white, bold shy, brave afraid, bright dark, broad narrow, calm angry, cheap costly, clean dirty,
clever foolish, cold hot, cruel kind, deep shallow, dry wet, early late, easy hard, empty full, even odd, false
true, far near, fast slow, fat thin, few many, first last, flat steep, fresh stale, gentle rough, guilty
innocent, happy sad, heavy light, high low, inside outside, large tiny, lazy busy, left right, long short, loose
tight, loud quiet, new old, noisy silent, open shut, over under, polite rude, poor rich, private public, proud
humble, pull push, safe risky, sharp blunt, sick healthy, simple complex, smooth bumpy, soft firm, strong weak,
tall little, thick slim, up down, ugly pretty, wide tight, young aged
"""
_REGULAR_VERBS = """
add answer ask bake beg borrow call carry chase clap climb collect copy cry dance decide deliver drop enjoy escape
explain finish fix follow grab hate help hope hug imagine invite join jump kick laugh listen marry miss mix move
nod obey paint pass plan promise reach remember repeat save share shout smile start stay stop study talk touch try
visit wait walk want wash whisper wish work worry
""".split()  # noqa: SIM905
_IRREGULAR_VERBS = """
begin began, break broke, bring brought, buy bought, catch caught, choose chose, come came, drink drank, eat ate,
fall fell, find found, forget forgot, give gave, go went, hide hid, keep kept, know knew, make made, run ran,
sing sang, sit sat, speak spoke, swim swam, take took, teach taught, think thought, throw threw, write wrote
"""
_DOUBLED = "beg begin clap drop forget grab hug nod plan run sit stop swim".split()  # noqa: SIM905
_COUNTRIES = {
    "Europe": """
Albania Tirana, Austria Vienna, Belgium Brussels, Bulgaria Sofia, Croatia Zagreb, Finland Helsinki, France Paris,
Germany Berlin, Greece Athens, Hungary Budapest, Ireland Dublin, Italy Rome, Norway Oslo, Poland Warsaw,
Romania Bucharest, Sweden Stockholm
""",
    "Asia": """
Afghanistan Kabul, Bangladesh Dhaka, Cambodia Phnom Penh, China Beijing, India New Delhi, Iran Tehran, Iraq Baghdad,
Japan Tokyo, Jordan Amman, Lebanon Beirut, Nepal Kathmandu, Pakistan Islamabad, Thailand Bangkok, Vietnam Hanoi
""",
    "Africa": """
Algeria Algiers, Angola Luanda, Botswana Gaborone, Ethiopia Addis Ababa, Ghana Accra, Kenya Nairobi, Mali Bamako,
Namibia Windhoek, Nigeria Abuja, Rwanda Kigali, Senegal Dakar, Tunisia Tunis, Uganda Kampala, Zambia Lusaka
""",
    "North America": "Canada Ottawa, Cuba Havana, Honduras Tegucigalpa, Jamaica Kingston, Nicaragua Managua",
    "South America": "Argentina Buenos Aires, Brazil Brasilia, Peru Lima, Uruguay Montevideo, Venezuela Caracas",
}
_SENTIMENTS = {
    "positive": """
adorable amazing awesome beautiful brilliant charming delightful excellent fabulous fantastic gorgeous great lovely
magnificent marvelous perfect splendid superb terrific wonderful
""".split(),  # noqa: SIM905
    "negative": """
abysmal appalling atrocious awful disgusting dreadful ghastly hideous horrible horrid lousy miserable nasty pathetic
revolting terrible useless vile worthless wretched
""".split(),  # noqa: SIM905
}
DOMAINS: dict[str, tuple[str, ...]] = {
    "numbers": ("next_number", "previous_number", "double", "digits"),
    "letters": ("next_letter", "previous_letter", "uppercase"),
    "nouns": ("plural", "capitalize", "first_letter", "last_letter", "length"),
    "adjectives": ("opposite", "capitalize_adjective"),
    "couples": ("first_of_two", "second_of_two"),
    "verbs": ("past_tense", "gerund", "third_person"),
    "countries": ("capital", "continent"),
    "sentences": ("sentence_noun", "sentence_adjective", "sentiment"),
}
"""The tasks of each domain.

Tasks of one domain share inputs, so only demonstrations tell them apart. No input is in two domains, so the query tells
domains apart.
"""

BOTH_WAYS = ("digits", "uppercase", "capital")
"""The tasks that `both_ways` asks both ways. No output is the output of two inputs."""


def number_word(n: int) -> str:
    """0..99 in words."""
    if n < 20:
        return _UNITS[n]
    return _TENS[n // 10] + (f"-{_UNITS[n % 10]}" if n % 10 else "")


def plural(noun: str) -> str:
    """The plural of an English noun of the suite."""
    if noun in _IRREGULAR:
        return _IRREGULAR[noun]
    return third_person(noun)  # the same rules


def third_person(verb: str) -> str:
    """The third person of a verb of the suite, as in "she walks"."""
    if verb.endswith(("o", "s", "x", "ch", "sh")):
        return verb + "es"
    if _changes_y(verb):
        return verb[:-1] + "ies"
    return verb + "s"


def past_tense(verb: str) -> str:
    """The past tense of a verb of the suite."""
    regular = verb[:-1] + "ied" if _changes_y(verb) else _before_vowel(verb) + "ed"
    return dict(_rows(_IRREGULAR_VERBS)).get(verb, regular)


def gerund(verb: str) -> str:
    """The form in -ing of a verb of the suite."""
    return _before_vowel(verb) + "ing"


def _changes_y(word: str) -> bool:
    return word.endswith("y") and word[-2] not in "aeiou"


def _before_vowel(verb: str) -> str:
    return verb + verb[-1] if verb in _DOUBLED else verb.removesuffix("e")


def _rows(block: str) -> list[tuple[str, str]]:
    """The first word of each entry of a block with commas, and the rest of it."""
    return [(first, " ".join(rest)) for first, *rest in map(str.split, block.split(","))]


def _sentences() -> list[tuple[str, str, str]]:
    """Noun, adjective and sentiment of 300 sentences, by turns positive and negative."""
    random = np.random.RandomState(1)  # frozen too, and apart from that of the couples
    halves = []
    for sentiment, adjectives in _SENTIMENTS.items():
        known = [(noun, adjective, sentiment) for noun in _NOUNS for adjective in adjectives]
        halves.append([known[i] for i in random.choice(len(known), 150, replace=False)])
    return [sentence for both in zip(*halves, strict=True) for sentence in both]


def suite() -> dict[str, TextTask]:
    """Every built-in task by name."""
    numbers, letters = range(50), string.ascii_lowercase
    words = {word: word for word in _NOUNS}
    opposites = _rows(_OPPOSITES)
    opposites += [(b, a) for a, b in opposites]
    random = np.random.RandomState(0)  # a frozen generator: the same lists everywhere
    couples = [random.choice(_NOUNS, 2, replace=False).tolist() for _ in range(300)]
    verbs = [*_REGULAR_VERBS, *dict(_rows(_IRREGULAR_VERBS))]
    countries = sorted((*row, continent) for continent, block in _COUNTRIES.items() for row in _rows(block))
    sentences = [(f"the {noun} was {adjective}", noun, adjective, tone) for noun, adjective, tone in _sentences()]
    pairs = {
        "next_number": [(number_word(n), number_word(n + 1)) for n in numbers],
        "previous_number": [(number_word(n), number_word(n - 1)) for n in numbers if n],
        "double": [(number_word(n), number_word(2 * n)) for n in numbers],
        "digits": [(number_word(n), str(n)) for n in numbers],
        "next_letter": [(a, b) for a, b in itertools.pairwise(letters)],
        "previous_letter": [(b, a) for a, b in itertools.pairwise(letters)],
        "uppercase": [(a, a.upper()) for a in letters],
        "plural": [(w, plural(w)) for w in words],
        "capitalize": [(w, w.capitalize()) for w in words],
        "first_letter": [(w, w[0]) for w in words],
        "last_letter": [(w, w[-1]) for w in words],
        "length": [(w, str(len(w))) for w in words],
        "opposite": [(a, b) for a, b in opposites],
        "capitalize_adjective": [(a, a.capitalize()) for a, _ in opposites],
        "first_of_two": [(f"{a}, {b}", a) for a, b in couples],
        "second_of_two": [(f"{a}, {b}", b) for a, b in couples],
        "past_tense": [(v, past_tense(v)) for v in verbs],
        "gerund": [(v, gerund(v)) for v in verbs],
        "third_person": [(v, third_person(v)) for v in verbs],
        "capital": [(country, city) for country, city, _ in countries],
        "continent": [(country, continent) for country, _, continent in countries],
        "sentence_noun": [(text, noun) for text, noun, _, _ in sentences],
        "sentence_adjective": [(text, adjective) for text, _, adjective, _ in sentences],
        "sentiment": [(text, tone) for text, _, _, tone in sentences],
    }
    # An input has one answer, its first ("tight" is "loose", not "wide"), so that published numbers stay as they are.
    return {
        name: TextTask(name, tuple((x, answers[0]) for x, answers in answers_of(items).items()))
        for name, items in pairs.items()
    }


def both_ways() -> dict[str, TextTask]:
    """Tasks that ask a map of some inputs and its inverse of others, "seven" for "7" and "8" for "eight". [ours]

    No part of the suite. Of such tasks it is predicted that a single vector fails (Dong et al. 2026, arXiv 2506.09048).
    Each pair stands in one direction, by turns, so that no demonstration gives away an answer.
    """
    known, tasks = suite(), {}
    for name in BOTH_WAYS:
        pairs = known[name].pairs
        tasks[f"{name}_both_ways"] = TextTask(
            f"{name}_both_ways", tuple((y, x) if number % 2 else (x, y) for number, (x, y) in enumerate(pairs))
        )
    return tasks
