"""Mutants of the diagnosis and the telemetry."""

CHANGES = {
    "telemetry.py": {
        "metrics": [
            ("the second of a rule is named otherwise",
             'f"{state.rule}_{', 'f"{state.rule}{',
             "tests/test_telemetry.py::test_the_same_rule_twice"),
            ("an optimizer within an optimizer is taken for a training state",
             "if not isinstance(opt_state, tuple):", "if True:",
             "tests/test_telemetry.py::test_metrics_of_an_optimizer_within_an_optimizer"),
            ("a name that looks like a second one hides it",
             "while prefix in seen:", "if prefix in seen:",
             "tests/test_telemetry.py::test_names_that_look_like_a_second_one"),
        ],
        "_recorded": [
            ("rules in a guard are not found",
             "yield from _recorded(state.inner_state)", "yield from ()",
             "tests/test_guards_around.py::test_metrics_through_guards"),
        ],
        "monitor.update": [
            ("an infinite norm does not count as not finite",
             "broken = ~jnp.isfinite(whole)", "broken = jnp.isnan(whole)",
             "tests/test_telemetry.py::test_monitor_of_params_counts_what_is_not_finite"),
            ("a monitor takes the state of a rule",
             "if not isinstance(state, kind):", "if state is kind:",
             "tests/test_checkpoint.py::test_a_state_of_another_rule[monitor]"),
            ("parameters are read at no certain time",
             "updates = _after(found, updates)", "updates = updates",
             "tests/test_telemetry.py::test_monitor_of_params_leaves_them_where_they_are"),
            ("a monitor of the parameters looks at the updates",
             '_trees.flatten(params if of == "params" else updates)', "_trees.flatten(updates)",
             "tests/test_telemetry.py::test_monitor_of_params"),
        ],
    },
    "diagnosis/diagnose.py": {
        "diagnose": [
            ("weights and updates change places",
             "_depth.layers(gradients, weights, steps, ranks, order)",
             "_depth.layers(gradients, steps, weights, ranks, order)",
             "tests/test_diagnosis.py::test_ratio_of_zero_weights_and_the_table"),
        ],
        "_same": [
            ("fewer steps than the gradients have are let through",
             "if steps != own:", "if steps < own:",
             "tests/test_diagnosis_log.py::test_errors"),
        ],
    },
    "diagnosis/findings.py": {
        "": [
            ("a norm may fall faster before it vanishes",
             "PER_LAYER = 1.5", "PER_LAYER = 1.6",
             "tests/test_diagnosis.py::test_limits_over_depth"),
            ("two layers make a trend",
             "LAYERS = 3", "LAYERS = 2",
             "tests/test_diagnosis.py::test_limits_over_depth"),
        ],
        "Trend.finding": [
            ("a norm may grow further before it explodes",
             "near > IN_ALL * far", "near > 2 * IN_ALL * far",
             "tests/test_diagnosis.py::test_limits_over_depth"),
        ],
        "nonfinite": [
            ("of layers not finite that nearest the input is told",
             "or hit)[-1].name", "or hit)[0].name",
             "tests/test_diagnosis.py::test_a_nan_is_located_and_does_not_spoil_the_trend"),
        ],
        "over_depth": [
            ("steps in which some layers are not finite count",
             "good = np.isfinite(table).all(axis=0)", "good = np.isfinite(table).any(axis=0)",
             "tests/test_diagnosis_log.py -k steps_with_a_layer_not_finite"),
        ],
        "growth": [
            ("one spike is growth",
             "np.median(finite[-size:])", "np.median(finite[-1:])",
             "tests/test_diagnosis_log.py::test_growth_over_time"),
        ],
        "say_units": [
            ("ReLU is said to saturate",
             "if u.bounded and u.saturated > SATURATED]", "if u.saturated > SATURATED]",
             "tests/test_diagnosis_units.py::test_units_are_findings"),
        ],
        "Trend.lost": [
            ("zeros anywhere count as lost from the input on",
             "np.cumprod(self.profile[np.isfinite(self.profile)] == 0).sum()",
             "np.sum(self.profile[np.isfinite(self.profile)] == 0)",
             "tests/test_diagnosis.py::test_limits_over_depth"),
        ],
    },
    "diagnosis/activations.py": {
        "_is_flat": [
            ("an activation without any slope is not flat",
             "(slope < _FLAT * steepest) | (slope == 0)", "slope < _FLAT * steepest",
             "tests/test_diagnosis_units.py -k 'unit_shares and constant'"),
        ],
        "unit_shares": [
            ("a unit without slope at one example is dead",
             "jnp.all(flat, axis=0), flat", "jnp.any(flat, axis=0), flat",
             "tests/test_diagnosis_units.py -k 'unit_shares and relu'"),
            ("slopes are taken in the dtype of the preactivations",
             "z = z.astype(jnp.float64 if z.dtype == jnp.float64 else jnp.float32)", "z = z + 0",
             "tests/test_diagnosis_units.py -k 'unit_shares and bfloat16'"),
        ],
    },
    "diagnosis/layers.py": {
        "natural.key": [
            ("siblings are in the order of letters",
             '[int(n) for n in re.findall(r"\\d+", part)]', 're.findall(r"\\d+", part)',
             "tests/test_diagnosis_layers.py::test_natural_order"),
        ],
        "factor": [
            ("layers that are left out shorten the way between others",
             "(logs[j] - logs[i]) / (where[j] - where[i])", "(logs[j] - logs[i]) / (j - i)",
             "tests/test_gaps.py::test_layers_without_a_gradient_keep_their_place"),
        ],
        "Layer.ratio": [
            ("the ratio to a weight of 0 is infinite",
             "weight = np.where(self.weight == 0, np.nan, self.weight)",
             "weight = np.where(self.weight == 0, 0.0, self.weight)",
             "tests/test_diagnosis.py::test_ratio_of_zero_weights_and_the_table"),
        ],
        "layers": [
            ("biases tell also where a layer normalizes",
             'plain = "scale" not in roles.values()', "plain = True",
             "tests/test_diagnosis_layers.py::test_what_counts_as_a_layer_of_depth"),
        ],
    },
    "diagnosis/monitor_log.py": {
        "_values": [
            ("values of rank 2 are let through",
             "if x.ndim > 1]", "if x.ndim > 2]",
             "tests/test_diagnosis_log.py::test_errors"),
        ],
        "recorded": [
            ("leaves recorded in other steps are let through",
             "if len(set(sizes.values())) > 1:", "if len(set(sizes)) < 1:",
             "tests/test_diagnosis_log.py::test_errors"),
        ],
    },
    "diagnosis/report.py": {
        "diagnosis": [
            ("the step that is told does not count from the first",
             "(broken[0] + first_step, broken[1])", "(broken[0], broken[1])",
             "tests/test_diagnosis_log.py -k the_earliest_step"),
            ("layers that do not count are in the trend",
             "deep = [row for row in rows if row.deep]", "deep = list(rows)",
             "tests/test_diagnosis_layers.py::test_what_counts_as_a_layer_of_depth"),
        ],
    },
}  # fmt: skip
