"""Mutants of functions, guards and norms."""

CHANGES = {
    "guards.py": {
        "skip_spikes.limits": [
            ("the standard deviation is that of a population",
             "_history.limit(ring, sigma, need, correction=1)",
             "_history.limit(ring, sigma, need, correction=0)",
             "tests/test_guards.py::test_skip_spikes_against_its_reference"),
        ],
        "skip_spikes.learned": [
            ("a norm that is not finite is remembered",
             "norm.astype(memory.norms.values.dtype), jnp.isfinite(norm))",
             "norm.astype(memory.norms.values.dtype), jnp.ones((), bool))",
             "tests/test_guards.py::test_a_skipped_step_leaves_no_trace[skip_spikes]"),
        ],
        "skip_spikes": [
            ("a history of one norm, which has no spread, is let through",
             "min_history, least=2)", "min_history, least=1)",
             "tests/test_guards_around.py -k 'bad_values and min_history'"),
        ],
    },
    "functional/projecting.py": {
        "_projected": [
            ("weights come out in the wide dtype",
             "jnp.where(landed.keep, x, landed.value.astype(x.dtype))",
             "jnp.where(landed.keep, x.astype(landed.value.dtype), landed.value)",
             "tests/test_functional.py::test_dtypes_are_kept[bfloat16]"),
        ],
        "min_max_norm": [
            ("min_max_norm forgets its rate",
             '("min_norm", "max_norm"), rate)', '("min_norm", "max_norm"))',
             "tests/test_projections_limits.py::test_a_rate_of_nothing"),
        ],
        "max_norm": [
            ("max_norm brings small units up",
             '_weights.norms_between(None, limit, ("limit", "limit"))',
             '_weights.norms_between(limit, limit, ("limit", "limit"))',
             "tests/test_peers.py -k 'row_18 and float32'"),
        ],
    },
    "functional/clipping.py": {
        "clip_by_norm": [
            ("slices that are not finite are scaled",
             "_kept_if_nonfinite(n, _scaling.hard(n, bound))", "_scaling.hard(n, bound)",
             "tests/test_functional.py::test_non_finite_values_propagate"),
        ],
        "clip_by_average_norm": [
            ("the average norm is the root mean square",
             'ord="average"', 'ord="rms"',
             "tests/test_functional.py::test_average_norm_clip_of_three_and_four"),
        ],
        "clip_by_global_norm": [
            ("the norm that is returned lacks its unit",
             "for x in flat.arrays]), found.number", "for x in flat.arrays]), found.value",
             "tests/test_gaps.py::test_the_norm_returned_of_any_magnitude"),
            ("a norm that is known is measured",
             "if norm is None:", "if True:",
             "tests/test_functional.py::test_given_norm"),
        ],
    },
    "norms.py": {
        "measure": [
            ("means are over the elements of one device",
             "sum(arrays[i].size * _mesh.shards(mesh[i]) for i in chosen)",
             "sum(arrays[i].size for i in chosen)",
             "tests/test_mesh_entries.py::test_functions_of_leaves_where_the_axis_must_be_named"),
        ],
        "_norms": [
            ("nothing is divided by no elements",
             "counts = [max(count, 1) for count in counts]", "counts = list(counts)",
             "tests/test_norms.py::test_other_leaves_count_nothing"),
            ("the average norm divides inside the root",
             'if order == "rms":', 'if order in ("rms", "average"):',
             "tests/test_norms.py::test_one_array"),
        ],
        "_mesh_axes": [
            ("units that may be spread over devices are taken for whole",
             "if names and axis_name is None and not whole:", "if names and axis_name == ():",
             "tests/test_projections_contexts.py::test_what_shard_map_cannot_know"),
            ("a leaf that is one unit has to name its axis",
             'whole = scope != "unit" or len(reduced) == x.ndim', 'whole = scope != "unit"',
             "tests/test_gaps.py::test_a_sharded_vector_is_one_unit"),
        ],
        "together": [
            ("norms of leaves are joined by a 2-norm",
             "kind = Kind(power, (None,) * len(numbers),",
             "kind = Kind(2.0, (None,) * len(numbers),",
             "tests/test_telemetry.py -k 'changes_nothing and 1'"),
        ],
    },
}  # fmt: skip
