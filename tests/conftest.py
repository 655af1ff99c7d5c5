"""Eight CPU devices, a strict JAX and what is slow, for every test below this folder.

`XLA_FLAGS` must be set before the first JAX backend starts, so it comes before the imports.
"""

import itertools
import os

_COUNT = "--xla_force_host_platform_device_count"
if _COUNT not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_COUNT}=8".strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import hypothesis  # noqa: E402
import jax  # noqa: E402
import pytest  # noqa: E402

from tests import modes  # noqa: E402

hypothesis.settings.register_profile(
    "jaxclip", deadline=None, max_examples=25, derandomize=True, database=None
)
hypothesis.settings.load_profile("jaxclip")

_IN_EVERY_CONTEXT = ("clip_by_global_norm",)
_LIKE_OTHERS = (  # which differ from another rule in the norm, the scope or the bounds alone
    "clip_by_average_norm",
    "clip_by_block_rms",
    "clip_by_norm",
    "clip_by_value",
)
_SLOW = (
    "test_16_bit_parameters_get_a_float32_update",
    "test_16_bit_weights_stay_within_an_epsilon",
    "test_600_random_bfloat16_leaves",
    "test_a_bound_that_16_bits_cannot_write",
    "test_a_deep_sigmoid_network_is_said_to_vanish",
    "test_a_large_norm_in_a_window",
    "test_a_large_norm_in_the_warm_up_of_adagc",
    "test_a_limit_of_zero_leaves_nothing",
    "test_a_loss_that_differs_between_devices",
    "test_a_network_inside_trains_as_without_projection",
    "test_a_norm_reads_each_leaf_once",
    "test_a_row_for_each_variant",
    "test_a_row_is_the_run_that_train_makes",
    "test_a_scan_a_sequence_and_chunks_are_one",
    "test_a_second_comparison_sets_the_first_aside",
    "test_a_state_of_an_older_version",
    "test_a_step_is_that_of_its_chain",
    "test_a_traced_negative_limit_counts_as_zero",
    "test_a_traced_restart_after_nothing",
    "test_a_way",
    "test_a_window_of_another_length",
    "test_above_the_threshold_in_float64",
    "test_adaptive_clipping_divides_by_its_floor_at_least",
    "test_an_epoch_is_its_steps_one_by_one",
    "test_an_infinite_step_is_not_followed",
    "test_another_seed_is_another_draw_and_another_order",
    "test_autoclip",
    "test_axes",
    "test_both_methods_agree",
    "test_cache_is_by_content",
    "test_carriers",
    "test_chain_is_in_order_with_a_monitor_at_both_ends",
    "test_complex_numbers_whose_magnitude_is_beyond_the_range",
    "test_counts",
    "test_dead_and_saturated_units_on_the_test_images",
    "test_default_folder_and_report_of_losses",
    "test_derivative_at_zero",
    "test_derivative_of_stable_adam_at_zero",
    "test_derivatives_at_zero",
    "test_derivatives_where_singular_values_coincide",
    "test_deterministic_for_a_seed",
    "test_drop_in_other_dtypes",
    "test_dtypes_are_kept",
    "test_explode_clips_its_second_step_to_15",
    "test_extremes",
    "test_figure_of_anything",
    "test_flax_serialization",
    "test_flax_units_are_what_feeds_one_output",
    "test_flax_units_in_an_nnx_optimizer",
    "test_float64_arrays",
    "test_float64_elements_beyond_float32",
    "test_forward_ends_at_the_published_losses",
    "test_forward_explodes_with_weights_of_standard_deviation_one",
    "test_functions_do_the_same",
    "test_gradients",
    "test_gradients_through_the_rules_are_finite",
    "test_hessian_has_its_closed_form",
    "test_hessian_is_the_difference_quotient",
    "test_idempotent_whatever_the_step",
    "test_inject_hyperparams",
    "test_inject_keeps_what_decides_the_program",
    "test_inside_is_left_alone",
    "test_interrupt_keeps_what_was_written",
    "test_keyword_arguments_of_optax",
    "test_lands_and_stays",
    "test_leaves_without_a_norm_pass_through",
    "test_limits",
    "test_linen",
    "test_lost_runs_are_results",
    "test_low_precision_with_batch_norm_and_projection",
    "test_many_small_leaves_whose_squares_leave_the_range",
    "test_many_steps_in_a_scan",
    "test_masks",
    "test_max_norm_binds_the_rows_of_both_hidden_kernels",
    "test_memories_are_full",
    "test_missing_extra_says_what_to_install",
    "test_mistake_from_the_shell",
    "test_mistakes_are_one_line",
    "test_monitor_of_params_leaves_them_where_they_are",
    "test_more_epochs_where_no_schedule_ends_with_the_run",
    "test_nan_and_zero_take_the_whole_update",
    "test_nan_that_is_looked_for",
    "test_networks_with_nothing_to_find",
    "test_no_leaf_is_frozen",
    "test_no_tensorflow_to_prepare_and_quiet",
    "test_no_tensorflow_to_read",
    "test_non_finite_loss_ends_the_run_with_code_one",
    "test_norms_of_weights_gradients_and_updates_of_each_step",
    "test_odd_leaves",
    "test_odd_updates_and_bounds",
    "test_off_in_evaluation",
    "test_one_program_for_a_group",
    "test_one_step_is_as_the_gradients",
    "test_optax_clipping_tests_pass_with_our_rules",
    "test_optax_schedule_under_scan",
    "test_optax_stateless_callers",
    "test_optimizers_step_downhill",
    "test_orbax_restores_every_bit_and_the_run_goes_on",
    "test_other_extra_arguments_are_let_by",
    "test_other_units_at_each_step",
    "test_outputs_and_no_activation_on_the_last",
    "test_pickle",
    "test_policies",
    "test_policies_agree_on_a_finite_update",
    "test_programs_are_the_presets",
    "test_projection_binds_the_kernels_named",
    "test_projections_are_the_library_s",
    "test_python_float_leaf",
    "test_reads_and_does_what_the_library_does",
    "test_real_files_come_out_as_they_are",
    "test_records_of_elements",
    "test_records_where_the_axis_must_be_named",
    "test_resumes_bit_for_bit",
    "test_row_01_norm_of_many_bfloat16_leaves",
    "test_rows_are_sums_of_the_records",
    "test_rules_that_learn",
    "test_run_time_never_raises",
    "test_same_numbers",
    "test_same_training",
    "test_scalar_array",
    "test_scan_loop_donation_pickle_and_one_trace",
    "test_schedule_counts_from_zero",
    "test_shards_of_one_leaf",
    "test_singular_values_land_on_the_limit",
    "test_skip_spikes",
    "test_skip_spikes_against_its_reference",
    "test_smoke",
    "test_smooth_shapes_at_the_ends_of_the_range",
    "test_telemetry_has_a_row_a_step",
    "test_test_scores_are_those_of_the_whole_test_set",
    "test_the_numbers_of_the_record_at_their_steps",
    "test_the_python_blocks_run_in_order",
    "test_the_same_run",
    "test_the_sets_hold_after_every_step",
    "test_too_many_in_a_row_end_the_run",
    "test_train_writes_everything_and_appends",
    "test_trees",
    "test_types",
    "test_types_never_change",
    "test_unit_shares",
    "test_unit_values",
    "test_units_on_devices_of_their_own",
    "test_variants_do_the_same",
    "test_variants_that_differ_are_found",
    "test_vmap",
    "test_weights_hide_what_biases_show",
    "test_weights_inside_come_back_bit_for_bit",
    "test_weights_stay_within_an_epsilon_whatever_is_added",
    "test_weights_that_are_not_finite_stay_as_they_are",
    "test_what_a_device_holds",
    "test_what_is_not_finite_is_counted",
    "test_where_the_axis_must_be_named",
    "test_whole_numbers_beyond_int32",
    "test_without_a_guard_the_run_ends_and_names_the_step",
    "test_wrappers_of_optax",
    "test_wrappers_with_bfloat16_parameters",
)
_SLOW_FILES = ("test_dropout.py", "test_projections_training.py", "test_translation.py")
_FILES = itertools.count(1)
_ODD_CONTEXTS = ("eager", "grad", "apply_if_finite", "chain", "named_chain", "equinox_model")
_NOT_STRICT = ("parity", "train")  # folders that run other people's code beside ours


