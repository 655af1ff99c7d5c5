"""Mutants of the findings of a diagnosis."""

CHANGES = {
    "diagnosis/course.py": {
        "Course.bound": [
            ("a bound does not depend on the first update",
             "(USUAL / ratio if ratio > USUAL else 1.0)", "1.0",
             "tests/diagnosis/test_course.py::test_a_bound_for_updates_of_a_thousandth_of_the_weights"),
        ],
        "ends": [
            ("a single spike is growth",
             "median(finite[len(finite) - size :])", "median(finite[-1:])",
             "tests/diagnosis/test_monitor_log.py::test_growth_over_time"),
        ],
        "counts": [
            ("a projection is a rule that clips",
             'and not name.rpartition("/")[2].startswith("project_")', "",
             "tests/diagnosis/test_course.py::test_rules_that_are_not_judged"),
            ("a monitor is a rule",
             'and series(f"{name}/nonfinite_count").size == series(f"{name}/scale").size', "",
             "tests/diagnosis/test_course.py::test_growth_in_spite_of_a_monitor"),
        ],
    },
    "diagnosis/findings.py": {
        "": [
            ("an explosion is a growth of 10,000",
             "GROWTH = 1000.0", "GROWTH = 10000.0",
             "tests/diagnosis/test_monitor_log.py::test_growth_over_time"),
        ],
        "first_nonfinite": [
            ("the non-finite layer nearest the input is named",
             "max(placed)[1] if placed", "min(placed)[1] if placed",
             "tests/diagnosis/test_findings.py::test_nan_is_located_and_left_out_of_the_factor"),
        ],
        "say_nonfinite": [
            ("growth until an overflow is a bad batch",
             "if _grew(before):", "if False:",
             "tests/diagnosis/test_course.py::test_growth_until_it_overflows_needs_a_bound"),
            ("a guard that is there is recommended",
             'cure = f"{guards}." if guards else', "cure =",
             "tests/diagnosis/test_course.py::test_quiet_then_nan_with_a_guard"),
            ("one step is enough to exclude growth",
             "if row == 1:", "if False:",
             "tests/diagnosis/test_course.py::test_nan_in_the_first_and_in_the_second_step"),
        ],
        "_bounded": [
            ("a rule that is there is recommended",
             "if not course.rules:", "if True:",
             "tests/diagnosis/test_course.py::test_growth_in_spite_of_a_rule"),
        ],
        "_where": [
            ("a sentence gives the place of a NaN without an order",
             "if not places or len(places) < len(hit):", "if False:",
             "tests/diagnosis/test_places.py::test_nan_without_an_order"),
        ],
        "say_zero": [
            ("a layer without a gradient is not reported",
             "if rest and", "if False and",
             "tests/diagnosis/test_findings.py::test_limits_over_depth"),
        ],
        "say_time": [
            ("a gradient of 0 in the first time steps is sound",
             ' or time.zeros:', ":",
             "tests/diagnosis/test_through_time.py::test_cells -k 'nnx and how2'"),
        ],
        "say_units": [
            ("ReLU layers are called saturated",
             "u.bounded and u.saturated > SATURATED", "u.saturated > SATURATED",
             "tests/diagnosis/test_activations.py::test_units_are_findings"),
        ],
    },
    "diagnosis/habits.py": {
        "": [
            ("three in ten clipped steps are many",
             "OFTEN = 0.5", "OFTEN = 0.3",
             "tests/diagnosis/test_course.py::test_share_of_clipped_steps"),
            ("an update of 0.029 of the weights is far from usual",
             "FAR = 30.0", "FAR = 25.0",
             "tests/diagnosis/test_course.py::test_updates_far_from_a_thousandth"),
        ],
        "say_loss": [
            ("a loss at chance is sound",
             "last > AT_CHANCE * course.chance", "last > 2 * course.chance",
             "tests/diagnosis/test_course.py::test_loss"),
            ("a loss far above a guess is only not yet better",
             "last > HIGH * course.chance", "last > 1e9 * course.chance",
             "tests/diagnosis/test_course.py::test_loss"),
        ],
        "say_updates": [
            ("a threshold is not the cause of short updates",
             "if list(say_clipped(course))", "if not list(say_clipped(course))",
             "tests/diagnosis/test_course.py::test_updates_far_from_a_thousandth"),
        ],
        "_ratios": [
            ("skipped steps make the updates small",
             "moved if moved.size else layer.ratio", "layer.ratio",
             "tests/diagnosis/test_course.py::test_updates_beside_other_findings"),
        ],
        "say_unclipped": [
            ("a rule without a threshold never clips",
             " and np.isfinite(rule.thresholds[-1])", "",
             "tests/diagnosis/test_course.py::test_rules_that_are_not_judged"),
        ],
        "sound": [
            ("level weights are sound although the biases vanish",
             "{norms.over_depth, biases.over_depth}", "{norms.over_depth}",
             "tests/diagnosis/test_networks.py::test_scaled_weights -k 'exploding-linen-mlp'"),
        ],
        "say_unknown": [
            ("who has no order is not told how to get one",
             "and order is None:", "and False:",
             "tests/diagnosis/test_places.py::test_numbers"),
            ("no sentence says that time was not judged",
             "if order.recurrent and time is None:", "if False:",
             "tests/diagnosis/test_through_time.py::test_cells -k 'nnx and how0'"),
        ],
    },
    "diagnosis/report.py": {
        "conclude": [
            ("the number of a step is that of its row",
             "(int(course.steps[broken[0]]), broken[1])", "broken",
             "tests/diagnosis/test_monitor_log.py::test_first_nonfinite_step_and_layer"),
            ("skipped steps are in two sentences",
             "*([] if broken else habits.say_skipped(course))", "*habits.say_skipped(course)",
             "tests/diagnosis/test_course.py::test_quiet_then_nan_with_a_guard"),
        ],
        "_unit_table": [
            ("the table shows the saturation of ReLU",
             "u.saturated if u.bounded else None", "u.saturated",
             "tests/diagnosis/test_activations.py::test_units_are_findings"),
        ],
    },
}  # fmt: skip
