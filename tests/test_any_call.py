"""300 calls of the public functions, drawn with a fixed seed: each is right, or is refused in one line.

Half are meant to be valid: what is meant is drawn first, then one of the many forms that it can be given in. They are
compared with one prompt at a time, without a cache and with every edit spelled out by loops. Half have one argument
that means nothing, and have to be refused. Edits are made dense before they reach the decoder, so that few programs
are compiled.
"""

import collections
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tvjax
from tests.nn.golden import GOLDEN
from tvjax import library
from tvjax.errors import UserError
from tvjax.nn import decoding
from tvjax.nn.model import ADDRESSES, forward
from tvjax.nn.taps import Edit
from tvjax.nn.tokens import Tokens, pad
from tvjax.vectors.edits import HEADS, STATES

CALLS, SEED = 300, 17
L, D, H, C, V, B, NEW = 3, 16, 4, 4, 64, 3, 3
RAGGED, EVEN = [[5, 9, 13, 2, 40], [8, 3], [1, 2, 3]], [[5, 9, 13, 2], [8, 3, 1, 1], [7, 60, 2, 9]]
LONGEST = 8
CAPTURED = (
    ("blocks/resid", None),
    (["embed", "blocks/resid"], [3, 1]),
    (["blocks/heads", "blocks/keys"], [2, 2, 1]),
    (("blocks/attn_out",), [2]),
)


def unit(address):
    return (H, C) if address == HEADS else (D,)


def dense(model, edits, batch, length):
    """The same edits, of one shape for all."""

    def full(shape, edit):
        if edit is None:
            return Edit(jnp.ones(shape), jnp.zeros(shape), jnp.zeros(shape, bool))
        here = True if edit.here is None else edit.here
        return Edit(*(jnp.broadcast_to(jnp.asarray(a), shape) for a in (edit.keep, edit.add, here)))

    tree = edits or {}
    inside = {
        name.split("/")[1]: full((L, batch, length, *unit(name)), tree.get("blocks", {}).get(name.split("/")[1]))
        for name in STATES
    }
    return {"embed": full((batch, length, D), tree.get("embed")), "blocks": inside}


@pytest.fixture(scope="module")
def model():
    return tvjax.load(GOLDEN / "llama3", unroll=1)


@pytest.fixture
def few_programs(model, monkeypatch):
    def dense_forward(model, inputs, **options):
        edits = options.pop("edits")
        if isinstance(edits, dict) or edits is None:
            concrete = not isinstance(inputs, jax.core.Tracer)
            edits = dense(model, edits, *inputs.shape[:2]) if concrete else edits
        return forward(model, inputs, edits=edits, **options)

    whole = decoding.generate

    def dense_generate(model, tokens, count, *, prompt_edits, step_edits, **options):
        prompt_edits = dense(model, prompt_edits, *tokens.ids_BT.shape)
        step_edits = dense(model, step_edits, len(tokens.ids_BT), 1)
        return whole(model, tokens, count, prompt_edits=prompt_edits, step_edits=step_edits, **options)

    monkeypatch.setattr(library, "forward", dense_forward)
    monkeypatch.setattr(decoding, "generate", dense_generate)


