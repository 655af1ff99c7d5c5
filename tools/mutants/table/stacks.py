"""Mutants of stacks of layers, in every module."""

CHANGES = {
    "_core/stacks.py": {
        "axes": [
            (
                "an axis that a leaf lacks is accepted from a function",
                "if axis is None and chosen is not None:",
                "if False:",
                "tests/contract/test_stacked.py::test_a_function_that_names_no_axis",
            ),
        ],
        "_axis": [
            (
                "negative axes are counted from the start",
                "axis % rank",
                "abs(axis) % rank",
                "tests/contract/test_stacked.py::test_norms_in_numpy",
            ),
            (
                "an int that a leaf lacks is an axis",
                "-rank <= axis < rank",
                "rank",
                "tests/contract/test_stacked.py::test_an_int_is_for_all_leaves_that_have_the_axis",
            ),
        ],
        "names": [
            (
                "the index follows the first key, also if an unstacked leaf begins with it",
                "if axis is None for k",
                "if False for k",
                "tests/diagnosis/test_stacked.py::test_names -k 'others'",
            ),
            (
                "the index comes first, also if all begin with one key",
                "shared.add(())",
                "pass",
                "tests/diagnosis/test_stacked.py::test_names[alone]",
            ),
            (
                "the index may come last",
                "own = [k for k in range(len(keys))",
                "own = [k for k in range(len(keys) + 1)",
                "tests/diagnosis/test_stacked.py::test_names -k 'last'",
            ),
        ],
        "by_slice": [
            (
                "a key `*` of the user stands for an index",
                "or not value.ndim",
                "",
                "tests/diagnosis/test_stacked.py::test_names -k 'star'",
            ),
        ],
        "_unstacked": [
            (
                "slices are taken along the first axis",
                "np.moveaxis(x, -1, 0)",
                "x",
                "tests/diagnosis/test_stacked.py::test_several_states_at_once",
            ),
            (
                "metrics of stacks fail on meshes of Explicit axes",
                "collectives.gathered(x)",
                "x",
                "tests/sharding/test_stacked.py::test_jit_on_a_mesh",
            ),
        ],
    },
    "_core/measure.py": {
        "Measure._mesh": [
            (
                "leaves beside a stack may not be replicated over its axis_name",
                "if self.stacked is not None and names is not None:",
                "if False:",
                "tests/sharding/test_stacked.py::test_leaves_that_are_replicated_over_axis_name",
            ),
        ],
        "measure": [
            (
                "stacked is ignored at other scopes",
                'if stacked is not None and scope not in ("leaf", "unit"):',
                "if False:",
                "tests/contract/test_stacked.py::test_scopes_without_leaves",
            ),
        ],
    },
    "_core/units.py": {
        "reduced": [
            (
                "a stack has one norm at the scope of leaves",
                'if scope == "leaf" and stack is None:',
                'if scope == "leaf":',
                "tests/contract/test_stacked.py::test_norms_in_numpy",
            ),
            (
                "units of a stack cross its layers",
                "if a != stack)",
                "if True)",
                "tests/contract/test_stacked.py::test_norms_in_numpy",
            ),
            (
                "a function of axes sees the whole stack",
                "if stack is not None:",
                "if False:",
                "tests/contract/test_stacked.py::test_functions_of_a_leaf_see_its_name_and_a_slice",
            ),
        ],
        "per_slice": [
            (
                "a vector of thresholds does not fit a stack",
                "jnp.reshape(value, shape) if fits else value",
                "value",
                "tests/contract/test_stacked.py::test_a_threshold_for_each_layer",
            ),
        ],
    },
    "transforms/clipping.py": {
        "clip_by_block_rms": [
            (
                "clip_by_block_rms ignores stacked",
                "stacked=stacked,",
                "",
                "tests/contract/test_stacked.py::test_functions",
            ),
        ],
        "clip_by_average_norm": [
            (
                "clip_by_average_norm ignores stacked",
                "stacked=stacked,",
                "",
                "tests/contract/test_stacked.py::test_functions",
            ),
        ],
    },
    "transforms/windows.py": {
        "autoclip": [
            (
                "autoclip ignores stacked",
                "stacked=stacked,",
                "",
                "tests/contract/test_stacked.py::test_a_stack_is_clipped_as_its_layers -k 'auto'",
            ),
        ],
        "clip_by_history": [
            (
                "clip_by_history ignores stacked",
                "stacked=stacked,",
                "",
                "tests/contract/test_stacked.py::test_a_stack_is_clipped_as_its_layers -k 'hist'",
            ),
        ],
    },
    "transforms/averages.py": {
        "zclip": [
            (
                "zclip ignores stacked",
                "stacked=stacked,",
                "",
                "tests/contract/test_stacked.py::test_a_stack_is_clipped_as_its_layers -k 'zclip'",
            ),
        ],
        "adagc": [
            (
                "adagc ignores stacked",
                "stacked=stacked,",
                "",
                "tests/contract/test_stacked.py::test_a_stack_is_clipped_as_its_layers -k 'adagc'",
            ),
        ],
    },
    "transforms/stable_adam.py": {
        "scale_by_stable_adam": [
            (
                "stable Adam ignores stacked",
                "axis_name=axis_name, stacked=stacked)",
                "axis_name=axis_name)",
                "tests/contract/test_stacked.py::test_a_stack_is_clipped_as_its_layers -k 'stable'",
            ),
        ],
    },
    "diagnosis/diagnose.py": {
        "_ranks": [
            (
                "a slice has the rank of its stack",
                "x.ndim - 1",
                "x.ndim",
                "tests/diagnosis/test_stacked.py::test_ranks_are_those_of_slices",
            ),
        ],
    },
}
