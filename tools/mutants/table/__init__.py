"""The table of mutants, by module and function; one file for each package of jaxclip.

A row is `(fault, old, new, tests)`: see `tools.mutants.mutant.Mutant`.
"""

from tools.mutants.mutant import Mutant
from tools.mutants.table import (
    adoption,
    arithmetic,
    attention,
    backward,
    core,
    debug_flags,
    diagnosis,
    examples,
    findings,
    groups,
    guard_rules,
    guards,
    numerics,
    plot,
    projections,
    spectra,
    stacks,
    surface,
    thresholds,
    transforms,
)

MUTANTS = [
    Mutant(module, function, *row)
    for part in (
        numerics,
        arithmetic,
        core,
        thresholds,
        transforms,
        groups,
        guards,
        guard_rules,
        adoption,
        plot,
        projections,
        spectra,
        attention,
        backward,
        examples,
        diagnosis,
        findings,
        stacks,
        debug_flags,
        surface,
    )
    for module, functions in part.CHANGES.items()
    for function, rows in functions.items()
    for row in rows
]