class Reference:
    """One prompt alone, everything computed again for each token."""

    def __init__(self, model):
        self.model = model

    def one(self, ids, writes, b, prompt=True, new=0, steps=()):
        """Logits ``[T, V]`` and all states; the last `new` tokens are new ones, which `steps` alone act on."""
        shapes = {"embed": (1, LONGEST, D)} | {a: (L, 1, LONGEST, *unit(a)) for a in STATES}
        keep, add = ({name: np.full(shape, x) for name, shape in shapes.items()} for x in (1.0, 0.0))
        for number, write in enumerate(writes):
            old = len(ids) - new
            places = [p % old for p in write["own"][b]] if prompt else []
            places += list(range(old, len(ids))) if number in steps else []
            for i, layer in enumerate(write["layers"]):
                for p in places:
                    for h in write["heads"] if write["address"] == HEADS else [slice(None)]:
                        name, index = ("embed", (0, p)) if layer == 0 else (write["address"], (layer - 1, 0, p, h))
                        k, v = write["keep"][i, b], write["scale"][i, b] * write["vectors"][i, b][h]
                        keep[name][index] *= k
                        add[name][index] = k * add[name][index] + v
        here = lambda a: np.ones_like(a, bool)
        leaf = lambda name: Edit(*(jnp.asarray(a, jnp.float32) for a in (keep[name], add[name])), here(keep[name]))
        tree = {"embed": leaf("embed"), "blocks": {a.split("/")[1]: leaf(a) for a in STATES}}
        row = jnp.asarray([ids + [0] * (LONGEST - len(ids))])
        out, states = forward(self.model, row, edits=tree, addresses=ADDRESSES)
        states = {a: np.asarray(s)[:, 0] if a.startswith("blocks/") else np.asarray(s)[0] for a, s in states.items()}
        return np.asarray(out[0]), states

    def greedy(self, ids, writes, b, prompt, steps, stop):
        said = []
        for new in range(NEW):
            logits = self.one(ids + said, writes, b, prompt, new, steps)[0][len(ids) + new - 1]
            said.append(int(logits.argmax()))
            if said[-1] in stop:
                break
        return said


