"""Mutants of the figures, and of metrics as floats."""

_LOG, _PANELS = "tests/plot/test_log.py", "tests/plot/test_panels.py"
_LINES = "tests/plot/test_json_lines.py"
_FIGURES, _FLOATS = "tests/plot/test_figures.py", "tests/diagnosis/test_telemetry.py"

CHANGES = {
    "plot/log.py": {
        "Log.series": [
            ("the earlier record of a step counts",
             "found.update(zip(steps.tolist(), values.tolist(), strict=True))",
             "found = dict(zip(steps.tolist(), values.tolist(), strict=True)) | found",
             f"{_LOG}::test_the_later_record_of_a_step_counts"),
        ],
        "Log.rules": [
            ("a projection is drawn in place of a rule of gradients",
             'name.rpartition("/")[2].startswith("project_")', "0",
             f"{_PANELS}::test_which_rule"),
        ],
        "Log.layers": [
            ("steps of one monitor alone are drawn",
             "np.intersect1d(steps, series.steps)", "np.union1d(steps, series.steps)",
             f"{_LOG}::test_layers_of_two_monitors_in_the_steps_of_both"),
        ],
        "_numbered": [
            ("keys are sorted",
             "zip(entries, columns, strict=True)",
             "zip(jax.device_get(list(entries)), columns, strict=True)",
             f"{_LOG}::test_order_of_the_keys_stays"),
            ("steps of the second dict begin at 0",
             "start += size", "start = 0",
             f"{_LOG}::test_numbers_of_steps"),
            ("steps are numbered from 1",
             "np.max(counts, axis=0) - 1", "np.max(counts, axis=0)",
             f"{_LOG}::test_numbers_of_steps"),
        ],
    },
    "plot/json_lines.py": {
        "parse": [
            ("an earlier run in a file counts",
             "settings, runs, spans = record, {}, {}", "settings = record",
             f"{_LINES}::test_files"),
            ("damaged lines are not counted",
             "damaged += 1", "damaged += 0",
             f"{_LINES}::test_damaged_lines_are_left_out_and_told"),
            ("a run that was started again is added to the earlier one",
             "records.clear()", "pass",
             f"{_LINES}::test_a_run_that_was_started_again_replaces_the_earlier_one"),
            ("a second line for a step drops the first",
             "step <= first < latest", "step <= first <= latest",
             f"{_LINES}::test_a_run_that_was_started_again_replaces_the_earlier_one"),
        ],
        "_printable": [
            ("a terminal obeys control characters of a file",
             "if text.isprintable():", "if text:",
             f"{_LINES}::test_control_characters_are_spelled_out"),
        ],
        "number": [
            ("words of numbers are taken for texts",
             "value.lstrip(\"+-\").lower() in _NOT_FINITE", "value in _NOT_FINITE",
             f"{_LINES}::test_numbers_of_every_kind"),
        ],
    },
    "plot/style.py": {
        "plain": [
            ("a dollar begins a formula",
             'text.replace("$", r"\\$")', "text",
             f"{_PANELS}::test_names_that_are_long_or_look_like_formulas"),
        ],
        "line": [
            ("zeros on a log scale are not marked",
             "mark(ax, x[low], top=False)", "pass",
             f"{_PANELS}::test_values_that_cannot_be_drawn_are_marked"),
        ],
        "mark": [
            ("marks stretch the scale",
             ", transform=transform", "",
             f"{_PANELS}::test_values_that_cannot_be_drawn_are_marked"),
        ],
        "looks": [
            ("lines differ in colour alone",
             '"marker": MARKERS[i % 7]', '"marker": "o"',
             f"{_PANELS}::test_layers_differ_in_more_than_colour"),
        ],
        "whole_steps": [
            ("a single point is at the edge",
             "ax.set_xlim(steps[0] - 1, steps[0] + 1)", "pass",
             f"{_PANELS}::test_a_single_point_has_room"),
        ],
    },
    "plot/layer_panels.py": {
        "heat_map": [
            ("a spike among many steps is averaged away",
             "layer.gradient[part].max()", "layer.gradient[part].mean()",
             f"{_PANELS}::test_heat_map_of_many_steps_and_layers"),
            ("norms that are not finite are not marked",
             '(~np.isfinite(table), "x")', '(table < 0, "x")',
             f"{_PANELS}::test_heat_map_of_a_run_that_overflows"),
        ],
        "ratios": [
            ("the ratio is that of the weights and the update",
             "weight=weights, update=updates", "weight=updates, update=weights",
             f"{_PANELS}::test_ratios"),
        ],
    },
    "plot/step_panels.py": {
        "clipping": [
            ("an infinite threshold is drawn",
             "limited = np.isfinite(threshold)", "limited = threshold > 0",
             f"{_PANELS}::test_clipping"),
        ],
        "_clipped": [
            ("steps without clipping count",
             "fraction > 0", "fraction >= 0",
             f"{_PANELS}::test_clipping"),
        ],
        "clip_rate": [
            ("the rate is no percentage",
             "100 * fraction))", "fraction))",
             f"{_PANELS}::test_clip_rate"),
        ],
    },
    "plot/figures.py": {
        "_equal_scales": [
            ("panels of a row have several scales",
             "ax.set_ylim(limits.min(), limits.max())", "pass",
             f"{_FIGURES}::test_side_by_side"),
        ],
        "_equal_colours": [
            ("heat maps of a row have several scales",
             "ax.collections[0].set_clim(limits.min(), limits.max())", "pass",
             f"{_FIGURES}::test_side_by_side_in_one_scale_of_colours"),
        ],
    },
    "telemetry.py": {
        "metrics": [
            ("parameters are a state without rules",
             "if not result:\n        _check_is_state(opt_state)", "pass",
             f"{_FLOATS}::test_metrics_of_states_without_rules"),
        ],
        "_check_is_state": [
            ("a transformation is a state without rules",
             "isinstance(x, optax.GradientTransformation)", "x is None",
             f"{_FLOATS}::test_metrics_of_states_without_rules"),
            ("dicts of states are no state",
             "not named and not", "not",
             f"{_FLOATS}::test_metrics_of_states_without_rules"),
        ],
        "to_floats": [
            ("values are given to the wrong keys",
             "jax.device_get(list(metrics.values()))",
             "jax.device_get(dict(metrics)).values()",
             f"{_FLOATS}::test_to_floats"),
            ("inf is no JSON",
             'math.isfinite(number) or nonfinite == "keep"', "True",
             f"{_FLOATS}::test_to_floats"),
        ],
    },
}  # fmt: skip
