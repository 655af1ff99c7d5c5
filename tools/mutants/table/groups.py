"""Mutants of groups of leaves, of units, and of rules that set a norm."""

_GROUPS = "tests/contract/test_groups.py"
_MORE = "tests/contract/test_more_rules.py"

CHANGES = {
    "_core/units.py": {
        "_unit_axes": [
            ("axes that a leaf lacks are not ignored",
             "for a in own if -x.ndim <= a < x.ndim}", "for a in own}",
             "tests/numerics/test_norms.py::test_unit_values -k 'axis4'"),
            ("the default unit is an input channel",
             "return every[:-1] or every", "return every[1:] or every",
             "tests/numerics/test_norms.py::test_unit_values[None-2]"),
            ("negative axes are counted from the start",
             "a % x.ndim", "abs(a) % x.ndim",
             "tests/numerics/test_norms.py::test_unit_values[-1-2]"),
            ("axis=() reduces all axes",
             "if own == ():", "if False:",
             "tests/contract/test_functional.py::test_no_axis_makes_each_element_a_unit"),
        ],
    },
    "_core/labels.py": {
        "check": [
            ("groups are ignored at other scopes",
             'if groups is not None and scope != "group":', "if False:",
             f"{_GROUPS}::test_errors_at_construction"),
        ],
        "of_leaves": [
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
    "transforms/normalizing.py": {
        "normalize_by_norm": [
            ("small norms are not raised",
             'bound="set"', 'bound="hard"',
             f"{_MORE}::test_normalize_by_norm"),
        ],
    },
}  # fmt: skip
