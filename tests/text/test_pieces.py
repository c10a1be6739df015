"""Tables of tokens: what is trained on is what the tokenizer, of whatever kind, makes of the whole text."""

import functools
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
from tokenizers import Regex, models, normalizers, pre_tokenizers, processors

from tvjax.errors import UserError
from tvjax.nn.answers import questions
from tvjax.nn.pretrained import Tokenizer
from tvjax.tasks.text import Template, TextTask
from tvjax.text.prompts import draw_pairs, draw_prompts, tables

WORDS = ("hot cold", "big small", "Été Hiver", "up down", "seven 8", "a1 b2", "ﬁt fat", "don't do", "new York")
TASKS = {
    "opposite": TextTask("opposite", tuple(tuple(pair.split()) for pair in WORDS)),
    "double": TextTask("double", tuple((f"{n} and {n}", str(2 * n)) for n in range(1, 8))),
}
TEMPLATES = {"lines": Template("", " ->", "\n"), "paragraphs": Template(), "signs": Template("x=", ", y=", ";")}
TEMPLATES |= {"led": Template("", " ->", "\n", start="\n")}
ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
MERGES = [("Ċ", "Ċ"), ("Ġ", "c"), ("Ġc", "o"), ("a", "n"), ("Ġ", "d")]


def byte_level(merges=(), *, regex=True, prefix=False, pattern=None, trim=True):
    """A byte-level BPE as GPT-2's, or with `pattern` as that of Llama 3."""
    vocab = {name: i for i, name in enumerate(["<s>", *ALPHABET, *("".join(pair) for pair in merges)])}
    made = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=list(merges)))
    level = pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=regex and pattern is None)
    split = [pre_tokenizers.Split(Regex(pattern), "isolated")] if pattern else []
    made.pre_tokenizer = pre_tokenizers.Sequence([*split, level])
    made.post_processor = processors.ByteLevel(trim_offsets=trim)
    return made


def characters(model, *, pre=None, normalizer=None):
    """A tokenizer whose words begin with a blank that is written as a sign, as SentencePiece's."""
    made = tokenizers.Tokenizer(model)
    if pre is not None:
        made.pre_tokenizer = pre
    if normalizer is not None:
        made.normalizer = normalizer
    return made


def letters():
    text = "".join(x + y for task in TASKS.values() for x, y in task.pairs) + "\n->;:,=▁ QAxyfi"
    return sorted(set(text))


def sentence_pieces(merges=()):
    vocab = {name: i for i, name in enumerate(["<s>", "<unk>", *letters(), *("".join(pair) for pair in merges)])}
    return models.BPE(vocab=vocab, merges=list(merges), unk_token="<unk>", fuse_unk=True)


def unigram():
    known = [("<s>", 0.0), ("<unk>", 0.0), *((c, -5.0) for c in letters()), ("▁co", -6.0), ("ld", -6.0), ("\n\n", -3.0)]
    return models.Unigram(known, 1)


def words():
    text = [w for task in TASKS.values() for pair in task.pairs for t in pair for w in t.split()]
    known = sorted({*text, "Q", "A", ":", "-", ">", ";", ",", "=", "x", "y", "'", "t", "don"})
    return models.WordLevel({name: i for i, name in enumerate(["<s>", "[UNK]", *known])}, unk_token="[UNK]")


SPACES = [("▁", "c"), ("▁", "d"), ("a", "n")]
KINDS = {
    "bytes": lambda: byte_level(),
    "bytes, two newlines": lambda: byte_level(MERGES),
    "bytes, spans with their spaces": lambda: byte_level(MERGES, trim=False),
    "bytes, a space before all": lambda: byte_level(MERGES, prefix=True),
    "bytes, newlines apart": lambda: byte_level(MERGES, pattern=r" ?\p{L}+|\p{N}{1,3}|\s*[\r\n]+|\s+|[^\s\p{L}\p{N}]+"),
    "lower case": lambda: with_normalizer(normalizers.Lowercase()),
    "NFKC": lambda: with_normalizer(normalizers.NFKC()),
    "stripped": lambda: with_normalizer(normalizers.Strip()),
    "first": lambda: characters(sentence_pieces(SPACES), pre=pre_tokenizers.Metaspace(prepend_scheme="first")),
    "always": lambda: characters(sentence_pieces(SPACES), pre=pre_tokenizers.Metaspace(prepend_scheme="always")),
    "never": lambda: characters(sentence_pieces(SPACES), pre=pre_tokenizers.Metaspace(prepend_scheme="never")),
    "as Llama 2": lambda: characters(
        sentence_pieces(SPACES),
        normalizer=normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]),
    ),
    "unigram": lambda: characters(unigram(), pre=pre_tokenizers.Metaspace(prepend_scheme="first", split=False)),
    "words": lambda: characters(words(), pre=pre_tokenizers.Whitespace()),
}


