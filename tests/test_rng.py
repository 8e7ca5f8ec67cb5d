"""The generator behind `ctx.random`: what a seed means, for ever, and that a counter is all there is to keep."""

from __future__ import annotations

import copy
import pickle
from collections import Counter
from collections.abc import Callable
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpsnap.core.rng import CounterRandom

SEEDS = st.integers() | st.text(max_size=20)


def words(rng: CounterRandom, count: int) -> list[int]:
    return [rng.randrange(1 << 64) for _ in range(count)]


# --- A seed means the same stream for ever. These figures are frozen: a change here breaks stored snapshots. ---


@pytest.mark.parametrize(
    ("seed", "expected"),
    [
        (0, [3177737838934314820, 18297072378727372390]),
        (1, [15692688195048942724, 13156860503479935821]),
        (-1, [12492799245666883404, 4134215861963088819]),
        (2**200, [6858223323326452925, 2447672037507062672]),
        ("", [16000828095011104885, 17143120174800851057]),
        ("0", [15410085835103495912, 2590744850150133649]),
        ("N1", [15817034234518393641, 16332981495004139022]),
        ("käse", [10843015647854087395, 5738550990175449718]),
    ],
)
def test_known_words(seed: int | str, expected: list[int]) -> None:
    """Every seed, of either type and any size, has the words it always had."""
    assert words(CounterRandom(seed), 2) == expected


def test_known_floats() -> None:
    """The floats stay too, past the end of the first block of eight words."""
    rng = CounterRandom("N1")
    assert [rng.random() for _ in range(10)] == [
        0.857443143967122,
        0.8854127010024514,
        0.45472238552046285,
        0.5882582885746882,
        0.0038005715338172985,
        0.16056052361765916,
        0.1478100011754192,
        0.9877430940062463,
        0.46368688529793023,
        0.6882669378898406,
    ]


def test_known_draws() -> None:
    """So do the methods, and how many words each of them takes."""
    rng = CounterRandom(2024)
    assert [rng.randrange(10) for _ in range(8)] == [1, 6, 2, 7, 6, 4, 3, 1]
    assert rng.randrange(-5, 5) == 1
    assert rng.randint(1, 6) == 6
    assert rng.uniform(2, 4) == 3.8456160648685502
    assert rng.choice("abcdef") == "f"
    assert rng.randrange(10**30) == 202241699927364859684278010065
    assert rng.sample(range(100), 5) == [62, 42, 24, 55, 89]
    deck = list(range(8))
    rng.shuffle(deck)
    assert deck == [0, 3, 4, 6, 2, 1, 5, 7]
    assert rng.counter == 32


# --- Seed and counter are the whole state. ---


@given(SEEDS, st.integers(0, 40), st.integers(1, 20))
def test_resumes_from_seed_and_counter(seed: int | str, before: int, after: int) -> None:
    """A generator made of another's seed and counter goes on where that one was."""
    rng = CounterRandom(seed)
    for _ in range(before):
        rng.random()
    assert rng.counter == before
    assert rng.seed == seed
    resumed = CounterRandom(rng.seed, rng.counter)
    assert words(resumed, after) == words(rng, after)


def test_resumes_in_the_middle_of_rejections() -> None:
    """A draw that threw words away has counted them."""
    rng = CounterRandom(5)
    for _ in range(50):
        rng.randrange(5)
    assert rng.counter > 50
    resumed = CounterRandom(5, rng.counter)
    assert [resumed.randrange(5) for _ in range(50)] == [rng.randrange(5) for _ in range(50)]


def test_counter_can_be_set() -> None:
    """Setting the counter goes to any place of the stream, backwards too."""
    rng = CounterRandom("again")
    first = words(rng, 20)
    rng.counter = 0
    assert words(rng, 20) == first
    rng.counter = 11
    assert words(rng, 9) == first[11:]


