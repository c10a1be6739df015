"""The built-in text tasks: letters, numbers, words and lists of them. Nothing is downloaded; all of it is ours.

Tasks share their inputs on purpose: "seven" may become "eight", "six", "fourteen", "7" or "Seven", and only the
demonstrations say which. So a model that knows every pair still cannot answer without them.
"""

import itertools
import string

import numpy as np

from tvjax.tasks.text import TextTask, without_repetition

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


def number_word(n: int) -> str:
    """0..99 in words."""
    if n < 20:
        return _UNITS[n]
    return _TENS[n // 10] + (f"-{_UNITS[n % 10]}" if n % 10 else "")


def plural(noun: str) -> str:
    """The plural of an English noun of the suite."""
    if noun in _IRREGULAR:
        return _IRREGULAR[noun]
    if noun.endswith(("s", "x", "ch", "sh")):
        return noun + "es"
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return noun[:-1] + "ies"
    return noun + "s"


def suite() -> dict[str, TextTask]:
    """Every built-in task by name."""
    numbers, letters = range(50), string.ascii_lowercase
    words = {word: word for word in _NOUNS}
    opposites = [tuple(pair.split()) for pair in _OPPOSITES.replace("\n", " ").split(",")]
    opposites += [(b, a) for a, b in opposites]
    random = np.random.RandomState(0)  # a frozen generator: the same lists everywhere
    couples = [random.choice(_NOUNS, 2, replace=False).tolist() for _ in range(300)]
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
    }
    return {name: TextTask(name, without_repetition(items)) for name, items in pairs.items()}
