"""Mutants of functions, guards and norms."""

CHANGES = {
    "guards.py": {
        "skip_nonfinite": [
            ("skip_nonfinite ignores max_consecutive",
             "Judge(), max_consecutive, axis_name)", "Judge(), None, axis_name)",
             "tests/guards/test_skipping.py::test_counts_and_max_consecutive[skip_nonfinite]"),
        ],
        "skip_spikes": [
            ("a min_history of 1 is accepted",
             "least=2)", "least=1)",
             "tests/guards/test_nesting.py::test_bad_values -k 'min_history'"),
            ("skip_spikes ignores min_spread",
             "min_history, min_spread, least", "min_history, 0.0, least",
             "tests/thresholds/test_constant_gradients.py::test_skip_spikes_skips_nothing -k "
             "'alone and float32'"),
        ],
        "skip_spikes.limits": [
            ("the standard deviation is not corrected for the sample size",
             "history.limit(memory.norms, 1)", "history.limit(memory.norms, 0)",
             "tests/guards/test_skipping.py::test_skip_spikes_against_its_reference"),
            ("the limit of the loss is that of the norm",
             "history.limit(memory.values, 1)", "history.limit(memory.norms, 1)",
             "tests/guards/test_skipping.py::test_skip_spikes_against_its_reference"),
        ],
        "_pushed": [
            ("a non-finite norm is stored",
             "jnp.isfinite(x))", "jnp.ones((), bool))",
             "tests/guards/test_skipping.py::test_skipped_step_leaves_state_unchanged[skip_spikes]"),
        ],
    },
    "functional/projecting.py": {
        "project_max_norm": [
            ("project_max_norm enlarges small units",
             "norms_between(None, max_norm, (", "norms_between(max_norm, max_norm, (",
             "tests/contract/test_optax_defects.py::test_projection_of_a_small_weight_1000_times "
             "-k 'float32'"),
        ],
        "project_unit_norm": [
            ("project_unit_norm leaves small units",
             "norms_between(1.0, 1.0,", "norms_between(0.0, 1.0,",
             "tests/contract/test_functional.py::test_unit_norm"),
        ],
        "project_min_max_norm": [
            ("project_min_max_norm ignores rate",
             '("min_norm", "max_norm"), rate)', '("min_norm", "max_norm"))',
             "tests/projections/test_limits.py::test_rate_of_zero"),
        ],
        "project_spectral_norm": [
            ("project_spectral_norm ignores how",
             "singular_values(max_norm, how, method)", 'singular_values(max_norm, "clip", method)',
             "tests/projections/test_landing.py::test_functions_do_the_same[float32]"),
        ],
        "_projected": [
            ("weights are returned in the dtype of the accumulator",
             "jnp.where(to.keep, x, to.value.astype(x.dtype))",
             "jnp.where(to.keep, x.astype(to.value.dtype), to.value)",
             "tests/contract/test_functional.py::test_dtypes_are_kept[bfloat16]"),
        ],
    },
    "functional/clipping.py": {
        "clip_by_value": [
            ("complex numbers are clipped between bounds that are not opposite",
             "elementwise.opposite(min_value, max_value)", "True",
             "tests/contract/test_elements.py::test_asymmetric_complex_clip_is_an_error"),
        ],
        "_bounded": [
            ("integers are not clipped",
             "if not (is_inexact(leaf) or is_integer(leaf)):", "if not is_inexact(leaf):",
             "tests/contract/test_functional.py::test_value_clip_of_integers"),
        ],
        "clip_by_norm": [
            ("slices are not clipped apart",
             "axis=axis, ord=ord", "ord=ord",
             "tests/contract/test_functional.py::test_clip_by_norm[0-1]"),
        ],
        "clip_by_average_norm": [
            ("the average norm is the root mean square",
             "rules.clip_by_average_norm(max_norm,", 'rules.clip_by_norm(max_norm, ord="rms",',
             "tests/contract/test_functional.py::test_average_norm_clip_of_three_and_four"),
        ],
        "clip_by_block_rms": [
            ("the norm of a block is not divided by its size",
             "rules.clip_by_block_rms(threshold,", "rules.clip_by_norm(threshold,",
             "tests/contract/test_functional.py::test_clip_by_block_rms[None]"),
        ],
        "adaptive_grad_clip": [
            ("functional.adaptive_grad_clip ignores eps",
             "(clipping, eps, axis,", "(clipping, 1e-3, axis,",
             "tests/contract/test_functional.py::test_adaptive_grad_clip[1]"),
        ],
        "clip_by_global_norm": [
            ("the returned norm lacks its unit",
             "for x in flat.arrays]), found.number", "for x in flat.arrays]), found.value",
             "tests/contract/test_functional.py::test_returned_norm_of_extreme_values"),
            ("a known norm is measured again",
             "if norm is None:", "if True:",
             "tests/contract/test_functional.py::test_given_norm"),
            ("a known norm keeps its dtype",
             "_validate.number(norm).astype(accumulator(*flat.arrays))", "_validate.number(norm)",
             "tests/contract/test_functional.py::test_given_norm"),
            ("a traced negative threshold reverses the update",
             "jnp.maximum(_validate.number(limit), 0)", "_validate.number(limit)",
             "tests/contract/test_arguments.py::test_functional_with_traced_negative_threshold"),
        ],
    },
    "norms.py": {
        "global_norm": [
            ("a global norm lacks its unit",
             ".norms(flatten(tree))[0].number", ".norms(flatten(tree))[0].value",
             "tests/numerics/test_norms.py::test_extreme_values[2]"),
        ],
        "unit_norms": [
            ("the norm of a leaf without numbers loses its rank",
             "jnp.zeros((1,) * jnp.ndim(x), jnp.float32)", "jnp.zeros((), jnp.float32)",
             "tests/numerics/test_norms.py::test_non_float_leaves_count_nothing"),
        ],
        "average_norm": [
            ("the average norm of an array is its root mean square",
             '"average"', '"rms"',
             "tests/numerics/test_norms.py::test_one_array"),
        ],
        "_as_tree": [
            ("norms of units lack their unit",
             "leaves[i] = norm.number", "leaves[i] = norm.value",
             "tests/numerics/test_norms.py::test_extreme_values[2]"),
        ],
    },
}  # fmt: skip