@given(SEEDS, st.integers(0, 20), st.lists(st.integers(1, 300) | st.integers(1, 2**200), max_size=20))
def test_a_draw_below_a_bound_is_the_first_words_that_fit(seed: int | str, counter: int, bounds: list[int]) -> None:
    """Words are cut to the bound's length and thrown away until they fit, whichever method draws."""
    chosen, ranged, plain = (CounterRandom(seed, counter) for _ in range(3))
    for bound in bounds:
        bits = (bound - 1).bit_length()
        count = max(1, -(-bits // 64))
        expected = bound
        while expected >= bound:
            drawn = sum(word << 64 * place for place, word in enumerate(reversed(words(plain, count))))
            expected = drawn >> count * 64 - bits
        assert (ranged.randrange(bound), ranged.counter) == (expected, plain.counter)
        if bound <= 300:
            assert (chosen.choice(range(bound)), chosen.counter) == (expected, plain.counter)
        chosen.counter = plain.counter


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda rng: pickle.loads(pickle.dumps(rng))])
def test_copies_are_independent(duplicate: Callable[[CounterRandom], CounterRandom]) -> None:
    """A copy goes on alone."""
    rng = CounterRandom(3, counter=13)
    other = duplicate(rng)
    drawn = words(other, 10)
    assert rng.counter == 13
    assert words(rng, 10) == drawn


def test_repr_is_its_state() -> None:
    rng = CounterRandom("N1")
    rng.random()
    assert repr(rng) == "CounterRandom('N1', counter=1)"
    assert repr(eval(repr(rng))) == repr(rng)


def test_seed_is_read_only() -> None:
    """A changed seed without a changed stream would be stored, and lie."""
    with pytest.raises(AttributeError):
        CounterRandom(1).seed = 2  # type: ignore[misc]


# --- The draws are evenly spread. Fixed seeds: these either always pass or never. ---


def chi_square(counts: Counter[int], cells: int) -> float:
    expected = counts.total() / cells
    return sum((counts[cell] - expected) ** 2 / expected for cell in range(cells))


# Of 15 degrees of freedom, one good generator in a million exceeds 55.
CHI_SQUARE_16 = 55.0


@pytest.mark.parametrize("seed", [0, 1, 2, "N1", "N2"])
def test_floats_are_even(seed: int | str) -> None:
    rng = CounterRandom(seed)
    drawn = [rng.random() for _ in range(16_000)]
    assert min(drawn) >= 0.0
    assert max(drawn) < 1.0
    assert chi_square(Counter(int(value * 16) for value in drawn), 16) < CHI_SQUARE_16
    # The low end of the 53 bits as well as the high one.
    assert chi_square(Counter(int(value * 2**53) % 16 for value in drawn), 16) < CHI_SQUARE_16


def test_neighbouring_draws_are_unrelated() -> None:
    """Pairs of draws fill the square, and so do the first draws of neighbouring seeds."""
    rng = CounterRandom(7)
    pairs = Counter(rng.randrange(4) * 4 + rng.randrange(4) for _ in range(16_000))
    assert chi_square(pairs, 16) < CHI_SQUARE_16
    firsts = Counter(CounterRandom(seed).randrange(16) for seed in range(8_000))
    assert chi_square(firsts, 16) < CHI_SQUARE_16


