"""Mutants of measuring, trees, states, records and the checks of arguments."""

CHANGES = {
    "_core/measure.py": {
        "Gauge.of_tree": [
            ("the global norm is a 2-norm for every order",
             "2.0 if isinstance(self.ord, str) else self.ord", "2.0",
             "tests/thresholds/test_learned_edges.py::test_adagc_warmup_with_a_nonfinite_leaf -k "
             "'1'"),
            ("a non-finite leaf makes the global norm non-finite",
             "numbers = [jnp.where(jnp.isfinite(n), n, jnp.zeros_like(n)) for n in numbers]", "",
             "tests/thresholds/test_learned_edges.py::test_adagc_warmup_with_a_nonfinite_leaf -k "
             "'2'"),
        ],
        "given": [
            ("a given norm keeps its dtype",
             "(norm).astype(dtype)", "(norm)",
             "tests/contract/test_masks.py::test_given_norm[clip_by_global_norm]"),
        ],
        "chosen": [
            ("masks may hold values that are not bools",
             "if not _checks.is_bool(value):", "if _checks.is_traced(value):",
             "tests/contract/test_masks.py::test_masks_must_hold_bools"),
            ("a mask that is a module is called",
             "asks = callable(mask) and not any(", "asks = callable(mask) or not any(",
             "tests/contract/test_arguments.py::test_mask_that_is_a_callable_module"),
        ],
        "Gauge.shapes": [
            ("the memory of units has the shape of the reduced axes",
             "tuple(1 if i in reduced else n", "tuple(n if i in reduced else 1",
             "tests/interop/test_learned.py::test_types_never_change[clip_by]"),
        ],
        "Gauge.differing": [
            ("elements are counted on each device separately",
             'return self.axis_name if self.scope == "element" else None', "return None",
             "tests/sharding/test_records.py::test_records_with_axis_name[True]"),
        ],
    },
    "_core/record.py": {
        "record": [
            ("the recorded threshold is the largest one, with the wrong sign",
             "(n.number, -jnp.asarray(c), -s.number,", "(n.number, jnp.asarray(c), -s.number,",
             "tests/contract/test_state.py::test_records[clip_by_norm]"),
        ],
        "of_elements": [
            ("the share of elements divides by the number on one device",
             "sum(x.size * _mesh.shards(_mesh.differing_axes(x, axis_name)) for x in arrays)",
             "sum(x.size for x in arrays)",
             "tests/contract/test_elements.py::test_record_of_a_sharded_leaf[clip]"),
            ("an element beyond float32 counts as not finite",
             "~jnp.isfinite(half))", "jnp.isinf(half.astype(jnp.float32)))",
             "tests/contract/test_elements.py::test_float64_elements_beyond_float32[clip]"),
            ("the factor of a magnitude beyond the range is 0",
             "limit * (1 / most.unit) / most.value", "limit / norm",
             "tests/contract/test_elements.py::test_complex_elements_beyond_float32_max"),
        ],
        "all_finite": [
            ("a non-finite norm is not recorded on other devices",
             "(broken,) = largest([(~n.is_finite,) for n in found], (0.0,), axis_name)",
             "(broken,) = largest([(~n.is_finite,) for n in found], (0.0,))",
             "tests/sharding/test_records.py::test_records_with_axis_name[True]"),
        ],
    },
    "_core/state.py": {
        "following": [
            ("the count of updates wraps round",
             "count = optax.safe_increment(state.count)", "count = state.count + 1",
             "tests/contract/test_state.py::test_counts_saturate"),
            ("clipped updates are not counted",
             "clipped_count=counted(state.clipped_count, record.clipped)",
             "clipped_count=state.clipped_count",
             "tests/contract/test_state.py::test_records[clip_by_norm]"),
            ("non-finite updates are not counted",
             "nonfinite_count=counted(state.nonfinite_count, record.nonfinite)",
             "nonfinite_count=state.nonfinite_count",
             "tests/contract/test_state.py::test_records[clip_by_norm]"),
        ],
        "checked": [
            ("any tuple is accepted as a state",
             "if type(state) is not type(own):", "if not isinstance(state, tuple):",
             "tests/interop/test_checkpoint.py::test_state_of_another_rule_is_refused[clip_by_norm]"),
            ("a state with arrays of other shapes is accepted",
             "if shapes.get(key) != wanted.get(key):", "if (key in shapes) != (key in wanted):",
             "tests/interop/test_checkpoint.py::test_state_with_another_window_is_refused -k "
             "'not orbax'"),
            ("a state of another rule is accepted",
             "if type(state) is not type(own):", "if False:",
             "tests/interop/test_checkpoint.py::test_state_of_another_rule_is_refused[clip_by_norm]"),
            ("a state with a ring of another length is accepted",
             "if shapes.get(key) != wanted.get(key):", "if False:",
             "tests/interop/test_checkpoint.py::test_state_with_another_window_is_refused"),
        ],
        "_rebuild": [
            ("a pickled state with fewer fields is read",
             "if len(fields) != len(kind._fields):", "if len(fields) > len(kind._fields):",
             "tests/interop/test_checkpoint.py::test_pickled_state_with_other_fields_is_refused"),
            ("a pickled state with other fields is accepted",
             "if len(fields) != len(kind._fields):", "if False:",
             "tests/interop/test_checkpoint.py::test_pickled_state_with_other_fields_is_refused"),
        ],
        "checked_or_first": [
            ("a rule refuses to start without a state",
             "if state is None or isinstance(", "if isinstance(",
             "tests/contract/test_state.py::test_update_without_a_state"),
        ],
    },
    "_core/flat_tree.py": {
        "is_inexact": [
            ("complex leaves are not measured",
             "jnp.issubdtype(dtype, jnp.inexact)", "jnp.issubdtype(dtype, jnp.floating)",
             "tests/contract/test_leaves.py::test_complex_keeps_its_phase[clip_by_norm]"),
        ],
        "Flat.names": [
            ("two leaves have the same name",
             "if len(set(names)) < len(names):", "if not names:",
             "tests/diagnosis/test_telemetry.py::test_monitor_with_colliding_leaf_names"),
        ],
        "_without_value": [
            ("the wrapper of an NNX parameter is part of its name",
             "return path[:-1] if path and path[-1] == attribute else path", "return path",
             "tests/diagnosis/test_layers.py::test_nnx"),
        ],
        "_reduced_axes": [
            ("axes that a leaf lacks are not ignored",
             "for a in axis if -ndim <= a < ndim}", "for a in axis}",
             "tests/numerics/test_norms.py::test_unit_values -k 'axis4'"),
            ("the default unit is an input channel",
             "tuple(range(ndim - 1)) if ndim > 1", "tuple(range(1, ndim)) if ndim > 1",
             "tests/numerics/test_norms.py::test_unit_values[None-2]"),
        ],
        "params_like": [
            ("parameters of another structure are accepted",
             "if own.treedef != updates.treedef:", "if len(own.leaves) != len(updates.leaves):",
             "tests/contract/test_errors.py::test_params_of_another_structure"),
        ],
        "Flat.spread": [
            ("None is not a value of a prefix tree",
             "jax.tree.map(_Box, prefix, is_leaf=lambda x: x is None)",
             "jax.tree.map(_Box, prefix)",
             "tests/thresholds/test_fixed.py::test_prefix_tree_of_everything"),
        ],
        "_array": [
            ("a jax.ShapeDtypeStruct is not a leaf",
             "x if isinstance(x, jax.ShapeDtypeStruct) else jnp.asarray(x)", "jnp.asarray(x)",
             "tests/contract/test_state.py::test_init_from_shapes"),
        ],
        "at": [
            ("a schedule that is a pytree is treated as a tree",
             ", is_leaf=values)", ")",
             "tests/contract/test_arguments.py::test_schedule_that_is_a_pytree"),
        ],
        "check_shapes": [
            ("parameters that broadcast are accepted",
             "if w.shape != u.shape:", "if w.ndim != u.ndim:",
             "tests/contract/test_arguments.py::test_params_of_another_shape"),
        ],
    },
    "_validate.py": {
        "_real_values": [
            ("NaN is accepted",
             "if np.isnan(array).any():", "if array.ndim and np.isnan(array).any():",
             "tests/contract/test_errors.py::test_threshold_value -k 'nan and "
             "clip_by_global_norm'"),
        ],
        "between": [
            ("only the lower end of an interval is checked",
             "not low <= float(value) <= high", "not low <= float(value)",
             "tests/thresholds/test_learned_errors.py::test_bad_values -k 'percentile'"),
        ],
        "_exceeds": [
            ("crossed bounds are accepted unless all elements cross",
             "> np.asarray(high, np.float64)).any())", "> np.asarray(high, np.float64)).all())",
             "tests/projections/test_errors.py::test_bounds_of_shapes_that_do_not_fit"),
        ],
        "broadcasts": [
            ("a threshold may enlarge its leaf",
             "return jnp.broadcast_shapes(shape, onto) == onto",
             "return bool(jnp.broadcast_shapes(shape, onto))",
             "tests/thresholds/test_fixed.py::test_thresholds_may_not_enlarge"),
        ],
        "norm_order": [
            ("orders below 1 are accepted",
             "if math.isnan(value) or value < 1:", "if math.isnan(value) or value <= 0:",
             "tests/contract/test_errors.py::test_order_value"),
        ],
        "axes": [
            ("an axis may be named twice",
             "if len(set(result)) != len(result):", "if len(result) > 3:",
             "tests/contract/test_errors.py::test_axis"),
        ],
        "is_bool": [
            ("a mask of arrays is refused",
             "isinstance(x, (np.ndarray, jax.Array)) and not is_traced(x)", "False",
             "tests/contract/test_arguments.py::test_masks_of_numpy_and_jax_bools"),
        ],
        "number": [
            ("whole numbers wrap in an int32",
             'if whole or (isinstance(value, np.ndarray) and value.dtype.kind in "iu"):',
             "if False:",
             "tests/contract/test_arguments.py::test_whole_numbers_beyond_int32"),
        ],
        "whole_number": [
            ("a warm-up beyond int32 is an overflow",
             "return whole if fixed else min(whole, np.iinfo(np.int32).max)", "return whole",
             "tests/contract/test_arguments.py::test_warmup_steps_beyond_int32"),
        ],
        "one_value": [
            ("functions accept schedules",
             "if value is not None and (callable(value) or is_tree(value)):", "if False:",
             "tests/contract/test_arguments.py::test_functional_refuses_schedules_and_trees[max_norm-schedule]"),
        ],
    },
}  # fmt: skip
