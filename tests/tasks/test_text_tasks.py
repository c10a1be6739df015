"""Text tasks: splits, demonstrations, and the built-in suite."""

import itertools
from collections import Counter

import numpy as np
import pytest

from tvjax.errors import UserError
from tvjax.tasks.suite import BOTH_WAYS, DOMAINS, both_ways, number_word, plural, suite
from tvjax.tasks.text import SPLITS, Template, TextTask, shots, some, split_of
from tvjax.text.data import DataConfig


class TestSplits:
    def test_no_input_is_in_two_and_none_is_lost(self):
        for task in suite().values():
            parts = [task.split(name) for name in SPLITS]
            assert sorted(sum(parts, ())) == sorted(task.pairs)

    def test_the_same_input_is_in_the_same_split_in_every_task(self):
        where = {}
        for task in suite().values():
            for split in SPLITS:
                for x, _ in task.split(split):
                    assert where.setdefault(x, split) == split

    def test_shares_are_as_said(self):
        count = Counter(split_of(f"word {n}") for n in range(20_000))
        for name, share in SPLITS.items():
            assert abs(count[name] / 20_000 - share) < 0.015

    def test_they_never_change(self):
        """Numbers that were published with one split must mean the same tomorrow."""
        assert [split_of(w) for w in ("apple", "bear", "seven", "zero", "a")] == [
            "train",
            "test",
            "train",
            "test",
            "test",
        ]

    def test_an_unknown_one_is_refused(self):
        with pytest.raises(UserError, match="train, dev, test"):
            TextTask("t", (("a", "b"),)).split("validation")


class TestBothWays:
    def test_each_pair_stands_once_half_of_them_turned_round(self):
        for name, task in both_ways().items():
            plain = suite()[name.removesuffix("_both_ways")].pairs
            turned = [pair for pair in task.pairs if pair[::-1] in plain]
            assert len(task.pairs) == len(plain) == len({frozenset(pair) for pair in task.pairs})
            assert set(task.pairs) - set(turned) < set(plain) and len(turned) == len(plain) // 2

    def test_no_demonstration_holds_the_answer_to_a_query(self):
        for task in both_ways().values():
            inputs, outputs = zip(*task.pairs, strict=True)
            assert len({*inputs, *outputs}) == 2 * len(task.pairs)

    def test_they_are_known_by_name_alone(self):
        names = tuple(f"{name}_both_ways" for name in BOTH_WAYS)
        assert tuple(DataConfig(tasks=names).read()) == names and set(DataConfig().read()) == set(suite())


class TestSeveralAnswers:
    TASK = TextTask("next", (("may", "june"), ("a", "b"), ("may", "might"), ("seven", "eight"), ("may", "june")))

    def test_an_input_has_all_its_answers(self):
        assert self.TASK.answers == {"may": ("june", "might"), "a": ("b",), "seven": ("eight",)}

    def test_a_question_is_an_input_with_all_answers_in_one_split(self):
        parts = {split: self.TASK.questions(split) for split in SPLITS}
        assert sorted(sum(parts.values(), ())) == [("a", "b"), ("may", "june"), ("seven", "eight")]
        (home,) = [split for split, asked in parts.items() if ("may", "june") in asked]
        assert {("may", "june"), ("may", "might")} <= set(self.TASK.split(home))
        assert some(parts[home], 1) == parts[home][:1] or len(parts[home]) > 1

    def test_the_built_in_tasks_have_one_each(self):
        """So that numbers that were published with them stay."""
        assert all(len(ys) == 1 for task in suite().values() for ys in task.answers.values())
        assert suite()["opposite"].answers["tight"] == ("loose",)


class TestPrompts:
    def test_a_prompt_shows_its_pairs_and_ends_where_the_answer_begins(self):
        template = Template("Q: ", "\nA:", "\n\n")
        text = template.prompt([("hot", "cold")], "big")
        assert text == "Q: hot\nA: cold\n\nQ: big\nA:"
        assert template.answer("small") == " small"
        assert Template("", ":", ";", start=">").prompt([("hot", "cold")], "big") == ">hot: cold;big:"

    def test_demonstrations_never_repeat_nor_hold_the_query(self):
        pairs = suite()["plural"].pairs
        for seed in range(50):
            shown = shots(np.random.default_rng(seed), pairs, 8, apart_from="bag")
            assert len(set(shown)) == 8 and "bag" not in dict(shown) and set(shown) <= set(pairs)

    def test_shuffled_labels_are_the_same_words(self):
        pairs = suite()["plural"].pairs
        straight = shots(np.random.default_rng(0), pairs, 8)
        mixed = shots(np.random.default_rng(0), pairs, 8, shuffled=True)
        assert [x for x, _ in mixed] == [x for x, _ in straight] and mixed != straight
        assert sorted(y for _, y in mixed) == sorted(y for _, y in straight)

    def test_an_input_of_several_answers_is_shown_once_with_one_of_them(self):
        pairs = [(x, f"{x}{n}") for n in range(3) for x in "abcde"]
        drawn = [shots(np.random.default_rng(seed), pairs, 4, apart_from="c") for seed in range(60)]
        assert all(sorted(x for x, _ in shown) == list("abde") for shown in drawn)
        assert {pair for shown in drawn for pair in shown} == {pair for pair in pairs if pair[0] != "c"}
        with pytest.raises(UserError, match="at most 4"):
            shots(np.random.default_rng(0), pairs, 5, apart_from="c")

    def test_where_each_input_has_one_answer_the_draws_stay_as_they_were(self):
        """Numbers that were published must come out again."""
        pairs = suite()["plural"].pairs
        for seed in range(20):
            random = np.random.default_rng(seed)
            others = [pair for pair in pairs if pair[0] != "bag"]
            expected = [[others[i] for i in random.choice(len(others), 5, replace=False)] for _ in range(2)]
            again = np.random.default_rng(seed)
            assert [shots(again, pairs, 5, apart_from="bag") for _ in range(2)] == expected

    def test_more_than_there_are_is_refused(self):
        with pytest.raises(UserError, match="at most 1"):
            shots(np.random.default_rng(0), [("a", "b"), ("c", "d")], 2, apart_from="a")


