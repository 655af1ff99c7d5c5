"""Mutants of `adopt`, and of errors about whole trees and states."""

ARRIVE = "tests/interop/test_adopt.py::test_arrays_of_the_optimizer_arrive_to_the_bit"
REFUSED = "tests/interop/test_adopt_refused.py::test_refused"

CHANGES = {
    "transforms/adoption.py": {
        "adopt": [
            ("a new hyperparameter is refused",
             "if leaf.names in known or not leaf.extra", "",
             "tests/interop/test_adopt.py::test_new_hyperparameter_has_its_first_value"),
            ("a field that one of two states lacks is refused",
             "& {x.names[0] for x in pair[1]}", "| {x.names[0] for x in pair[1]}",
             "tests/interop/test_adopt.py::test_record_that_is_new_in_a_rule_starts_anew"),
            ("a memory is dropped",
             '| {"memory"}', "", f'"{REFUSED}[no memory]"'),
            ("an Adam of Optax starts a stable Adam anew",
             "stable and not", "False and not",
             "tests/interop/test_adopt.py::test_stable_adam_continues_adam[False]"),
        ],
        "_paired": [
            ("one of two rules of a name continues as both",
             "if len(old.records.get(key, ())) == len(parts)", "if key in old.records",
             f'"{REFUSED}[one to two]"'),
        ],
        "_matched": [
            ("shapes may differ",
             "old.kind != new.kind", "old.names != new.names", f'"{REFUSED}[another shape]"'),
            ("leaves without a place are dropped",
             "itertools.zip_longest(olds, news)", "zip(olds, news)", f'"{REFUSED}[no schedule]"'),
        ],
    },
    "transforms/state_parts.py": {
        "Parts._visit_record": [
            ("a guarded state belongs to the guard",
             "if field == INSIDE.get(kind):", "if False:", f'"{ARRIVE}[a guard]"'),
            ("the moments of stable Adam are a record",
             "elif moments is not None:", "elif False:",
             "tests/interop/test_adopt.py::test_moments_of_stable_adam_are_part_of_the_optimizer"),
            ("rules are not told apart",
             'getattr(node, "rule", kind.__name__)', "kind.__name__", f'"{ARRIVE}[other rules]"'),
            ("guards without types are not told apart",
             "if self.raw:", "if False:", f'"{ARRIVE}[guards in another order]"'),
        ],
        "Parts._below": [
            ("places in chains are names",
             "self.raw or place.in_chain", "self.raw", f'"{ARRIVE}[a rule]"'),
            ("numbers are sorted as texts",
             '(int(name), "") if numbered else', "(0, name) if numbered else",
             f'"{ARRIVE}[past ten parts]"'),
            ("the wrappers of NNX are names",
             "if is_wrapper or", "if",
             "tests/interop/test_adopt.py::test_optimizer_of_nnx"),
            ("a field called value has a name on disk only",
             "self.raw or isinstance(key, _Attribute)", "isinstance(key, _Attribute)",
             "tests/interop/test_adopt.py::test_a_field_may_be_called_value"),
            ("types of states are not compared",
             "named = name if self.raw else", "named = name if True else",
             f'"{REFUSED}[another optimizer with the same fields]"'),
        ],
        "is_adam": [
            ("AdaBelief is an Adam",
             "isinstance(node, kind) or", 'hasattr(node, "nu") or',
             f'"{REFUSED}[belief for stable Adam]"'),
        ],
        "_renamed": [
            ("fields of version 0.1.0 keep their names",
             "return names.get(name, name)", "return name",
             "tests/interop/test_checkpoint.py::test_state_of_an_older_version[0.1.0]"),
        ],
        "_root": [
            ("the second moment is not its root",
             "jnp.sqrt(v.astype(accumulator(v)))", "v.astype(accumulator(v))",
             "tests/interop/test_adopt.py::test_stable_adam_continues_adam[False]"),
        ],
    },
    "transforms/guard.py": {
        "guard.update.inner_update": [
            ("JAX says that the guarded state changed its structure",
             "if jax.tree.structure(after) != jax.tree.structure(inner_state):", "if False:",
             '"tests/contract/test_short_errors.py::test_states[an Optax chain inside]"'),
        ],
    },
    "_core/flat_tree.py": {
        "difference": [
            ("a difference of types has no place",
             'or "the root"', 'or "?"',
             '"tests/contract/test_short_errors.py::test_trees[updates of another container]"'),
            ("the names of two trees are exchanged",
             "for name, keys in zip(names, rest, strict=True)",
             "for name, keys in zip(names[::-1], rest, strict=True)",
             '"tests/contract/test_short_errors.py::test_trees[params of another length]"'),
        ],
    },
    "_validate.py": {
        "cut": [
            ("errors have whole arrays",
             "if len(line) <= 200", "if True",
             "tests/contract/test_short_errors.py::test_values[inner]"),
        ],
    },
}  # fmt: skip
