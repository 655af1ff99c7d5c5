"""Mutants of groups of leaves, of units, and of rules that set a norm."""

_GROUPS = "tests/contract/test_groups.py"
_CARRY, _RESET = "tests/contract/test_carry.py", "tests/contract/test_resetting.py"
_STABLE = "tests/thresholds/test_stabilizing.py"
_RELATIVE = "tests/contract/test_clippy.py"
_MORE = "tests/contract/test_scaling_rules.py"

CHANGES = {
    "_core/units.py": {
        "_unit_axes": [
            ("axes that a leaf lacks are not ignored",
             "for a in own if -x.ndim <= a < x.ndim}", "for a in own}",
             "tests/numerics/test_norms.py::test_unit_values"),
            ("the default unit is an input channel",
             "return every[:-1] or every", "return every[1:] or every",
             "tests/numerics/test_norms.py::test_unit_values"),
            ("negative axes are counted from the start",
             "a % x.ndim", "abs(a) % x.ndim",
             "tests/numerics/test_norms.py::test_unit_values"),
            ("axis=() reduces all axes",
             "if own == ():", "if False:",
             "tests/contract/test_functional.py::test_no_axis_makes_each_element_a_unit"),
        ],
    },
    "_core/measure.py": {
        "Measure.per_leaf": [
            ("leaves have the factor of another label",
             "dict(zip(self.names(flat), values", "dict(zip(self.names(flat)[::-1], values",
             f"{_GROUPS}::test_record"),
        ],
        "Measure.of_tree": [
            ("means of groups are joined leaf by leaf",
             "self.per_leaf(flat, numbers)", "numbers",
             f"{_GROUPS}::test_means_of_groups_in_a_warmup"),
        ],
        "Measure.path": [
            ("errors do not name the group",
             'if self.scope == "group":', "if False:",
             f"{_GROUPS}::test_errors_of_shapes_name_the_group"),
        ],
    },
    "_core/state.py": {
        "ByLabel.scalars": [
            ("factors of groups are not in metrics",
             '("scale", self.scales)', "",
             f"{_GROUPS}::test_record"),
        ],
        "by_label": [
            ("a tree without labels has no state of fixed types",
             "map(without_leaves, found)", "found",
             f"{_GROUPS}::test_tree_map_params"),
        ],
    },
    "thresholds/fixed.py": {
        "given": [
            ("a tree of thresholds for groups is refused only when an update is traced",
             "if _validate.is_tree(one):", "if False:",
             f"{_GROUPS}::test_errors_at_construction"),
        ],
    },
    "transforms/clip_by.py": {
        "Rule.step": [
            ("the norms of groups are recorded after clipping",
             "self.measure.names(flat), numbers, scales)",
             "self.measure.names(flat), scales, scales)",
             f"{_GROUPS}::test_record"),
        ],
    },
    "plot/log.py": {
        "Log.monitors": [
            ("a rule with groups is a monitor",
             'if f"{name}/threshold" not in self.keys', "",
             "tests/plot/test_log.py::test_names_in_a_log"),
        ],
    },
    "_core/labels.py": {
        "check": [
            ("groups are ignored at other scopes",
             'if groups is not None and scope != "group":', "if False:",
             f"{_GROUPS}::test_errors_at_construction"),
        ],
        "of_leaves": [
            ("a placeholder needs labels",
             "if not flat.places:", "if False:",
             f"{_GROUPS}::test_tree_map_params"),
            ("a function of the tree is taken for a label",
             "groups(flat.tree) if asks else groups", "groups",
             f"{_GROUPS}::test_groups_inside_other_transformations"),
            ("labels of other types are accepted",
             "if not isinstance(label, (str, type(None))):", "if False:",
             f"{_GROUPS}::test_errors_of_labels"),
        ],
        "labeled": [
            ("leaves without a label are measured",
             "[label is not None for label in", "[True for label in",
             f"{_GROUPS}::test_record"),
        ],
        "members": [
            ("norm_mask is ignored at scope group",
             "[i for i in chosen if found[i] == label]",
             "[i for i in range(len(found)) if found[i] == label]",
             f"{_GROUPS}::test_masks_at_scope_group"),
        ],
        "values": [
            ("a label without a threshold is not named",
             "if missing:", "if False:",
             f"{_GROUPS}::test_errors_of_labels"),
            ("the thresholds of two labels are exchanged",
             "[tree[label] for label in names]", "[tree[label] for label in names][::-1]",
             f"{_GROUPS}::test_thresholds_by_label"),
        ],
    },
    "transforms/grouping.py": {
        "clip_by_group_norm": [
            ("clip_by_group_norm ignores norm_mask",
             "norm_mask=norm_mask,", "",
             f"{_GROUPS}::test_masks_at_scope_group"),
        ],
    },
    "functional/scaling.py": {
        "clip_by_group_norm": [
            ("known norms are measured again",
             "found = found or rule.norms(flat)", "found = rule.norms(flat)",
             "tests/contract/test_scaling_functions.py::test_known_norms_of_groups"),
            ("a label without a limit is clipped to 0",
             "jnp.inf if limit is None else limit", "0 if limit is None else limit",
             "tests/contract/test_scaling_functions.py::test_results_of_their_rules"),
        ],
    },
    "transforms/state_parts.py": {
        "": [
            ("adopt: the carried part counts as the optimizer's",
             'CarryState: ({"rule_state", "carried"}, {}),', "",
             "tests/interop/test_states_of_wrappers.py::test_adopt"),
            ("adopt: an optimizer that starts anew is a record",
             'ResetState: "restarted_state",', "",
             "tests/interop/test_states_of_wrappers.py::test_adopt"),
        ],
    },
    "transforms/carry.py": {
        "carry.update": [
            ("nothing is carried",
             "rule_state=rule_state, carried=_floating(flat, carried)", "rule_state=rule_state",
             f"{_CARRY}::test_published_numbers"),
            ("a state of other shapes is used",
             "check(state, updates)", "",
             f"{_CARRY}::test_odd_leaves_and_arguments"),
        ],
        "_rest": [
            ("a NaN is carried for ever",
             "jnp.where(jnp.isfinite(rest), rest, before)", "rest",
             f"{_CARRY}::test_numbers_that_are_not_finite"),
        ],
        "_within": [
            ("a sum beyond float16 is infinite",
             "jnp.clip(total, -most, most)", "total",
             f"{_CARRY}::test_narrow_dtypes"),
            ("an infinite gradient becomes finite",
             "jnp.where(jnp.isfinite(g), jnp.clip(total, -most, most), total)",
             "jnp.clip(total, -most, most)",
             f"{_CARRY}::test_numbers_that_are_not_finite"),
        ],
        "carry.first": [
            ("the carried part has the dtype of the parameters",
             "widened(jnp.zeros_like(x), accumulator(x))", "jnp.zeros_like(x)",
             f"{_CARRY}::test_narrow_dtypes"),
        ],
    },
    "transforms/resetting.py": {
        "reset_every.update": [
            ("the first update starts anew",
             "(since == 0) & (count > 0)", "since == 1",
             f"{_RESET}::test_sums_start_anew"),
            ("updates are not counted",
             "states.increased(count)", "count",
             f"{_RESET}::test_sums_start_anew"),
            ("the first steps of a run are shortened",
             "jnp.where(count >= period, since, warmup)", "since",
             f"{_RESET}::test_sums_start_anew"),
        ],
        "_shortened": [
            ("a step after a reset is 2 % of itself",
             "* (1 + jnp.cos(jnp.pi * part)) / 2", "* (0.98 + jnp.cos(jnp.pi * part)) / 2",
             f"{_RESET}::test_sums_start_anew"),
            ("the cosine goes on after the warm-up",
             "jnp.where(since < warmup, factor, 1)", "factor",
             f"{_RESET}::test_a_thousand_steps"),
        ],
    },
    "transforms/relative.py": {
        "_share": [
            ("parts beyond float32 are infinite",
             "jnp.where(is_large, times(size, down), size)", "size",
             f"{_RELATIVE}::test_parts_beyond_float32"),
            ("small parts underflow",
             "jnp.where(is_large, times(size, down), size)", "times(size, down)",
             f"{_RELATIVE}::test_small_elements"),
            ("an element that may not move is not held",
             "frozen & (size > 0)", "frozen & (size < 0)",
             f"{_RELATIVE}::test_weights_of_zero"),
            ("an element at rest freezes its leaf",
             "frozen & (size > 0)", "frozen",
             f"{_RELATIVE}::test_weights_of_zero"),
            ("the magnitude of a complex element is halved",
             "2 * unit", "unit",
             f"{_MORE}::test_trees_and_dtypes[clippy]"),
        ],
        "clippy.relative": [
            ("the unit of the parts is left out",
             "n.unit * jnp.asarray(unit, n.unit.dtype)", "n.unit",
             f"{_RELATIVE}::test_parts_beyond_float32"),
        ],
    },
    "thresholds/stabilizing.py": {
        "stabilized.following": [
            ("squares of norms overflow",
             "unit = power_of_two_near(jnp.maximum(memory.root_mean_square, n))",
             "unit = jnp.ones_like(n)",
             f"{_STABLE}::test_steady_norms_and_spikes"),
            ("the average of norms is not corrected",
             "jnp.where(known, after.mean_weight, 1)", "1",
             f"{_STABLE}::test_steady_norms_and_spikes"),
            ("the average of squares is not corrected",
             "jnp.sqrt(jnp.where(known, after.square_weight, 1))", "1",
             f"{_STABLE}::test_steady_norms_and_spikes"),
            ("norms that do not count are averaged as 0",
             "jnp.where(seen, x, y) for x, y in", "x for x, y in",
             f"{_STABLE}::test_norms_that_do_not_count"),
            ("eps is left out",
             "deviation + least", "deviation",
             "tests/thresholds/test_learned.py::test_more_in_float32[stabilizer]"),
            ("the averages have one smoothing",
             "jnp.sqrt(b2 * root * root + (1 - b2) * new * new) * unit",
             "jnp.sqrt(b1 * root * root + (1 - b1) * new * new) * unit",
             f"{_STABLE}::test_steady_norms_and_spikes"),
        ],
        "stabilized": [
            ("an average that never moves is accepted",
             "_validate.is_known_number(beta) and np.asarray(beta) == 1", "False",
             f"{_STABLE}::test_errors"),
        ],
    },
    "transforms/normalizing.py": {
        "stabilize_gradient": [
            ("norms below the threshold stay",
             'bound="set"', 'bound="hard"',
             f"{_STABLE}::test_steady_norms_and_spikes"),
        ],
        "normalize_by_norm": [
            ("small norms are not raised",
             'bound="set"', 'bound="hard"',
             f"{_MORE}::test_normalize_by_norm"),
        ],
    },
}  # fmt: skip