class Draw:
    """Draws what is meant, and a form in which it can be said."""

    def __init__(self, seed):
        self.r, self.n = random.Random(seed), np.random.default_rng(seed)

    def array(self, a):
        return self.r.choice((np.asarray, jnp.asarray, lambda a: np.asarray(a).tolist()))(np.asarray(a, np.float32))

    def number(self, n):
        return self.r.choice((int, np.int32, np.array, jnp.array))(n)

    def ints(self, numbers):
        return self.r.choice((list, tuple, np.array, jnp.array, lambda x: [np.int64(n) for n in x]))(list(numbers))

    def choice_of(self, numbers, size, first=0, alone=True):
        """Layers or heads: an int, a list, a slice or a mask of ``first..size-1``, and whether it is more than one."""
        forms = [lambda: (self.ints(numbers), True)]
        if len(numbers) == 1 and alone:
            forms += [lambda: (self.number(numbers[0]), False)] * 2
        if numbers == sorted(numbers):
            mask = np.isin(np.arange(first, size), numbers)
            forms += [lambda: (self.r.choice((list, np.array, jnp.array))(mask.tolist()), True)]
        if numbers == list(range(numbers[0], numbers[-1] + 1)):
            forms += [
                lambda: (slice(numbers[0], numbers[-1] + 1), True),
                lambda: (range(numbers[0], numbers[-1] + 1), True),
            ]
        return self.r.choice(forms)()

    def places(self, counts, side, equal=0):
        """Positions, and which of each prompt's own tokens they are; `equal`: how many of each, in any order."""
        kind = self.r.choice(("common", "each", "slice", "mask") + (() if equal else ("last", "all")))
        if kind in ("last", "all"):
            return kind, [[c - 1] if kind == "last" else list(range(c)) for c in counts]
        if kind == "common":
            pool = (
                [[0], [1], [-1], [-2]] if equal == 1 else [[0, 1], [-1, -2], [1, 0]] if equal else [[0], [-2], [1, 0]]
            )
            chosen = self.r.choice(pool)
            form = self.number(chosen[0]) if len(chosen) == 1 and self.r.random() < 0.5 else self.ints(chosen)
            return form, [[p % c for p in chosen] for c in counts]
        if kind == "each":
            own = [self.r.sample(range(c), equal or 2) for c in counts]
            signed = [[p - c if self.r.random() < 0.3 else p for p in row] for row, c in zip(own, counts, strict=True)]
            if {p for row in signed for p in row} <= {0, 1} and len(own[0]) == max(counts):
                return "last", [[c - 1] for c in counts]
            return self.r.choice((list, np.array, jnp.array))(signed), own
        if kind == "slice":
            pool = [slice(0, 1), slice(-1, None)] if equal == 1 else [slice(0, 2), slice(-2, None)]
            pool += [] if equal else [slice(None, None, 2), slice(1, None), slice(None, None, -1)]
            chosen = self.r.choice(pool)
            return chosen, [list(range(c))[chosen] for c in counts]
        own = [sorted(self.r.sample(range(c), equal or self.r.randint(1, c))) for c in counts]
        mask = np.zeros((len(counts), max(counts)), bool)
        for b, (row, c) in enumerate(zip(own, counts, strict=True)):
            start = max(counts) - c if side == "left" else 0
            mask[b, [start + p for p in row]] = True
            mask[b, : start if side == "left" else 0] = self.r.random() < 0.3  # padding does not count
        return self.r.choice((np.array, jnp.array))(mask), own

    def factor(self, several, n):
        """A factor as it is given, and as ``[n, B]``."""
        shapes = [(), (1, B), (n, 1) if several else (1, 1)]
        shapes += [(B,)] if not several or n != B else []
        shapes += [(n,), (n, B)] if several and n != B else []
        shape = self.r.choice([(), *shapes])
        value = self.n.uniform(0.2, 1.5, shape).astype(np.float32)
        full = value[:, None] if several and shape == (n,) and n > 1 else value
        given = float(value) if shape == () and self.r.random() < 0.5 else self.array(value)
        return given, np.broadcast_to(full, (n, B))

    def write(self, counts, side):
        address = self.r.choice(STATES)
        low = 0 if address == "blocks/resid" else 1
        numbers = self.r.sample(range(low, L + 1), self.r.choice((1, 1, 2, 3)))
        layers, several = self.choice_of(numbers, L + 1, self.r.choice((0, 1)) if 0 not in numbers else 0)
        n, u = len(numbers), unit(address)
        shapes = [(n, *u), (n, B, *u), (n, 1, *u), u] if several else [u, (B, *u), (1, *u)]
        shape = self.r.choice(shapes)
        v = self.n.standard_normal(shape).astype(np.float32)
        lead = v[:, None] if several and shape == (n, *u) else v
        positions, own = self.places(counts, side)
        kind = self.r.choice(("replace", "add", "mix"))
        options, factors = {"layers": layers, "positions": positions}, {}
        for name in {"replace": (), "add": ("scale",), "mix": ("keep", "scale")}[kind]:
            options[name], factors[name] = self.factor(several, n)
        heads = list(range(H))
        if address == HEADS and self.r.random() < 0.7:
            heads = self.r.sample(range(H), self.r.choice((1, 2)))
            options["heads"] = self.choice_of(heads, H)[0]
        if address != "blocks/resid" or self.r.random() < 0.3:
            options["address"] = address
        if isinstance(positions, str) and positions == "last" and self.r.random() < 0.5:
            del options["positions"]
        spelled = {
            "address": address,
            "layers": numbers,
            "heads": heads,
            "own": own,
            "all": isinstance(positions, str) and positions == "all",
            "last": isinstance(positions, str) and positions == "last",
            "vectors": np.broadcast_to(lead, (n, B, *u)),
            "scale": factors.get("scale", np.ones((n, B))),
            "keep": factors.get("keep", np.full((n, B), float(kind == "add"))),
        }
        return {"kind": kind, "vectors": self.array(v), **options}, spelled

    def call(self):
        """The arguments of a valid call, and what is meant by them."""
        name = self.r.choice(("run", "run", "capture", "capture", "sweep", "generate", "generate"))
        rows, side = (
            (EVEN, "left") if name == "run" and self.r.random() < 0.3 else (RAGGED, self.r.choice(("left", "right")))
        )
        counts = [len(row) for row in rows]
        if rows is EVEN:
            prompts = self.r.choice((list, np.array, jnp.array))(rows)
        else:
            prompts = rows if side == "left" and self.r.random() < 0.3 else pad(rows, side=side)
            if isinstance(prompts, Tokens):  # anything may stand at padding
                junk = self.r.choice((0, -100, 64, 7))
                prompts = prompts.replace(ids_BT=jnp.where(prompts.valid_BT, prompts.ids_BT, junk))
        drawn = [self.write(counts, side) for _ in range(self.r.choice((0, 1, 1, 2)))] if name != "sweep" else []
        call = {"name": name, "prompts": prompts, "writes": [w for w, _ in drawn], "options": {}}
        meant = {"rows": rows, "writes": [s for _, s in drawn], "side": side}
        getattr(self, name)(call["options"], meant, counts, side)
        return call, meant

    def run(self, options, meant, counts, side):
        meant["last"] = options["last"] = self.r.random() < 0.4

    def capture(self, options, meant, counts, side):
        addresses, layers = self.r.choice(CAPTURED)
        options["addresses"], meant["addresses"] = addresses, [addresses] if isinstance(addresses, str) else addresses
        meant["layers"] = layers or list(range(1, L + 1))
        if layers or self.r.random() < 0.5:
            options["layers"] = self.choice_of(meant["layers"], L + 1, self.r.choice((0, 1)))[0]
        equal = self.r.choice((0, 1, 2))
        meant["own"] = None
        if equal:
            options["positions"], meant["own"] = self.places(counts, side, equal)

    def sweep(self, options, meant, counts, side):
        meant["edit"] = options["edit"] = self.r.choice(("replace", "add"))
        value = self.n.standard_normal((L + 1, B, D)).astype(np.float32)
        options["vectors"], meant["vectors"] = self.array(value), value
        each = [self.r.randrange(-c, c) for c in counts]
        forms = [("last", [-1] * B), (slice(0, 1), [0] * B), (self.ints(each), each), (np.array(each)[:, None], each)]
        forms += [(self.number(p), [p] * B) for p in (0, 1, -1, -2)]
        options["position"], meant["position"] = self.r.choice(forms)

    def generate(self, options, meant, counts, side):
        options["max_new_tokens"], meant["stop"], during = self.number(NEW), (), None
        if meant["writes"]:
            named = all(w["all"] or w["last"] for w in meant["writes"])
            during = self.r.choice((None, "prompt", "steps", "both") if named else (None, "prompt"))
        options["during"], meant["prompt"] = during, during != "steps"
        steps = [
            i for i, w in enumerate(meant["writes"]) if during in ("steps", "both") or (during is None and w["all"])
        ]
        meant["steps"] = steps
        if self.r.random() < 0.4:
            meant["stop"] = (21, 36)
            options["stop"] = self.r.choice(((21, 36), [21, 36], np.array([21, 36])))
        if self.r.random() < 0.3:
            options |= {"key": self.r.choice((3, jax.random.key(3))), "top_k": 1, "temperature": 0.7}


