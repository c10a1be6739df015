"""In-context learning of a text task under shifts: prompts unlike those that a model was trained on. [ours]"""

import dataclasses
from collections.abc import Sequence

from tvjax.tasks.text import Answers, Pair, Template, answers_of
from tvjax.text.bench import Bench

SHIFTS = {
    "shuffled_shot": "labels shuffled among the demonstrations",
    "template_shot": "another template",
    "more_shot": "twice as many demonstrations",
    "joined_shot": "two inputs in one, and both answers",
}
"""The shifts by their names in the summary."""
JOINT = ", "
"""What stands between two inputs in one, and between their answers."""

PromptsAndAnswers = tuple[list[str], list[Answers]]
"""Prompts, and all right answers of each."""


def shifted(bench: Bench, name: str, questions: Sequence[Pair], template: Template) -> dict[str, PromptsAndAnswers]:
    """Prompts for the inputs that are asked, under each of `SHIFTS`.

    If a task has fewer inputs than twice the demonstrations, there are as many demonstrations as inputs.

    questions: the inputs that are asked, each with a right answer.
    template: the other one.
    """
    answers = bench.accepted(name, questions)
    other = dataclasses.replace(template, start=bench.template.start)
    twice = min(2 * bench.config.demonstrations, len(answers_of(bench.tasks[name].split("train"))))
    show = bench.template.prompt
    return {
        "shuffled_shot": (bench.few_shot(name, questions, shuffled=True), answers),
        "template_shot": ([other.prompt(*row) for row in bench.shots(name, questions)], answers),
        "more_shot": ([show(*row) for row in bench.shots(name, questions, count=twice)], answers),
        "joined_shot": _joined(bench, name, questions, answers, twice - twice % 2),
    }


def _joined(
    bench: Bench, name: str, questions: Sequence[Pair], answers: Sequence[Answers], count: int
) -> PromptsAndAnswers:
    """Each input with the next, behind demonstrations of two pairs in one."""
    prompts, accepted = [], []
    for number, (shown, x) in enumerate(bench.shots(name, questions, count=count)):
        following = (number + 1) % len(questions)
        pairs = [(f"{a}{JOINT}{b}", f"{y}{JOINT}{z}") for (a, y), (b, z) in zip(shown[::2], shown[1::2], strict=True)]
        prompts.append(bench.template.prompt(pairs, JOINT.join((x, questions[following][0]))))
        accepted.append(tuple(JOINT.join((one, other)) for one in answers[number] for other in answers[following]))
    return prompts, accepted
