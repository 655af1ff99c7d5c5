"""Mutants of projections and singular values."""

CHANGES = {
    "projections/projection.py": {
        "_chosen": [
            ("a bias of rank 2 is projected by default",
             'return [w.ndim >= 2 and key != "bias" for w', "return [w.ndim >= 2 for w",
             "tests/projections/test_landing.py::test_masks"),
        ],
        "_moved": [
            ("weight and update are added in the dtype of the weight",
             "_wide.widened(w, wide) + _wide.widened(u, wide)",
             "_wide.widened(w + u.astype(w.dtype), wide)",
             "tests/projections/test_landing.py::test_16_bit_parameters_get_a_float32_update[bfloat16]"),
        ],
        "_step": [
            ("a step ends one float beyond its bound",
             "if landed.norm is None:", "if landed.norm is True:",
             "tests/projections/test_landing.py::test_no_element_beyond_its_bound[float32]"),
            ("an infinite weight becomes NaN",
             "keep = landed.keep | ~jnp.isfinite(w)", "keep = landed.keep",
             "tests/projections/test_edges.py::test_nonfinite_weights_stay_unchanged"),
        ],
        "_flat": [
            ("integer updates of weights are ignored",
             "steps = steps._replace(where=weights.where)", "",
             "tests/projections/test_edges.py::test_odd_updates_and_bounds"),
        ],
        "_seen": [
            ("units within their limit count as clipped",
             "clipped = [~scale.keep for", "clipped = [scale.keep for",
             "tests/projections/test_records.py::test_records_of_units"),
        ],
        "_not_beyond": [
            ("a bound has no derivative",
             "here = jax.lax.stop_gradient(step)", "here = step",
             "tests/projections/test_edges.py::test_derivative_of_a_bound"),
        ],
    },
    "projections/constraints.py": {
        "landings": [
            ("units are limited by their 1-norm",
             'norms.measure(weights, "unit", 2, axis, axis_name)',
             'norms.measure(weights, "unit", 1, axis, axis_name)',
             "tests/contract/test_functional.py::test_max_norm[0]"),
        ],
        "elements_between.land": [
            ("a bound is not rounded to the dtype",
             "limit.astype(leaf.dtype).astype(value.dtype)", "limit.astype(value.dtype)",
             "tests/projections/test_landing.py::test_bound_that_16_bits_cannot_represent"),
            ("the largest bound of elements is the last one",
             "largest = jnp.maximum(largest, jnp.max(jnp.abs(limit), initial=0))",
             "largest = jnp.max(jnp.abs(limit), initial=0)",
             "tests/contract/test_elements.py::test_recorded_threshold_is_the_largest_bound"),
        ],
        "norms_between": [
            ("a min_norm of inf is accepted",
             "names[0], scalar=True, finite=True)", "names[0], scalar=True)",
             "tests/projections/test_errors.py::test_infinite_min_norm_is_refused"),
            ("any rate is accepted",
             "_checks.between(0, 1, rate=rate)", "",
             "tests/projections/test_errors.py::test_bad_arguments"),
        ],
        "spectral.land": [
            ("the part of a matrix on one device is projected as a whole",
             "or jnp.iscomplexobj(x) or _mesh.varying_axes(x):", "or jnp.iscomplexobj(x):",
             "tests/projections/test_contexts.py::test_shard_map_errors"),
        ],
    },
    "_numerics/spectral.py": {
        "_landed": [
            ("matrices at their limit are scaled in every step",
             "keep = largest <= c * (1 + slack)", "keep = largest <= c",
             "tests/projections/test_spectral.py::test_matrices_inside_are_unchanged"),
        ],
        "_landed.land": [
            ("singular values are reduced only once",
             "return (_exact(again) if", "return once if True else (_exact(again) if",
             "tests/projections/test_spectral.py::test_singular_values_land_on_the_limit[1000]"),
        ],
        "bounded": [
            ("a limit of 0 leaves rounding errors",
             "value = jnp.where(limit > 0, value, jnp.zeros_like(value))", "value = value",
             "tests/projections/test_spectral.py::test_limit_of_zero"),
            ("squares of large matrices overflow",
             "tall * (1 / unit), jnp.zeros_like(tall)", "tall, jnp.zeros_like(tall)",
             "tests/projections/test_edges.py::test_extremes"),
            ("the reciprocal of a large matrix norm is subnormal",
             "_wide.power_of_two_near(jnp.where(good, size, jnp.ones_like(size)))",
             "jnp.where(good, size, jnp.ones_like(size))",
             "tests/projections/test_spectral.py::test_singular_values_near_float32_max"),
        ],
        "_bounded_jvp": [
            ("the derivative goes through eigenvectors",
             '_landed(a, c, slack, how, "iterative"), primals, tangents)',
             "_landed(a, c, slack, how, method), primals, tangents)",
             "tests/projections/test_spectral.py::test_derivatives_where_singular_values_coincide "
             "-k 'eigh and not scale'"),
        ],
        "": [
            ("Newton-Schulz takes ten steps",
             "_STEPS = 30", "_STEPS = 10",
             "tests/projections/test_spectral.py::test_singular_values_land_on_the_limit[1000]"),
        ],
    },
    "projections/transforms.py": {
        "flax_units": [
            ("embeddings are limited by feature instead of by word",
             "leaf.ndim == 2:\n        return 1", "leaf.ndim == 2:\n        return 0",
             "tests/projections/test_units.py::test_flax_units_of_other_leaves"),
        ],
        "project_min_max_norm": [
            ("project_min_max_norm ignores rate",
             '("min_norm", "max_norm"), rate)', '("min_norm", "max_norm"))',
             "tests/projections/test_errors.py::test_bad_arguments"),
        ],
    },
}  # fmt: skip
