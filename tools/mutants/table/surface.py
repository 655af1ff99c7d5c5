"""Mutants of the checks of arguments, bounds, functions and norms."""

CHANGES = {
    "_numerics/bounds.py": {
        "exactly": [
            ("set does not raise a norm",
             "(number != c)", "(number > c)",
             "tests/contract/test_bounds.py::test_set_brings_every_norm_to_the_threshold[float32]"),
            ("set divides by a norm of 0",
             "(number > 0) &", "",
             "tests/contract/test_bounds.py::test_set_brings_every_norm_to_the_threshold[float32]"),
            ("set scales to an infinite norm",
             "& (c < float(jnp.finfo(c.dtype).max))", "",
             "tests/contract/test_bounds.py::test_set_with_threshold_none_and_zero"),
            ("set counts norms that do not change",
             "& (number != c)", "",
             "tests/contract/test_bounds.py::test_set_counts_norms_that_change"),
        ],
        "tanh": [
            ("the tanh bound of a small norm underflows",
             "jnp.where(small, n, c * jnp.tanh(jnp.where(small, jnp.ones_like(n), ratio)))",
             "c * jnp.tanh(ratio)",
             "tests/contract/test_bounds.py::test_new_norms[float32]"),
        ],
        "rational": [
            ("the rational bound does not change small norms",
             "n / (one + ratio)", "n",
             "tests/contract/test_bounds.py::test_new_norms[float32]"),
        ],
        "_ratio": [
            ("a smooth bound divides by a number without a reciprocal",
             "1 / power_of_two_near(divisor)", "jnp.ones_like(divisor)",
             "tests/contract/test_bounds.py::test_smooth_bounds_at_extreme_thresholds -k '3e+38'"),
            ("a smooth bound drops the unit of the norm",
             "(norm.unit * down)", "down",
             "tests/contract/test_bounds.py::test_smooth_bounds_at_extreme_thresholds -k '3e+38'"),
            ("a smooth bound divides by a threshold of 0",
             "(c >= float(info.tiny))", "(c >= 0)",
             "tests/contract/test_bounds.py::test_derivative_at_zero[tanh]"),
        ],
    },
    "_validate.py": {
        "real_number": [
            ("NaN is accepted",
             "if np.isnan(array).any():", "if array.ndim and np.isnan(array).any():",
             "tests/contract/test_errors.py::test_threshold_value[clip_by_global_norm-nan]"),
            ("an infinite eps is accepted",
             "if finite and np.isinf(array).any():", "if False:",
             "tests/contract/test_arguments.py::test_infinite_eps_and_floor_are_refused"),
            ("the error for a negative number does not name the argument",
             'f"{name}={short(value)} must not be negative"',
             'f"{short(value)} must not be negative"',
             "tests/contract/test_errors.py::test_threshold_value[clip_by_global_norm--1.0]"),
        ],
        "between": [
            ("only the lower end of an interval is checked",
             "not low <= float(value) <= high", "not low <= float(value)",
             "tests/thresholds/test_learned_errors.py::test_bad_values[autoclip-percentile-values0]"),
        ],
        "whole_number": [
            ("a warm-up beyond int32 is an overflow",
             "return min(whole, np.iinfo(np.int32).max)", "return whole",
             "tests/contract/test_arguments.py::test_warmup_steps_beyond_int32"),
        ],
        "is_bool": [
            ("a mask of arrays is refused",
             "isinstance(x, (np.ndarray, jax.Array)) and not is_traced(x)", "False",
             "tests/contract/test_arguments.py::test_masks_of_numpy_and_jax_bools"),
        ],
        "limits": [
            ("the error for a number in a tree does not name its place",
             "name + jax.tree_util.keystr(path)", "name",
             "tests/thresholds/test_fixed.py::test_bad_value_in_a_tree_names_its_place"),
        ],
        "without_schedules": [
            ("functions accept schedules",
             "if value is not None and (callable(value) or is_tree(value)):", "if False:",
             "tests/contract/test_arguments.py::test_functional_refuses_schedules_and_trees[max_norm-schedule]"),
        ],
        "_exceeds": [
            ("crossed bounds are accepted unless all elements cross",
             "> np.asarray(high, np.float64)).any())", "> np.asarray(high, np.float64)).all())",
             "tests/projections/test_errors.py::test_bounds_of_shapes_that_do_not_fit"),
        ],
        "number": [
            ("whole numbers wrap in an int32",
             'if whole or (isinstance(value, np.ndarray) and value.dtype.kind in "iu"):',
             "if False:",
             "tests/contract/test_arguments.py::test_whole_numbers_beyond_int32"),
        ],
        "broadcasts": [
            ("a threshold may enlarge its leaf",
             "return jnp.broadcast_shapes(shape, onto) == onto",
             "return bool(jnp.broadcast_shapes(shape, onto))",
             "tests/thresholds/test_fixed.py::test_thresholds_may_not_enlarge"),
        ],
        "norm_order": [
            ("orders below 1 are accepted",
             "if not float(ord) >= 1:", "if not float(ord) > 0:",
             "tests/contract/test_errors.py::test_order_value[0.5-clip_by_norm]"),
        ],
        "axes": [
            ("an axis may be named twice",
             "if len(set(result)) != len(result):", "if len(result) > 3:",
             "tests/contract/test_errors.py::test_axis"),
        ],
    },
    "functional/projecting.py": {
        "project_max_norm": [
            ("project_max_norm enlarges small units",
             "norms_between(None, max_norm, (", "norms_between(max_norm, max_norm, (",
             "tests/projections/test_functions.py::test_max_norm"),
        ],
        "project_unit_norm": [
            ("project_unit_norm leaves small units",
             "norms_between(1.0, 1.0,", "norms_between(0.0, 1.0,",
             "tests/projections/test_functions.py::test_unit_norm"),
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
             "axis=axis, stacked=stacked, ord=ord", "stacked=stacked, ord=ord",
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