def pytest_collection_modifyitems(items):
    """Marks what is slow, so that plain `pytest` stays well within five minutes on two cores."""
    for item in items:
        if _is_slow(item):
            item.add_marker(pytest.mark.slow)


def _is_slow(item):
    """Variants of a rule (other norms, other axes); in every context and dtype, all but a few."""
    values = item.callspec.params if hasattr(item, "callspec") else {}
    rule = values.get("rule")
    if getattr(item, "originalname", None) in _SLOW or not getattr(rule, "named", True):
        return True
    if getattr(rule, "name", None) in _LIKE_OTHERS or item.path.name in _SLOW_FILES:
        return True
    if item.path.name == "test_rules.py" and rule is not None:
        return rule.name not in _IN_EVERY_CONTEXT
    if item.path.name == "test_projections_contexts.py" and "projection" in values:
        context = getattr(values.get("context"), "__name__", "")
        return values["projection"].name != "max_norm" or context in _ODD_CONTEXTS
    return item.path.parent.name == "parity" and values.get("dtype", "bfloat16") != "bfloat16"


@pytest.fixture(autouse=True, scope="module")
def forgetful():
    """Lets go of compiled programs now and then: those of all files would fill gigabytes."""
    yield
    if next(_FILES) % 4 == 0:
        jax.clear_caches()


@pytest.fixture(autouse=True)
def strict_jax(request):
    """Strict promotion, unless the test says `relaxed` or lies in a folder of other libraries."""
    here = set(request.path.parent.parts[-2:])
    if request.node.get_closest_marker("relaxed") or here & set(_NOT_STRICT):
        yield
        return
    with modes.strict():
        yield


@pytest.fixture
def x64():
    with modes.x64():
        yield


@pytest.fixture
def relaxed():
    with modes.relaxed():
        yield