def act(model, call):
    write = lambda w: getattr(tvjax, w["kind"])(
        w["vectors"], **{k: v for k, v in w.items() if k not in ("kind", "vectors")}
    )
    options = dict(call["options"])
    if call["name"] != "sweep":
        edits = [write(w) for w in call["writes"]] or None
        options.setdefault("edits", edits[0] if edits and len(edits) == 1 else edits)
    return getattr(tvjax, call["name"])(model, call["prompts"], **options)


def check(reference, call, meant, got):
    rows, writes = meant["rows"], meant["writes"]
    if call["name"] == "generate":
        for b, ids in enumerate(rows):
            said = reference.greedy(ids, writes, b, meant["prompt"], meant["steps"], meant["stop"])
            assert np.asarray(got.ids_BT[b]).tolist() == said + [0] * (NEW - len(said))
        return
    length = max(map(len, rows))
    for b, ids in enumerate(rows):
        at = [length - len(ids) + p if meant["side"] == "left" else p for p in range(len(ids))]
        if call["name"] == "sweep":
            for layer in range(L + 1):
                one = {"address": "blocks/resid", "layers": [layer], "own": [[p] for p in meant["position"]]}
                one |= {"vectors": meant["vectors"][layer][None], "scale": np.ones((1, B))}
                logits, _ = reference.one(ids, [one | {"keep": np.full((1, B), float(meant["edit"] == "add"))}], b)
                expected = logits[meant["position"][b] % len(ids)]
                np.testing.assert_allclose(got[layer][b], expected, atol=2e-4, rtol=1e-4)
            continue
        logits, states = reference.one(ids, writes, b)
        if call["name"] == "run":
            expected, seen = (
                (logits[len(ids) - 1][None], got[b]) if meant["last"] else (logits[: len(ids)], got[b][jnp.array(at)])
            )
            np.testing.assert_allclose(seen, expected, atol=2e-4, rtol=1e-4)
            continue
        assert set(got) == set(meant["addresses"])
        for address in meant["addresses"]:
            inside, places = address.startswith("blocks/"), range(len(ids)) if meant["own"] is None else meant["own"][b]
            whole = states[address][[layer - 1 for layer in meant["layers"]]] if inside else states[address]
            seen = np.asarray(got[address])[:, b] if inside else np.asarray(got[address])[b]
            seen = np.take(seen, at, axis=int(inside)) if meant["own"] is None else seen
            np.testing.assert_allclose(seen, np.take(whole, list(places), axis=int(inside)), atol=2e-4, rtol=1e-4)


