"""Mutants of rules for cotangents."""

_RULES, _CONTEXTS = "tests/backward/test_rules.py", "tests/backward/test_contexts.py"

CHANGES = {
    "functional/backward.py": {
        "clip": [
            ("the probe of clip records nothing",
             "record=probe is not None", "record=False",
             f"{_RULES}::test_float32"),
        ],
        "clip_by_value": [
            ("the probe of clip_by_value records nothing",
             "record=probe is not None", "record=False",
             f"{_RULES}::test_float32"),
        ],
        "clip_by_norm": [
            ("axis is ignored",
             "axis=axis, ord=ord", "axis=None, ord=ord",
             f"{_RULES}::test_float32"),
            ("ord is ignored",
             "axis=axis, ord=ord", "axis=axis",
             f"{_RULES}::test_limits_of_none_and_of_each_row"),
            ("axis_name is ignored",
             "axis_name=axis_name)", "axis_name=None)",
             f"{_CONTEXTS}::test_shard_map_on_eight_devices"),
        ],
        "clip_by_global_norm": [
            ("each leaf has a norm of its own",
             "clipping.clip_by_global_norm", "clipping.clip_by_norm",
             f"{_RULES}::test_float32"),
        ],
    },
    "functional/cotangents.py": {
        "passed": [
            ("errors come in the backward pass",
             "make(**limits)  #", "#",
             f"{_RULES}::test_errors"),
            ("a probe may have any shape",
             "jnp.shape(probe) == (2,) and is_inexact(probe)", "True",
             f"{_RULES}::test_errors"),
            ("a traced limit is closed over",
             "if _validate.is_traced(c)", "if False",
             f"{_CONTEXTS}::test_twenty_steps"),
        ],
        "passed.forward": [
            ("the forward pass makes a zero of its input's sign",
             "return x, (traced, probe)", "return jax.tree.map(jnp.abs, x), (traced, probe)",
             f"{_RULES}::test_float32"),
        ],
        "passed.backward": [
            ("the cotangent goes back unchanged",
             "return changed, None, zeros + jnp.stack(row)",
             "return cotangent, None, zeros + jnp.stack(row)",
             f"{_RULES}::test_float32"),
            ("a probe that varies over a mesh gets a row that does not",
             "zeros + jnp.stack(row)", "jnp.stack(row)",
             f"{_CONTEXTS}::test_shard_map_on_eight_devices"),
        ],
        "of_rule.made.rule": [
            ("a probe counts every update as clipped",
             "(seen.norm, seen.clipped_count)", "(seen.norm, seen.update_count)",
             f"{_RULES}::test_float32"),
        ],
        "scaled": [
            ("a factor must be positive",
             "signed=True, ", "",
             f"{_RULES}::test_float32"),
            ("a factor may be infinite",
             ", finite=True", "",
             f"{_RULES}::test_errors"),
        ],
        "scaled.rule": [
            ("16 bits are multiplied in 16 bits",
             "wide = accumulator(x)", "wide = x.dtype",
             f"{_RULES}::test_other_dtypes[complex64]"),
            ("the factor 1 counts as a change",
             "a != 1", "a == a",
             f"{_CONTEXTS}::test_scale_by_one_changes_nothing"),
        ],
        "finite.rule": [
            ("infinity stays",
             "jnp.isfinite(x)", "~jnp.isnan(x)",
             f"{_RULES}::test_zero_nonfinite_and_the_order_of_two_rules"),
            ("a probe always says that something was zeroed",
             "~record.all_elements_finite(flat.arrays)", "jnp.ones(())",
             f"{_RULES}::test_float32"),
        ],
    },
}  # fmt: skip
