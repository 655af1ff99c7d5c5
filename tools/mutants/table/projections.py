"""Mutants of projections and singular values."""

CHANGES = {
    "projections/projection.py": {
        "_chosen": [
            ("a bias of rank 2 is projected by default",
             'return [w.ndim >= 2 and key != "bias" for w', "return [w.ndim >= 2 for w",
             "tests/test_projections.py::test_masks"),
        ],
        "_moved": [
            ("weight and update are added in the weight's own dtype",
             "_wide.widened(w, wide) + _wide.widened(u, wide)",
             "_wide.widened(w + u.astype(w.dtype), wide)",
             "tests/test_projections.py::test_16_bit_parameters_get_a_float32_update[bfloat16]"),
        ],
        "_step": [
            ("a step leads one float beyond its bound",
             "if landed.norm is None:", "if landed.norm is True:",
             "tests/test_projections.py::test_no_element_beyond_its_bound[float32]"),
            ("an infinite weight is stepped back from, to NaN",
             "keep = landed.keep | ~jnp.isfinite(w)", "keep = landed.keep",
             "tests/test_projections_edges.py::test_weights_that_are_not_finite_stay_as_they_are"),
        ],
        "_flat": [
            ("integer updates of weights are no updates",
             "steps = steps._replace(where=weights.where)", "",
             "tests/test_projections_edges.py::test_odd_updates_and_bounds"),
        ],
        "_seen": [
            ("units inside count as clipped",
             "clipped = [~scale.keep for", "clipped = [scale.keep for",
             "tests/test_projections_records.py::test_records_of_units"),
        ],
        "_not_beyond": [
            ("a bound has no derivative",
             "here = jax.lax.stop_gradient(step)", "here = step",
             "tests/test_projections_edges.py::test_derivative_of_a_bound"),
        ],
    },
    "projections/constraints.py": {
        "landings": [
            ("units are held by their 1-norm",
             'norms.measure(weights, "unit", 2, axis, axis_name)',
             'norms.measure(weights, "unit", 1, axis, axis_name)',
             "tests/test_functional.py::test_max_norm[0]"),
        ],
        "elements_between.land": [
            ("a bound that the dtype cannot write is held exactly",
             "limit.astype(leaf.dtype).astype(value.dtype)", "limit.astype(value.dtype)",
             "tests/test_projections.py::test_a_bound_that_16_bits_cannot_write"),
            ("the largest bound of elements is the last one",
             "largest = jnp.maximum(largest, jnp.max(jnp.abs(limit), initial=0))",
             "largest = jnp.max(jnp.abs(limit), initial=0)",
             "tests/test_gaps.py::test_the_threshold_of_a_box_is_its_largest_bound"),
        ],
        "norms_between": [
            ("a least norm of inf is let through",
             "names[0], scalar=True, finite=True)", "names[0], scalar=True)",
             "tests/test_projections_errors.py::test_no_norm_is_as_large_as_inf"),
            ("any rate is let through",
             "_checks.between(0, 1, rate=rate)", "",
             "tests/test_projections_errors.py::test_bad_arguments"),
        ],
        "spectral.land": [
            ("one device's part of a matrix is taken for the whole",
             "or jnp.iscomplexobj(x) or _mesh.varying_axes(x):", "or jnp.iscomplexobj(x):",
             "tests/test_projections_contexts.py::test_what_shard_map_cannot_know"),
        ],
    },
    "_numerics/spectral.py": {
        "_landed": [
            ("matrices on their limit are scaled again and again",
             "keep = largest <= c * (1 + slack)", "keep = largest <= c",
             "tests/test_projections_spectral.py::test_inside_is_left_alone"),
        ],
        "_landed.land": [
            ("singular values are brought down once only",
             "return (_exact(again) if", "return once if True else (_exact(again) if",
             "tests/test_projections_spectral.py::test_singular_values_land_on_the_limit[1000]"),
        ],
        "bounded": [
            ("a limit of 0 leaves what is rounded",
             "value = jnp.where(limit > 0, value, jnp.zeros_like(value))", "value = value",
             "tests/test_projections_spectral.py::test_a_limit_of_zero_leaves_nothing"),
            ("squares of large matrices overflow",
             "tall * (1 / unit), jnp.zeros_like(tall)", "tall, jnp.zeros_like(tall)",
             "tests/test_projections_edges.py::test_extremes"),
            ("the reciprocal of a large matrix is no normal number",
             "_wide.power_of_two_near(jnp.where(good, size, jnp.ones_like(size)))",
             "jnp.where(good, size, jnp.ones_like(size))",
             "tests/test_range.py::test_singular_values_near_the_end_of_the_range"),
        ],
        "_bounded_jvp": [
            ("the derivative is that of eigenvectors",
             '_landed(a, c, slack, how, "iterative"), primals, tangents)',
             "_landed(a, c, slack, how, method), primals, tangents)",
             "tests/test_projections_spectral.py -k 'values_coincide and eigh and not scale'"),
        ],
        "": [
            ("ten steps of Newton and Schulz",
             "_STEPS = 30", "_STEPS = 10",
             "tests/test_projections_spectral.py::test_singular_values_land_on_the_limit[1000]"),
        ],
    },
    "projections/transforms.py": {
        "flax_units": [
            ("a word's weights are those of a feature",
             "leaf.ndim == 2:\n        return 1", "leaf.ndim == 2:\n        return 0",
             "tests/test_projections_units.py::test_flax_units_of_other_leaves"),
        ],
        "project_min_max_norm": [
            ("the rate is forgotten",
             '("min_norm", "max_norm"), rate)', '("min_norm", "max_norm"))',
             "tests/test_projections_errors.py::test_bad_arguments"),
        ],
    },
}  # fmt: skip