NAN = np.full(D, np.nan, np.float32)
PADDED = np.array([[True] * 5, [False, False, True, False, False], [True] * 5])  # padding alone, on either side
NO_PLACE = (2, [-3], 50, [], [0.0], "first", None, np.zeros((3, 5), bool), [[0], [1]], [0, 0, 0, 0, 1], True, [True, 2])
NO_PLACE += (
    np.eye(5, dtype=int)[[4, 1, 1]],
    np.eye(5)[4],
    PADDED,
    slice(2, 3),
    slice(0.5, 2),
    {0},
    [[[0]]],
    np.ones(4, bool),
)
WRONG_WRITES = (
    *(("layers", x) for x in (4, -1, [1, 1], [], 1.0, True, "1", [True], slice(9, 12), None, [1, True], [[1]], {1})),
    *(("positions", x) for x in (*NO_PLACE, [0, -2], [0, 0])),
    *(("heads", x) for x in (4, [1, 1], -1, True, [0.0], [True, False], "0")),
    *(("vectors", x) for x in (np.ones(D + 1), np.ones((7, D)), NAN, np.ones(D, bool), "v", np.ones(D) * 1j, 1.0)),
    *(("scale", x) for x in (np.inf, "a", [1.0, 2.0, 3.0, 4.0, 5.0], [[1.0] * 7], True, np.ones((1, 1, 1)))),
    *(("address", x) for x in ("blocks/residual", "embed", "logits", 3, None)),
)
NO_PROMPTS = (
    *([[1, bad, 3]] for bad in (64, -1, -100, 2**33 + 1)),
    [[1.0, 2.0]], np.ones((1, 3)), [1, 2, 3], [[1, 2], []], [], "text", ["a", [1]], None, [[True, False]], [[[1]]], 3,
    Tokens(jnp.ones((2, 3), int), jnp.array([[True] * 3, [False] * 3])),
    Tokens(jnp.ones((2, 3), int), jnp.ones((2, 4), bool)), [[[1], [1, 2]], [3]],
)  # fmt: skip
BLANK = Edit(jnp.ones((L, 1, 1, 1)), jnp.ones((L, 1, 1, D)))
NO_EDITS = (
    [],
    {},
    jnp.ones(D),
    [3],
    {"blocks": {"nothing": BLANK}},
    {"embed": BLANK},
    {"blocks": {"resid": jnp.ones(D)}},
)
KEYS = np.ones((L, 2, 5, C))
NO_PREFIX = ("prefix", {}, {"keys": KEYS}, {"keys": KEYS, "values": KEYS[:, :1]}, {"keys": KEYS, "values": "v"}, KEYS)
NO_PREFIX += ({"keys": KEYS[:, :, :0], "values": KEYS[:, :, :0]}, {"keys": KEYS * np.nan, "values": KEYS})
NO_EDITS += ({"blocks": {"resid": Edit(BLANK.keep, BLANK.add, jnp.zeros((L, 1, 1, 1), bool))}}, "add")
WRONG_OPTIONS = {
    "run": (("last", "yes"), ("last", 1), *(("prefix", x) for x in NO_PREFIX)),
    "capture": (
        *(("addresses", x) for x in ("resid", [], 3, ["embed", "blocks"], None)),
        *(("layers", x) for x in (0, 4, [], 1.5, True, "2", -1, slice(0, 2), np.ones(7, bool))),
        *(("positions", x) for x in NO_PLACE),
    ),
    "sweep": (
        *(("vectors", np.ones(s)) for s in ((L, B, D), (L + 1, 2, D), (L + 1, B, D + 1), (L + 1, D))),
        ("vectors", np.full((L + 1, B, D), np.nan)),
        *(("position", x) for x in (2, -3, [0, 1], "all", 0.0, slice(0, 2), True, None, [])),
        ("edit", "mix"),
    ),
    "generate": (
        *(("stop", x) for x in (64, -1, "a", 1.0, [True], [[1]])),
        *(("max_new_tokens", x) for x in (0, True, 2.0, "3")),
        *(("key", x) for x in ("a", -1, 1.5, jnp.ones(3), True)),
        *(("temperature", x) for x in (0.0, -1.0, np.nan, "hot", [1.0], 0.5)),
        *(("top_k", x) for x in (-1, 65, 1.5, 2)),
        *(("prefix", x) for x in NO_PREFIX),
        ("during", "later"),
        ("addresses", "resid"),
    ),
}


