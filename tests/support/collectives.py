"""The collectives of a compiled program that run on its normal path: outside `lax.cond`."""

import collections
import re

import jax

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(rf" ({'|'.join(KINDS)})(?:-start)?\(")
_BRANCHES = re.compile(r"(?:branch_computations=\{[^}]*\}|(?:true|false)_computation=%?[\w.\-]+)")
_CALLED = re.compile(r"(?:calls|to_apply|body|condition|called_computations)=\{?%?([\w.\-]+)")


def count(function, *arguments):
    """`{kind: number}` of the collectives that every call of the jitted function runs."""
    return of_text(jax.jit(function).lower(*arguments).compile().as_text())


def of_text(text):
    """The same of an HLO module's text."""
    found, called, entry = collections.defaultdict(collections.Counter), {}, None
    name = None
    for line in text.splitlines():
        header = _COMPUTATION.match(line)
        if header:
            name = header[2]
            called[name] = set()
            entry = name if header[1] else entry
        elif name is not None:
            found[name].update(_INSTRUCTION.findall(line))
            called[name].update(_CALLED.findall(_BRANCHES.sub("", line)))
    seen, ahead = set(), [entry]
    while ahead:
        name = ahead.pop()
        if name not in seen:
            seen.add(name)
            ahead.extend(called.get(name, ()))
    return dict(sum((found[name] for name in seen), collections.Counter()))
