"""Words of messages: counts with their nouns, and the name that a misspelt one resembles."""

import difflib
from collections.abc import Iterable


def count(number: int, noun: str) -> str:
    """Returns a number with its noun.

    >>> count(1, "run"), count(2, "run")
    ('1 run', '2 runs')
    """
    return f"{number:,} {noun}" + "s" * (number != 1)


def choose(word: object, names: Iterable[str]) -> str:
    """Returns the names to choose from, and first the one that `word` resembles.

    >>> choose("exploed", ["explode", "forward"])
    'did you mean explode? Choose from explode, forward'
    >>> choose("x", ["explode", "forward"])
    'choose from explode, forward'
    """
    names = list(names)
    text = f"hoose from {', '.join(names) or 'none'}"
    near = closest(word, names)
    return f"did you mean {near}? C{text}" if near else f"c{text}"


def closest(word: object, names: Iterable[str]) -> str | None:
    """Returns the name that `word` resembles, None if there is none.

    >>> closest("--lerning-rate", ["--learning-rate", "--log-every"])
    '--learning-rate'
    """
    return next(iter(difflib.get_close_matches(str(word), list(names), 1, 0.7)), None)
