"""Mutants of results under `jax.debug_infs` and `jax.debug_nans`."""

TESTS = "tests/contract/test_debug_flags.py"
BEYOND = f"{TESTS}::test_a_norm_beyond_the_largest_float32_is_recorded_as_that"

CHANGES = {
    "_numerics/scaled_float.py": {
        "unlimited": [
            ("no limit is inf under debug_infs",
             "if config.jax_debug_infs else", "if False else",
             f"{TESTS}::test_without_jit_everywhere[clip_by_norm_None]"),
            ("no limit is the largest float",
             "if config.jax_debug_infs else", "if True else",
             f"{TESTS}::test_a_flag_leaves_no_trace"),
        ],
        "Norm.number": [
            ("a norm beyond the range is inf under debug_infs",
             "if most < math.inf:", "if False:", f"{BEYOND}[float32]"),
            ("an infinite norm is hidden under debug_infs",
             "value = jnp.where(jnp.isfinite(value), within, value)", "value = within",
             f"{TESTS}::test_a_bad_gradient_is_reported[infs-True]"),
        ],
        "Norm.times": [
            ("an infinite multiple is computed before it is replaced",
             "jnp.where(known, factor, 1)", "factor",
             f"{TESTS}::test_without_jit_everywhere[adaptive_grad_clip_None]"),
        ],
        "narrowed": [
            ("a norm beyond float32 is recorded as inf under debug_infs",
             "jnp.clip(x, -most, most)", "x", f"{BEYOND}[float64]"),
        ],
        "hypot": [
            ("the standard deviation of equal norms is NaN",
             "jnp.where(most == 0, jnp.ones_like(most), most)", "most",
             "tests/thresholds/test_constant_gradients.py"),
        ],
    },
    "_validate.py": {
        "number": [
            ("an argument of inf stays inf under debug_infs",
             "if config.jax_debug_infs and", "if False and",
             f"{TESTS}::test_an_infinite_limit_of_any_kind"),
        ],
    },
    "_core/record.py": {
        "of_elements": [
            ("the recorded scale of a gradient of 0 is divided by 0",
             "jnp.where(over, half, 1)", "half", f"{TESTS}::test_without_jit_at_all[clip_None]"),
        ],
    },
    "thresholds/quantiles.py": {
        "_largest": [
            ("empty places of a window are inf",
             "float(jnp.finfo(x.dtype).max)", "float(jnp.inf)",
             f"{TESTS}::test_without_jit_at_all[autoclip_leaf]"),
        ],
    },
    "thresholds/window.py": {
        "Spread.limit": [
            ("infinitely many deviations are computed before they are replaced",
             "jnp.where(known, k, 0) * std", "k * std",
             f'"{TESTS}::test_without_jit_everywhere[mean_plus_sigma_inf]"'),
        ],
    },
    "thresholds/moving_average.py": {
        "_ZScore.following": [
            ("a z-score is divided by 0",
             "float(info.tiny) * jnp.maximum(jnp.abs(off), 1)", "0",
             f'"{TESTS}::test_without_jit_everywhere[zscore_max]"'),
            ("an infinite z-score is multiplied by a deviation of 0",
             "bound = jnp.where(is_known, bound, 1)", "",
             f'"{TESTS}::test_without_jit_everywhere[zscore_inf]"'),
        ],
    },
    "thresholds/ratio.py": {
        "_together": [
            ("an infinite warmup_norm is multiplied by 0",
             "jnp.where(over, most, 1) *", "most *",
             f'"{TESTS}::test_without_jit_everywhere[ema_ratio_inf]"'),
        ],
    },
    "transforms/clip_by.py": {
        "Rule.step": [
            ("nonfinite='nan' makes a NaN that it does not use",
             "jnp.where(finite, x, _VALUES[self.nonfinite])",
             "jnp.where(finite, x, jnp.full_like(x, _VALUES[self.nonfinite]))",
             f'"{TESTS}::test_without_jit_everywhere[nan]"'),
        ],
    },
}  # fmt: skip
