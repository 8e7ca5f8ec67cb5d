"""Random numbers whose whole state is two values.

This module owns `CounterRandom`, the generator behind `ctx.random` and the seeded topologies. It must not know who
draws from it, nor take anything from the machine: no clock, no entropy, no `hash()`.

Rules for maintainers:

1. The k-th word is a function of (seed, k) alone. So a node's snapshot holds only (seed, counter), and a recovered node
   goes on exactly where its cut was.
2. The stream never changes between versions: a stored snapshot or a published seed must mean the same for ever. The
   known answers in the tests are frozen; a faster generator is a new class.
3. How many words a method draws is part of the stream too.

It is not for secrets: whoever knows the seed knows every draw.
"""

from __future__ import annotations

from collections.abc import MutableSequence, Sequence
from hashlib import blake2b
from operator import index
from struct import Struct
from typing import Any, Final, TypeVar, overload

T = TypeVar("T")

_ULP: Final = 2.0**-53
_END: Final = 1 << 64
# A BLAKE2b digest holds eight 64-bit words, so one hash serves eight draws: per draw that is about twice as fast as
# mixing each word in Python, and a better generator.
_WORDS: Final = Struct("<8Q")
#: By the size of a short sequence, how far a word is shifted to choose from it.
_SHIFTS: Final = tuple(64 - (size - 1).bit_length() for size in range(257))


