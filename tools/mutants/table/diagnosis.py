"""Mutants of the diagnosis and the telemetry."""

CHANGES = {
    "telemetry.py": {
        "metrics": [
            ("the second rule of a name gets another name",
             'f"{name}_{', 'f"{name}{',
             "tests/diagnosis/test_telemetry.py::test_the_same_rule_twice"),
            ("a nested optimizer is treated as a training state",
             "if not isinstance(opt_state, tuple):", "if True:",
             "tests/diagnosis/test_telemetry.py::test_metrics_of_nested_optimizers"),
            ("a name such as `clip_1` hides the second `clip`",
             "while any(", "if any(",
             "tests/diagnosis/test_telemetry.py::test_rule_names_that_end_in_a_number"),
        ],
        "_recorded": [
            ("rules in a guard are not found",
             "yield from _recorded(state.guarded_state, labels)", "yield from ()",
             "tests/guards/test_nesting.py::test_metrics_through_guards"),
            ("rules in a guard lose their labels",
             "_recorded(state.guarded_state, labels)", "_recorded(state.guarded_state)",
             "tests/diagnosis/test_labels.py::test_partition_in_chains_guards_and_wrappers"),
            ("the labels of an outer partition are lost",
             'f"{labels}{label!s}/"', 'f"{label!s}/"',
             "tests/diagnosis/test_labels.py::test_nested_partitions"),
        ],
    },
    "diagnosis/diagnose.py": {
        "_tables": [
            ("weights and updates are swapped",
             '("gradient", "weight", "update")', '("gradient", "update", "weight")',
             "tests/diagnosis/test_findings.py::test_ratio_of_zero_weights_and_the_table"),
        ],
        "_check_match": [
            ("a table with fewer steps than the gradients is accepted",
             "if steps != wanted:", "if steps > wanted:",
             "tests/diagnosis/test_monitor_log.py::test_errors"),
        ],
    },
    "diagnosis/findings.py": {
        "": [
            ("the limit per layer is 1.6",
             "PER_LAYER = 1.5", "PER_LAYER = 1.6",
             "tests/diagnosis/test_findings.py::test_limits_over_depth"),
            ("two layers make a trend",
             "LAYERS = 3", "LAYERS = 2",
             "tests/diagnosis/test_findings.py::test_limits_over_depth"),
        ],
        "Trend.finding": [
            ("the limit of a growing norm is 200 in all",
             "self.near > IN_ALL * self.far", "self.near > 2 * IN_ALL * self.far",
             "tests/diagnosis/test_findings.py::test_limits_over_depth"),
        ],
        "first_nonfinite": [
            ("the non-finite layer nearest the input is named",
             "or hit)[-1].name", "or hit)[0].name",
             "tests/diagnosis/test_findings.py::test_nan_is_located_and_left_out_of_the_factor"),
        ],
        "Trend.__init__": [
            ("steps in which some layers are not finite count",
             "good = np.isfinite(table).all(axis=0)", "good = np.isfinite(table).any(axis=0)",
             "tests/diagnosis/test_monitor_log.py::test_nonfinite_steps_are_left_out_for_all_layers"),
            ("zeros in any layer count as zeros from the input on",
             "np.sum(np.cumprod(finite == 0))", "np.sum(finite == 0)",
             "tests/diagnosis/test_findings.py::test_limits_over_depth"),
            ("layers without a gradient shorten the distance between others",
             "(logs[j] - logs[i]) / (where[j] - where[i])", "(logs[j] - logs[i]) / (j - i)",
             "tests/diagnosis/test_findings.py::test_factor_with_a_zero_gradient_layer"),
        ],
        "growth": [
            ("a single spike is growth",
             "median(finite[-size:])", "median(finite[-1:])",
             "tests/diagnosis/test_monitor_log.py::test_growth_over_time"),
        ],
        "say_units": [
            ("ReLU layers are called saturated",
             "u.bounded and u.saturated > SATURATED", "u.saturated > SATURATED",
             "tests/diagnosis/test_activations.py::test_units_are_findings"),
        ],
    },
    "diagnosis/activations.py": {
        "_is_flat": [
            ("a constant activation is not flat",
             "(slope < _FLAT * steepest) | (slope == 0)", "slope < _FLAT * steepest",
             "tests/diagnosis/test_activations.py::test_unit_shares -k 'constant'"),
        ],
        "unit_shares": [
            ("a unit without slope at one example is dead",
             "flat.all(axis=0)", "flat.any(axis=0)",
             "tests/diagnosis/test_activations.py::test_unit_shares -k 'relu'"),
            ("slopes are computed in the dtype of the preactivations",
             "z = z.astype(jnp.float64 if z.dtype == jnp.float64 else jnp.float32)", "z = z + 0",
             "tests/diagnosis/test_activations.py::test_unit_shares -k 'bfloat16'"),
        ],
    },
    "diagnosis/layers.py": {
        "natural.key": [
            ("siblings are sorted by the letters of their number",
             '[int(n) for n in re.findall(r"\\d+", part)]', 're.findall(r"\\d+", part)',
             "tests/diagnosis/test_layers.py::test_natural_order"),
        ],
        "Layer.ratio": [
            ("the ratio to a weight of 0 is infinite",
             "np.where(self.weight == 0, np.nan, self.weight)",
             "np.where(self.weight == 0, 0.0, self.weight)",
             "tests/diagnosis/test_findings.py::test_ratio_of_zero_weights_and_the_table"),
        ],
        "from_leaves": [
            ("biases count in a network with normalization layers",
             'normalized = "normalization" in roles.values()', "normalized = False",
             "tests/diagnosis/test_layers.py::test_normalizations_are_not_layers_of_depth"),
        ],
    },
    "diagnosis/monitor_log.py": {
        "_values": [
            ("values of rank 2 are accepted",
             "if widest.ndim > 1 or", "if widest.ndim > 2 or",
             "tests/diagnosis/test_monitor_log.py::test_errors"),
        ],
        "recorded": [
            ("leaves recorded in different steps are accepted",
             "if len(set(sizes.values())) > 1:", "if len(set(sizes)) < 1:",
             "tests/diagnosis/test_monitor_log.py::test_errors"),
        ],
    },
    "diagnosis/report.py": {
        "conclude": [
            ("the step does not count from first_step",
             "nonfinite[0] + first_step, nonfinite[1]", "nonfinite[0], nonfinite[1]",
             "tests/diagnosis/test_monitor_log.py::test_first_nonfinite_step_and_layer"),
            ("layers that do not count are in the trend",
             "deep = [layer for layer in layers if layer.deep]", "deep = list(layers)",
             "tests/diagnosis/test_layers.py::test_normalizations_are_not_layers_of_depth"),
        ],
    },
}  # fmt: skip
