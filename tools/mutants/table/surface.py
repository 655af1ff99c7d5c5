"""Mutants of functions, guards and norms."""

CHANGES = {
    "guards.py": {
        "skip_spikes.limits": [
            ("the standard deviation is not corrected for the sample size",
             "_history.limit(ring, sigma, need, correction=1)",
             "_history.limit(ring, sigma, need, correction=0)",
             "tests/guards/test_skipping.py::test_skip_spikes_against_its_reference"),
        ],
        "skip_spikes.learned": [
            ("a non-finite norm is stored",
             "norm.astype(memory.norms.values.dtype), jnp.isfinite(norm))",
             "norm.astype(memory.norms.values.dtype), jnp.ones((), bool))",
             "tests/guards/test_skipping.py::test_skipped_step_leaves_state_unchanged[skip_spikes]"),
        ],
        "skip_spikes": [
            ("a min_history of 1 is accepted",
             "min_history, least=2)", "min_history, least=1)",
             "tests/guards/test_nesting.py::test_bad_values -k 'min_history'"),
        ],
    },
    "functional/projecting.py": {
        "_projected": [
            ("weights are returned in the dtype of the accumulator",
             "jnp.where(landed.keep, x, landed.value.astype(x.dtype))",
             "jnp.where(landed.keep, x.astype(landed.value.dtype), landed.value)",
             "tests/contract/test_functional.py::test_dtypes_are_kept[bfloat16]"),
        ],
        "min_max_norm": [
            ("project_min_max_norm ignores rate",
             '("min_norm", "max_norm"), rate)', '("min_norm", "max_norm"))',
             "tests/projections/test_limits.py::test_rate_of_zero"),
        ],
        "max_norm": [
            ("project_max_norm enlarges small units",
             '_weights.norms_between(None, limit, ("limit", "limit"))',
             '_weights.norms_between(limit, limit, ("limit", "limit"))',
             "tests/contract/test_optax_defects.py::test_projection_of_a_small_weight_1000_times "
             "-k 'float32'"),
        ],
    },
    "functional/clipping.py": {
        "clip_by_norm": [
            ("non-finite slices are scaled",
             "_kept_if_nonfinite(n, _scaling.hard(n, bound))", "_scaling.hard(n, bound)",
             "tests/contract/test_functional.py::test_non_finite_values_propagate"),
        ],
        "clip_by_average_norm": [
            ("the average norm is the root mean square",
             'ord="average"', 'ord="rms"',
             "tests/contract/test_functional.py::test_average_norm_clip_of_three_and_four"),
        ],
        "clip_by_global_norm": [
            ("the returned norm lacks its unit",
             "for x in flat.arrays]), found.number", "for x in flat.arrays]), found.value",
             "tests/contract/test_functional.py::test_returned_norm_of_extreme_values"),
            ("a known norm is measured again",
             "if norm is None:", "if True:",
             "tests/contract/test_functional.py::test_given_norm"),
        ],
    },
    "norms.py": {
        "measure": [
            ("means are over the elements of one device",
             "sum(arrays[i].size * _mesh.shards(mesh[i]) for i in chosen)",
             "sum(arrays[i].size for i in chosen)",
             "tests/sharding/test_entries.py::test_functions_of_leaves_with_axis_name"),
        ],
        "_norms": [
            ("leaves without elements give NaN",
             "counts = [max(count, 1) for count in counts]", "counts = list(counts)",
             "tests/numerics/test_norms.py::test_non_float_leaves_count_nothing"),
            ("the average norm divides inside the root",
             'if order == "rms":', 'if order in ("rms", "average"):',
             "tests/numerics/test_norms.py::test_one_array"),
        ],
        "_mesh_axes": [
            ("units that may be sharded are measured as local",
             "if names and axis_name is None and not whole:", "if names and axis_name == ():",
             "tests/projections/test_contexts.py::test_shard_map_errors"),
            ("a leaf that is one unit needs axis_name",
             'whole = scope != "unit" or len(reduced) == x.ndim', 'whole = scope != "unit"',
             "tests/sharding/test_entries.py::test_unit_scope_with_sharded_vector"),
        ],
        "together": [
            ("norms of leaves are combined by a 2-norm",
             "kind = Kind(power, (None,) * len(numbers),",
             "kind = Kind(2.0, (None,) * len(numbers),",
             "tests/diagnosis/test_telemetry.py::test_monitor_changes_nothing_and_names_leaves "
             "-k '1'"),
        ],
    },
}  # fmt: skip
