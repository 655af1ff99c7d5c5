"""Mutants of norms."""

CHANGES = {
    "_numerics/table.py": {
        "Table._vector": [
            (
                "limits that a threshold gives to other leaves return to their own",
                "v is vector and p == i for",
                "v is vector for",
                "tests/thresholds/test_of_others.py",
            ),
            (
                "thresholds of leaves count as one",
                "all(x is one or (known and x == one) for x in column)",
                "True",
                "tests/contract/test_records_of_leaves.py::test_records_of_leaves_with_thresholds_of_their_own",
            ),
        ],
        "_apart": [
            (
                "every leaf gets the scale of the first one",
                "(jnp.uint32(0), at), (len(own), size)",
                "(jnp.uint32(0), 0 * at), (len(own), size)",
                "tests/contract/test_records_of_leaves.py::test_records_of_leaves_with_thresholds_of_their_own",
            ),
        ],
        "_concatenated": [
            (
                "one of 64 norms is not recorded",
                "parts[i : i + STACKED]",
                "parts[i : i + STACKED - 1]",
                "tests/contract/test_records_of_leaves.py::test_records_of_leaves_with_thresholds_of_their_own",
            ),
        ],
    },
    "_numerics/power_sums.py": {
        "": [
            (
                "cubes are rescaled like squares",
                "_ROOT_LAST = (1, 2)",
                "_ROOT_LAST = (1, 2, 3)",
                "tests/numerics/test_norms.py::test_other_orders_at_extreme_values[3]",
            ),
        ],
        "joined": [
            (
                "scalars are stacked without a barrier",
                "jax.lax.optimization_barrier(jnp.stack(parts[:STACKED]))",
                "jnp.stack(parts[:STACKED])",
                "tests/contract/test_cost.py::test_no_kernel_reads_the_sums_of_100_leaves",
            ),
            (
                "one of 64 leaves is not measured",
                "jnp.stack(parts[:STACKED])",
                "jnp.stack(parts[: STACKED - 1])",
                "tests/contract/test_edges.py::test_norm_of_600_bfloat16_leaves",
            ),
        ],
        "_over_mesh": [
            (
                "leaves are summed over the mesh axes of the first leaf",
                "groups.setdefault(axes, [])",
                "groups.setdefault(mesh[0], [])",
                "tests/sharding/test_rules.py::test_shard_map_checked[clip_by_global_norm]",
            ),
        ],
        "table_of": [
            (
                "units on an Explicit mesh are joined, whatever their sharding",
                "len(like) == 1 or not jax.sharding.get_abstract_mesh().empty",
                "len(like) == 1",
                "tests/sharding/test_rules.py::test_jit[AxisType.Explicit-clip_by_norm_axis]",
            ),
        ],
        "Unjoined.vectors": [
            (
                "a threshold may return two limits for one norm",
                "len(column) != self.number",
                "False",
                "tests/thresholds/test_of_others.py",
            ),
        ],
        "norms": [
            (
                "a norm and the scaling after it share the conversion to float32",
                "tuple(map(read_apart, group))",
                "tuple(group)",
                "tests/contract/test_cost.py::test_bfloat16_leaves_are_not_copied_to_float32",
            ),
        ],
        "_checked": [
            (
                "slices with a right sum are rescaled with the others",
                "scale = jax.lax.select(wrong, scale, jnp.ones_like(value))",
                "pass",
                "tests/contract/test_bounds.py::test_new_norms[float32]",
            ),
            (
                "large elements are rescaled upwards",
                "jnp.full_like(value, 1 / up)",
                "jnp.full_like(value, up)",
                "tests/numerics/test_norms.py::test_extreme_values[2]",
            ),
            (
                "sums of powers that underflow are not recomputed",
                "jax.lax.clamp(least, value,",
                "jax.lax.clamp(jnp.zeros_like(least), value,",
                "tests/numerics/test_norms.py::test_extreme_values[2]",
            ),
            (
                "sums of powers that overflow are not recomputed",
                "jnp.full_like(value, info.max)",
                "jnp.full_like(value, jnp.inf)",
                "tests/numerics/test_norms.py::test_extreme_values[2]",
            ),
        ],
        "_exact_norms.rescaled": [
            (
                "the recomputed norm has the wrong unit",
                "list(map(jnp.reciprocal, scales))",
                "list(map(jnp.ones_like, scales))",
                "tests/numerics/test_norms.py::test_extreme_values[2]",
            ),
        ],
        "_is_always_exact": [
            (
                "powers of float16 numbers are not checked for underflow",
                "math.log2(float(info.smallest_subnormal)) * kind.power < wide.minexp",
                "False",
                "tests/numerics/test_norms.py::test_high_orders_of_tiny_float16",
            ),
        ],
        "_scaled_sum": [
            (
                "only the first of alike arrays is measured again",
                "own[0] if len(own) == 1 else jnp.stack(own)",
                "own[0]",
                "tests/numerics/test_norms.py::test_many_leaves_whose_squares_leave_the_range",
            ),
        ],
        "_relative_to_peak": [
            (
                "the unit of a norm that is NaN is NaN",
                "jnp.nan_to_num(peak.value * peak.unit, nan=1.0)",
                "peak.value * peak.unit",
                "tests/numerics/test_norm_derivatives.py::test_derivatives_where_a_norm_is_not_finite",
            ),
            (
                "an infinite element is divided by itself",
                "jnp.where((largest > 0) & jnp.isfinite(largest), largest,",
                "jnp.where(largest > 0, largest,",
                "tests/numerics/test_norms.py::test_non_finite_values_show[2.5-inf]",
            ),
            (
                "the unit of the largest magnitude is dropped",
                "peak.value * (peak.unit / unit)",
                "peak.value / unit",
                "tests/contract/test_elements.py::test_complex_norm_beyond_float32_max[200]",
            ),
        ],
        "_power_sum": [
            (
                "powers are summed in the dtype of the leaf",
                "reduced(_raised(x, dtype, scale, kind.power), kind.axes)",
                "reduced(_raised(x, x.real.dtype, scale, kind.power), kind.axes).astype(dtype)",
                "tests/numerics/test_norms.py::test_values[bfloat16]",
            ),
        ],
        "_peak": [
            (
                "the magnitude of a complex number beyond the range is infinite",
                "unit = 2.0 if any(map(jnp.iscomplexobj, arrays)) else 1.0",
                "unit = 1.0",
                "tests/contract/test_elements.py::test_complex_norm_beyond_float32_max[inf]",
            ),
        ],
        "_raised": [
            (
                "a power is rounded to float32",
                "found * x ** jnp.asarray(rest, x.dtype) if rest else found",
                "x ** jnp.asarray(power, x.dtype)",
                "tests/numerics/test_norms.py::test_other_orders_at_extreme_values[1.1]",
            ),
            (
                "squares of constants are those of their factors",
                "opaque(times(x, scale))",
                "times(x, scale)",
                "tests/contract/test_constants.py::test_new_biases_under_a_rule_that_measures_weights",
            ),
            (
                "the imaginary part is not measured",
                "+ _raised(imag, dtype, scale, power)",
                "",
                "tests/numerics/test_norms.py::test_values[complex64]",
            ),
            (
                "a complex magnitude is computed before rescaling",
                "x = widened(x, dtype)",
                "x = jnp.abs(x).astype(dtype) if power != 2 else x",
                "tests/contract/test_elements.py::test_complex_norm_beyond_float32_max[1]",
            ),
        ],
        "_root": [
            (
                "the root of another order is not refined",
                "jnp.where(good, root - (root - total / slope) / power, root)",
                "root",
                "tests/numerics/test_norms.py::test_other_orders_at_extreme_values",
            ),
            (
                "the root mean square is not divided by the number of elements",
                "if kind.mean else total",
                "if False else total",
                "tests/numerics/test_norms.py::test_one_array",
            ),
        ],
    },
    "_numerics/derivatives.py": {
        "_tangent": [
            (
                "the derivative at an infinite element is not a number",
                "jnp.where(good, in_unit(x, unit), 0)",
                "in_unit(x, unit)",
                "tests/numerics/test_norm_derivatives.py::test_derivatives_where_a_norm_is_not_finite",
            ),
            (
                "the derivative divides by a norm of 0",
                "good = (out.value > 0) & jnp.isfinite(out.value)",
                "good = jnp.isfinite(out.value)",
                "tests/numerics/test_norm_derivatives.py::test_derivatives_at_zero",
            ),
            (
                "equal largest elements get the whole derivative each",
                "change / jnp.maximum(sum_of(ties, kind.mesh), 1)",
                "change / 1",
                "tests/numerics/test_norm_derivatives.py::test_derivative_of_inf_norm_with_equal_largest_elements",
            ),
            (
                "the derivative of a root mean square is that of the norm",
                "(float(kind.elements) if kind.mean else 1)",
                "1",
                "tests/numerics/test_norm_derivatives.py::test_gradient_is_the_difference_quotient",
            ),
            (
                "the derivative is not summed over devices",
                "change = sum_of(terms, kind.mesh)",
                "change = sum_of(terms, None)",
                "tests/sharding/test_collectives.py::test_global_norm_over_six_devices",
            ),
        ],
        "_slope": [
            (
                "the derivative of another order has the wrong power",
                "jnp.asarray(power - 1, size.dtype)",
                "jnp.asarray(power, size.dtype)",
                "tests/numerics/test_norm_derivatives.py::test_gradient_is_the_difference_quotient",
            ),
        ],
    },
}