def with_normalizer(normalizer):
    made = byte_level(MERGES)
    made.normalizer = normalizer
    return made


def begun(made):
    """The same with a token before every text."""
    put = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    made.post_processor = processors.Sequence([made.post_processor, put]) if made.post_processor else put
    return made


def opened(made, folder):
    (folder / "tokenizer.json").write_text(made.to_str())
    return Tokenizer(folder)


def real(rows):
    """The tokens of some columns of a prompt."""
    ids = np.asarray(rows).reshape(-1)
    return ids[ids >= 0].tolist()


def texts_of(template, task, rows):
    """Each prompt of pairs, up to the last query and whole."""
    pairs = [task.pairs[row] for row in rows]
    *shown, (x, y) = pairs
    query = template.prompt(shown, x)
    return query, query + template.answer(y) + template.after


@pytest.mark.parametrize("first", [False, True], ids=["bare", "BOS"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_pair_behind_every_pair_is_as_in_the_whole_text(kind, first, tmp_path):
    """4 templates; of each 2 tasks all prompts of two pairs, as evaluation would ask them and whole."""
    made = KINDS[kind]()
    tokenizer = opened(begun(made) if first else made, tmp_path)
    for template in TEMPLATES.values():
        data = tables(TASKS, template, tokenizer, 2)
        template = template.led_by(tokenizer)
        for start, task in zip(data["start"], TASKS.values(), strict=True):
            prompts = [*itertools.permutations(range(len(task.pairs)), 2), *((n,) for n in range(len(task.pairs)))]
            texts = [texts_of(template, task, rows) for rows in prompts]
            asked, whole = (tokenizer.encode(some) for some in zip(*texts, strict=True))
            for rows, query, ids in zip(prompts, asked, whole, strict=True):
                parts = []
                for place, row in enumerate(rows):
                    parts.append(real(data["query" if place else "first"][start + row]))
                    parts.append(real(data["answer" if place < len(rows) - 1 else "last"][start + row]))
                joined = list(itertools.chain(*parts))
                assert joined == ids and joined[: -len(parts[-1])] == query, (template, rows)
                assert parts[-1]


@functools.partial(jax.jit, static_argnums=(2, 3, 4))
def drawn(data, key, batch, pairs, most):
    """Prompts of pairs, and pairs alone."""
    task_B, prompts = draw_prompts(data, key, batch, pairs, most)
    return prompts, draw_pairs(data, key, task_B, 3)


@pytest.mark.parametrize("kind", ["first", "bytes, two newlines"])
def test_what_is_drawn_is_the_whole_text(kind, tmp_path):
    tokenizer = opened(begun(KINDS[kind]()), tmp_path)
    template = Template()
    arrays = tables(TASKS, template, tokenizer, 3)
    data = {name: jnp.asarray(array) for name, array in arrays.items()}
    prompts, alone = drawn(data, jax.random.key(0), 40, 4, int(arrays["count"].max()))
    rows = [(task, rows) for task in TASKS.values() for rows in itertools.permutations(range(len(task.pairs)), 4)]
    known = {tuple(ids) for ids in tokenizer.encode([texts_of(template, task, chosen)[1] for task, chosen in rows])}
    ones = [(task, [row]) for task in TASKS.values() for row in range(len(task.pairs))]
    single = {tuple(ids) for ids in tokenizer.encode([texts_of(template, task, chosen)[1] for task, chosen in ones])}
    assert all(tuple(real(prompt)) in known for prompt in prompts)
    assert all(tuple(real(pair)) in single for pair in alone.reshape(-1, alone.shape[-1]))


class TestRefused:
    def refused(self, made, template, tmp_path, tasks=TASKS):
        with pytest.raises(UserError) as error:
            tables(tasks, template, opened(made, tmp_path), 2)
        assert "\n" not in str(error.value)
        return str(error.value)

    def test_a_token_of_an_answer_and_the_next_query(self, tmp_path):
        made = byte_level([*MERGES, ("ĊĊ", "Q")], regex=False)
        says = self.refused(made, Template(), tmp_path)
        assert r"\n\n' + 'Q: " in says and "`after` ends" in says
        assert tables(TASKS, Template("", "=", ";"), opened(made, tmp_path), 2)

    def test_two_newlines_of_which_one_is_the_next_querys(self, tmp_path):
        says = self.refused(byte_level(MERGES, regex=False), Template("\nQ: ", "\nA:", "\n"), tmp_path)
        assert r"\n' + '\nQ: " in says and "an answer and the next query" in says

    def test_a_space_between_the_pairs_that_the_next_query_takes(self, tmp_path):
        """Spans that leave out a token's space would not show it."""
        tasks = {"t": TextTask("t", (("cold", "hot"), ("coal", "wood"), ("dog", "cat")))}
        says = self.refused(byte_level(MERGES), Template("", " ->", " "), tmp_path, tasks)
        assert "`after` ends" in says

    def test_a_token_of_a_query_and_its_answer(self, tmp_path):
        says = self.refused(byte_level([(":", "Ġ")], regex=False), Template(), tmp_path)
        assert "A:' + ' " in says and "`between` ends" in says

    def test_a_pair_that_is_cut_otherwise_before_one_query_alone(self, tmp_path):
        """No token crosses: that the word ends in a mark of its own, unless a letter comes, is seen by trying."""
        made = byte_level([("b", ";")], pattern=r"[a-z]+;(?=p)|[a-z]+|[^a-z]+")
        pairs = tuple((x, f"{x}b") for x in ("m", "n", "o", "q", "r", "p"))
        says = self.refused(made, Template("", ">", ";"), tmp_path, {"t": TextTask("t", pairs)})
        assert "b;' + '" in says and "cut otherwise" in says

    def test_a_tokenizer_that_ends_every_text(self, tmp_path):
        made = byte_level()
        made.post_processor = processors.TemplateProcessing(single="$A <s>", special_tokens=[("<s>", 0)])
        assert "tokenizer.json" in self.refused(made, Template(), tmp_path)
        with pytest.raises(UserError, match="behind every text"):
            questions(opened(made, tmp_path), ["a"], [" b"])


class TestAnswers:
    TASK = TextTask("next", (("may", "june"), ("seven", "eight"), ("may", "might"), ("a", "b"), ("seven", "8")))

    def drawn(self, tokenizer, key):
        arrays = tables({"next": self.TASK}, TEMPLATES["lines"], tokenizer, 2)
        data = {name: jnp.asarray(array) for name, array in arrays.items()}
        prompts, pairs = drawn(data, key, 60, 3, int(arrays["count"].max()))
        decode = lambda rows: [tuple(line.split(" -> ")) for line in tokenizer.decode(real(rows)).strip().split("\n")]
        return [decode(prompt) for prompt in prompts], [decode(pair) for pair in pairs.reshape(-1, pairs.shape[-1])]

    def test_a_prompt_has_each_input_once_with_one_of_its_answers(self, tmp_path):
        made = byte_level(MERGES)
        made.decoder = tokenizers.decoders.ByteLevel()
        prompts, alone = self.drawn(opened(made, tmp_path), jax.random.key(0))
        assert all(sorted(x for x, _ in prompt) == ["a", "may", "seven"] for prompt in prompts)
        assert {pair for prompt in prompts for pair in prompt} == set(self.TASK.pairs)
        assert {pair for (pair,) in alone} == set(self.TASK.pairs)

    def test_inputs_count_and_not_pairs(self, tmp_path):
        with pytest.raises(UserError, match="at most 2"):
            tables({"next": self.TASK}, TEMPLATES["lines"], opened(byte_level(), tmp_path), 3)


def test_its_description_may_hold_anything(tmp_path):
    """Spans are read from a copy of the tokenizer that is written out and read again."""
    made = byte_level(MERGES)
    made.add_special_tokens([tokenizers.AddedToken("<|é\n|>", special=True)])
    tokenizer = opened(made, tmp_path)
    text = "a<|é\n|> cold"
    found = tokenizer.encode_with_spans([text])[0]
    assert [i for i, _ in found] == tokenizer.encode([text])[0]
    assert [text[slice(*span)] for _, span in found] == ["a", "<|é\n|>", " co", "l", "d"]
    assert json.loads((tmp_path / "tokenizer.json").read_text())["post_processor"]["trim_offsets"]