def spoil(draw, call, even):
    """Give one argument a value that means nothing; the name and the value."""
    r, name = draw.r, call["name"]
    kinds = ["options", "prompts"] + (["edits"] if name != "sweep" else []) + ["write"] * 3 * bool(call["writes"])
    kind = r.choice(kinds)
    if kind == "write":
        write = r.choice(call["writes"])
        field, value = r.choice(WRONG_WRITES)
        if field == "heads" and write.get("address") != HEADS:
            value = 0  # there are none at another address
        if write.get("address") == HEADS and field == "vectors" and np.ndim(value) > 1:
            value = np.ones((2, 3, 4))
        value = 9 if field == "positions" and even else value  # the others may be there
        write[field] = value
        write["kind"] = "mix" if field == "scale" else write["kind"]
    elif kind == "options":
        field, value = r.choice(WRONG_OPTIONS[name])
        if field in ("temperature", "top_k") and value in (0.5, 2):
            call["options"].pop("key", None)  # which they are nothing without
        call["options"][field] = value
    else:
        field, value = (kind, r.choice(NO_PROMPTS)) if kind == "prompts" else (kind, r.choice(NO_EDITS))
        (call if kind == "prompts" else call["options"])[field] = value
    return field, value


def drawn(model, calls):
    draw, reference, tally, problems = Draw(SEED), Reference(model), collections.Counter(), []
    for number in range(calls):
        call, meant = draw.call()
        wrong = spoil(draw, call, meant["rows"] is EVEN) if draw.r.random() < 0.5 else None
        try:
            got = act(model, call)
            assert wrong is None, f"not refused: {wrong}"
            check(reference, call, meant, got)
            tally[call["name"]] += 1
        except UserError as error:
            tally["refused"] += 1
            if wrong is None or "\n" in str(error):
                problems.append(f"call {number} means something, or is not refused in one line: {error}\n{call}")
        except Exception as error:
            problems.append(f"call {number}, wrong: {wrong}: {type(error).__name__}: {str(error)[:500]}\n{call}")
    return tally, problems


@pytest.mark.slow
def test_every_call_is_right_or_refused(model, few_programs):
    tally, problems = drawn(model, CALLS)
    print(dict(tally))
    assert not problems, f"{len(problems)}, the first: {problems[0]}"
    assert CALLS / 3 < tally["refused"] < 2 * CALLS / 3
    assert min(tally[name] for name in ("run", "capture", "sweep", "generate")) > 10