class CounterRandom:
    """Draw pseudo-random numbers as a pure function of a seed and a counter.

    Two generators of the same seed and counter give the same numbers on every machine, in every Python and whatever
    PYTHONHASHSEED is. Different seeds, however close, give unrelated streams; the int 1 and the str "1" are different
    seeds. Errors are those of the standard library's `random.Random`.

    Args:
        seed: Any int, also a negative or a huge one, or any str.
        counter: Where in the stream to go on; 0 is its beginning.

    Raises:
        TypeError: The seed is neither int nor str, or the counter is not an int.
        ValueError: The counter is negative or 2**64 and more.

    >>> dice = CounterRandom("N1")
    >>> before = [dice.randint(1, 6) for _ in range(5)]
    >>> resumed = CounterRandom(dice.seed, dice.counter)
    >>> [dice.randint(1, 6) for _ in range(5)] == [resumed.randint(1, 6) for _ in range(5)]
    True
    """

    __slots__ = ("_end", "_key", "_left", "_seed")

    def __init__(self, seed: int | str, counter: int = 0) -> None:
        if isinstance(seed, str):
            text = b"str:" + seed.encode("utf-8", "surrogatepass")
        elif isinstance(seed, int):
            text = b"int:%x" % seed
        else:
            raise TypeError(f"seed must be an int or a str, not {type(seed).__name__}")
        counter = index(counter)
        if not 0 <= counter < _END:
            raise ValueError(f"counter must be in [0, 2**64), not {counter}")
        self._seed = seed
        # What every block is hashed from: its number is added to a copy.
        self._key = blake2b(blake2b(text, digest_size=32, person=b"mpsnap.rng.1").digest())
        # A cache, never state: the words that are left of the block drawn from last, the next one at the end, and what
        # the counter is when none is left. One step takes a word off and counts it; a counter beside the words would
        # take several.
        self._left: list[int] = []
        self._end = counter

    @property
    def counter(self) -> int:
        """How many 64-bit words were drawn; with the seed, the whole state."""
        return self._end - len(self._left)

    @counter.setter
    def counter(self, counter: int) -> None:
        self._left = []
        self._end = counter

    @property
    def seed(self) -> int | str:
        """The seed as given."""
        return self._seed

    @property
    def state(self) -> tuple[int | str, int]:
        """The seed and the counter: what makes another one go on from here."""
        return self._seed, self._end - len(self._left)

    def __repr__(self) -> str:
        return f"CounterRandom({self._seed!r}, counter={self.counter})"

    def __reduce__(self) -> tuple[type[CounterRandom], tuple[int | str, int]]:
        return type(self), (self._seed, self.counter)

    def random(self) -> float:
        """Return a float in [0, 1), one of 2**53 equally likely ones."""
        # `_word` written out here and below: the call would cost a third of the time, and this runs once per message.
        return ((self._left or self._load()).pop() >> 11) * _ULP

    @overload
    def randrange(self, start: int, /) -> int: ...
    @overload
    def randrange(self, start: int, stop: int, /) -> int: ...
    def randrange(self, start: int, stop: int | None = None, /) -> int:
        """Return an int in [0, start) or, of two arguments, in [start, stop); each equally likely.

        Raises:
            ValueError: The range is empty.
            TypeError: A bound is not an int.
        """
        if stop is None:
            first, width = 0, index(start)
        else:
            first = index(start)
            width = index(stop) - first
        if width <= 0:
            raise ValueError(f"empty range for randrange({start}{'' if stop is None else f', {stop}'})")
        return first + self._below(width)

    def randint(self, a: int, b: int) -> int:
        """Return an int in [a, b], both ends included.

        Raises:
            ValueError: b is less than a.
            TypeError: A bound is not an int.
        """
        return self.randrange(a, index(b) + 1)

    def uniform(self, a: float, b: float) -> float:
        """Return a float between a and b; by rounding, b itself can be among them."""
        return a + (b - a) * self.random()

    def choice(self, seq: Sequence[T]) -> T:
        """Return one item of a sequence, each equally likely.

        Raises:
            IndexError: The sequence is empty.
        """
        size = len(seq)
        if not size:
            raise IndexError("cannot choose from an empty sequence")
        if size == 1:
            # A word is drawn all the same (rule 3), and is not looked at: so it need not be made. A node of a ring,
            # with one neighbour to choose from, would spend a fifth of its time on that.
            if self._left:
                self._left.pop()
            else:
                self._end += 1
            return seq[0]
        # `_below` written out: no sequence is longer than one word can tell.
        shift = _SHIFTS[size] if size <= 256 else 64 - (size - 1).bit_length()
        while (drawn := (self._left or self._load()).pop() >> shift) >= size:
            pass
        return seq[drawn]

    def shuffle(self, x: MutableSequence[Any]) -> None:
        """Shuffle a list in place; every order is equally likely."""
        for last in range(len(x) - 1, 0, -1):
            chosen = self._below(last + 1)
            x[last], x[chosen] = x[chosen], x[last]

    def sample(self, population: Sequence[T], k: int) -> list[T]:
        """Return k items of different places of a sequence, in random order, in time and memory of order k.

        Raises:
            ValueError: k is negative or more than there are.
            TypeError: The population is not a sequence: a set has no order to be reproduced from.
        """
        if not isinstance(population, Sequence):
            raise TypeError(f"population must be a sequence, not {type(population).__name__}; sort a set first")
        size = len(population)
        k = index(k)
        if not 0 <= k <= size:
            raise ValueError(f"sample of {k} from a population of {size}: larger than the population or negative")
        # A shuffle's first k steps, on a list of indices of which only the displaced ones are kept.
        displaced: dict[int, int] = {}
        chosen = []
        for last in range(size - 1, size - 1 - k, -1):
            place = self._below(last + 1)
            chosen.append(population[displaced.get(place, place)])
            displaced[place] = displaced.get(last, last)
        return chosen

    def _word(self) -> int:
        """Return the next 64 bits."""
        return (self._left or self._load()).pop()

    def _load(self) -> list[int]:
        """Bring into the cache what is left of the block where the counter is: one word at least."""
        counter = self._end
        block = self._key.copy()
        block.update((counter >> 3).to_bytes(8, "little"))
        left = list(_WORDS.unpack(block.digest()))
        left.reverse()
        if counter & 7:
            del left[-(counter & 7) :]
        self._left = left
        self._end = (counter | 7) + 1
        return left

    def _below(self, bound: int) -> int:
        """Return an int in [0, bound) without bias: draws of the same bit length are thrown away until one fits."""
        bits = (bound - 1).bit_length()
        if bits <= 64:
            shift = 64 - bits
            while (drawn := (self._left or self._load()).pop() >> shift) >= bound:
                pass
            return drawn
        words = -(-bits // 64)
        while True:
            drawn = 0
            for _ in range(words):
                drawn = drawn << 64 | self._word()
            drawn >>= words * 64 - bits
            if drawn < bound:
                return drawn