def test_ranges_are_unbiased() -> None:
    """A range that no power of two fills is even too: a plain remainder would give its first third double weight."""
    rng = CounterRandom("bias")
    for width in (3, 3 << 62, 3 << 90):
        thirds = Counter(rng.randrange(width) * 3 // width for _ in range(6_000))
        assert chi_square(thirds, 3) < 28


def test_shuffles_and_samples_are_even() -> None:
    rng = CounterRandom("cards")
    orders = {order: place for place, order in enumerate(permutations(range(3)))}
    shuffled: Counter[int] = Counter()
    sampled: Counter[int] = Counter()
    for _ in range(6_000):
        deck = [0, 1, 2]
        rng.shuffle(deck)
        shuffled[orders[tuple(deck)]] += 1
        sampled[orders[tuple(rng.sample((0, 1, 2), 3))]] += 1
    assert chi_square(shuffled, 6) < 38
    assert chi_square(sampled, 6) < 38


@given(SEEDS, st.lists(st.integers(), max_size=30), st.data())
def test_samples_keep_what_they_draw_from(seed: int | str, population: list[int], data: st.DataObject) -> None:
    """A sample holds items of different places, a shuffle all of them, a choice one."""
    rng = CounterRandom(seed)
    size = data.draw(st.integers(0, len(population)))
    sample = rng.sample(population, size)
    assert len(sample) == size
    assert Counter(sample) <= Counter(population)
    places = rng.sample(range(len(population)), size)
    assert len(set(places)) == size
    shuffled = population.copy()
    rng.shuffle(shuffled)
    assert Counter(shuffled) == Counter(population)
    if population:
        assert rng.choice(population) in population


@given(SEEDS, st.integers(), st.integers(0, 2**70))
def test_ranges_hold(seed: int | str, first: int, width: int) -> None:
    rng = CounterRandom(seed)
    assert first <= rng.randint(first, first + width) <= first + width
    assert first <= rng.randrange(first, first + width + 1) <= first + width
    assert 0 <= rng.randrange(width + 1) <= width


def test_uniform_is_between() -> None:
    rng = CounterRandom(1)
    assert all(-2.5 <= rng.uniform(-2.5, 1.0) <= 1.0 for _ in range(100))
    assert rng.uniform(4, 4) == 4


# --- Errors are the standard library's, and a refused draw draws nothing. ---


@pytest.mark.parametrize(
    ("draw", "error", "message"),
    [
        (lambda rng: rng.randrange(0), ValueError, r"empty range for randrange\(0\)"),
        (lambda rng: rng.randrange(3, 3), ValueError, r"empty range for randrange\(3, 3\)"),
        (lambda rng: rng.randint(2, 1), ValueError, "empty range"),
        (lambda rng: rng.randrange(2.0), TypeError, "float"),
        (lambda rng: rng.randint(1, 6.5), TypeError, "float"),
        (lambda rng: rng.choice([]), IndexError, "empty sequence"),
        (lambda rng: rng.sample([1, 2], 3), ValueError, "sample of 3 from a population of 2"),
        (lambda rng: rng.sample([1, 2], -1), ValueError, "negative"),
        (lambda rng: rng.sample({1, 2}, 1), TypeError, "sort a set first"),
    ],
)
def test_refused_draws(draw: Callable[[CounterRandom], object], error: type[Exception], message: str) -> None:
    rng = CounterRandom(1)
    with pytest.raises(error, match=message):
        draw(rng)
    assert rng.counter == 0


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((1.5,), TypeError, "seed must be an int or a str, not float"),
        ((None,), TypeError, "not NoneType"),
        ((b"N1",), TypeError, "not bytes"),
        ((1, -1), ValueError, "counter must be in"),
        ((1, 2**64), ValueError, "counter must be in"),
        ((1, 0.0), TypeError, "float"),
    ],
)
def test_refused_states(arguments: tuple[int, ...], error: type[Exception], message: str) -> None:
    """A state that was never one is refused when it is restored, not when it is drawn from."""
    with pytest.raises(error, match=message):
        CounterRandom(*arguments)


@given(st.lists(st.booleans(), max_size=40), st.integers(0, 20))
def test_a_choice_of_one_draws_a_word_like_any_other(choices: list[bool], counter: int) -> None:
    """Wherever in a block it happens, and whatever is drawn between: it makes none of what follows another."""
    drawn = CounterRandom("N1", counter)
    for k, of_one in enumerate(choices):
        assert drawn.counter == counter + k
        if of_one:
            assert drawn.choice("a") == "a"
        else:
            assert drawn.random() == CounterRandom("N1", counter + k).random()
    assert drawn.random() == CounterRandom("N1", counter + len(choices)).random()
