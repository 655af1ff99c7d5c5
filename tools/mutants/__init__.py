"""Mutants: small faults in jaxclip, and the tests that must notice them.

`python -m tools.mutants`, from the root of a checkout, makes a copy for each mutant, makes its
change there and runs its tests, which must fail. Without a change they must pass. `--check` only
checks that every change applies.

A mutant is identified by its module and function, and by a piece of code that occurs exactly once
in that function. White space and line breaks do not matter, so moved or reformatted code still
matches.
"""