class TestSuite:
    def test_numbers_and_plurals(self):
        assert [number_word(n) for n in (0, 13, 20, 21, 99)] == [
            "zero",
            "thirteen",
            "twenty",
            "twenty-one",
            "ninety-nine",
        ]
        known = {"city": "cities", "box": "boxes", "boy": "boys", "church": "churches", "mouse": "mice", "cat": "cats"}
        assert {noun: plural(noun) for noun in known} == known

    def test_most_inputs_belong_to_several_tasks_with_different_answers(self):
        """So demonstrations are needed: the best guess without them is right less than half of the time."""
        answers = {}
        for task in suite().values():
            for x, y in task.pairs:
                answers.setdefault(x, Counter())[y] += 1
        total = sum(sum(c.values()) for c in answers.values())
        assert sum(max(c.values()) for c in answers.values()) / total < 0.5

    @pytest.mark.parametrize(
        "forms",
        [
            "walk walked walking walks",
            "stop stopped stopping stops",
            "carry carried carrying carries",
            "enjoy enjoyed enjoying enjoys",
            "dance danced dancing dances",
            "wash washed washing washes",
            "fix fixed fixing fixes",
            "visit visited visiting visits",
            "run ran running runs",
            "write wrote writing writes",
            "begin began beginning begins",
            "teach taught teaching teaches",
            "go went going goes",
        ],
    )
    def test_verbs(self, forms):
        verb, *answers = forms.split()
        assert [dict(suite()[name].pairs)[verb] for name in DOMAINS["verbs"]] == answers

    def test_a_verb_is_no_noun_or_adjective_either_as_input_or_in_a_sentence(self):
        tasks = suite()
        verbs = {x for x, _ in tasks["gerund"].pairs}
        for name in ("plural", "opposite"):
            assert not verbs & {x for x, _ in tasks[name].pairs}
        assert not verbs & {y for _, y in tasks["opposite"].pairs + tasks["sentence_adjective"].pairs}

    def test_countries(self):
        capital, continent = (dict(suite()[name].pairs) for name in DOMAINS["countries"])
        known = {"France": "Paris", "India": "New Delhi", "Kenya": "Nairobi", "Argentina": "Buenos Aires"}
        assert {country: capital[country] for country in known} == known
        assert [continent[country] for country in known] == ["Europe", "Asia", "Africa", "South America"]
        assert continent["Cuba"] == "North America" and len(set(capital.values())) == len(capital)

    def test_sentences_say_their_noun_and_adjective_and_half_are_positive(self):
        tasks = suite()
        nouns, adjectives, tones = (dict(tasks[name].pairs) for name in DOMAINS["sentences"])
        assert all(text == f"the {nouns[text]} was {adjectives[text]}" for text in tones)
        assert Counter(tones.values()) == {"positive": 150, "negative": 150}
        tone_of = {adjectives[text]: tone for text, tone in tones.items()}
        assert tone_of["wonderful"] == "positive" and tone_of["awful"] == "negative" and len(tone_of) == 40
        assert all(tone_of[adjectives[text]] == tone for text, tone in tones.items())
        assert not set(tone_of) & {x for x, _ in tasks["opposite"].pairs}

    def test_random_lists_never_change(self):
        ends = [[suite()[name].pairs[i][0] for i in (0, -1)] for name in ("first_of_two", "sentiment")]
        assert ends == [["car, bee", "boy, night"], ["the cow was splendid", "the rose was disgusting"]]

    def test_counts(self):
        tasks = suite()
        assert [len(tasks[DOMAINS[name][0]].pairs) for name in ("verbs", "countries", "sentences")] == [97, 54, 300]
        for name in DOMAINS["verbs"] + DOMAINS["countries"] + DOMAINS["sentences"]:
            assert len(tasks[name].split("test")) >= 8

    def test_every_task_is_in_one_domain(self):
        assert sorted(itertools.chain(*DOMAINS.values())) == sorted(suite())

    def test_tasks_of_a_domain_share_inputs_and_others_do_not(self):
        inputs = {name: {x for x, _ in task.pairs} for name, task in suite().items()}
        home = {name: domain for domain, names in DOMAINS.items() for name in names}
        for a, b in itertools.combinations(inputs, 2):
            shared = len(inputs[a] & inputs[b])
            assert shared > 0.9 * len(inputs[a] | inputs[b]) if home[a] == home[b] else not shared, (a, b)
