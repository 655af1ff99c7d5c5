"""Covering sets: fewer cases than a product of axes has, with no pair of values lost."""

import itertools
from collections.abc import Hashable, Iterable
from typing import Any


def pairs(*axes: Iterable[Any]) -> list[tuple[Any, ...]]:
    """Cases in which every two values of two axes meet at least once.

    The full product of axes of n, m and k values has n·m·k cases; this has about as many as the two
    longest axes have pairs. The choice is greedy and has no chance in it: the same axes give the
    same cases, in the order of the product.

    Args:
        axes: The values of each axis, of any type. Equal values of one axis count as different.

    Returns:
        Tuples of one value of each axis. Of one or two axes, the whole product.

    >>> pairs("ab", [1, 2], [True, False])
    [('a', 1, True), ('a', 2, False), ('b', 1, False), ('b', 2, True)]
    """
    values = [list(axis) for axis in axes]
    product = list(itertools.product(*(range(len(axis)) for axis in values)))
    chosen = product if len(values) < 3 else sorted(_cover(product))
    return [tuple(axis[i] for axis, i in zip(values, case, strict=True)) for case in chosen]


def _cover(product: list[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """Take the case with the most pairs that no case before it has, until no pair is left."""
    met: dict[tuple[int, ...], set[Hashable]] = {
        case: set(itertools.combinations(enumerate(case), 2)) for case in product
    }
    chosen = []
    while met:
        best = max(met, key=lambda case: len(met[case]))
        new = met.pop(best)
        chosen.append(best)
        for case in list(met):
            met[case] -= new
            if not met[case]:
                del met[case]
    return chosen
