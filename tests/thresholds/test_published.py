"""Learned rules and guards against figures that the published code gave.

`data/published_learned.json` holds norms, the results of AutoClip's, ZClip's and OLMo-core's code
for them, and the version of that code. The code itself is not here.
"""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxclip

FIGURES = json.loads(
    (pathlib.Path(__file__).parents[1] / "data" / "published_learned.json").read_text()
)
MODES = {
    ("percentile", None): "max",
    ("zscore", "adaptive_scaling"): "reciprocal",
    ("zscore", "mean"): "mean",
}
NAMES = {"alpha": "alpha", "z_thresh": "z_threshold", "max_grad_norm": "max_norm",
         "warmup_steps": "warmup_steps", "clip_factor": "clip_factor",
         "skip_update_on_spike": "skip_update_on_spike"}  # fmt: skip


def _run(rules, norms, extra=None):
    """The norms after each rule, and its records, over updates with these norms."""
    like = jnp.zeros(2)
    extra = {} if extra is None else {k: jnp.asarray(v, jnp.float32) for k, v in extra.items()}

    def body(states, step):
        n, more = step
        u = n * jnp.array([0.0, 1.0])
        both = {k: tx.update(u, states[k], like, **more) for k, tx in rules.items()}
        states = {k: s for k, (_, s) in both.items()}
        log = {k: (out[1], jaxclip.metrics(s)) for k, (out, s) in both.items()}
        return states, log

    states = {k: tx.init(like) for k, tx in rules.items()}
    steps = (jnp.asarray(norms, jnp.float32), extra)
    return jax.device_get(jax.jit(lambda s, x: jax.lax.scan(body, s, x)[1])(states, steps))


@pytest.mark.slow
def test_autoclip():
    norms, cases = np.array(FIGURES["norms"]), FIGURES["autoclip"]["cases"]
    log = _run(
        {c["percentile"]: jaxclip.autoclip(c["percentile"], window=512) for c in cases}, norms
    )
    for case in cases:
        after, record = log[case["percentile"]]
        limit = np.array(case["clip_value"])
        np.testing.assert_allclose(record["autoclip/threshold"], limit, rtol=3e-6)
        np.testing.assert_allclose(after, np.minimum(norms, limit), rtol=3e-6)


def _ours(settings):
    mode = MODES[settings["mode"], settings.get("clip_option")]
    given = {NAMES[k]: v for k, v in settings.items() if k in NAMES}
    return jaxclip.zclip(mode=mode, restart_after=None, min_spread=0.0, **given)


@pytest.mark.slow
def test_zclip():
    """Without a restart, which is ours. In all of its modes; one NaN would end theirs."""
    norms, cases = np.array(FIGURES["norms"]), FIGURES["zclip"]["cases"]
    log = _run({i: _ours(case["settings"]) for i, case in enumerate(cases)}, norms)
    for i, case in enumerate(cases):
        after, record = log[i]
        factor = np.array(case["factor"])
        np.testing.assert_allclose(after, norms * factor, rtol=2e-5, err_msg=case["settings"])
        np.testing.assert_array_equal(after[factor == 1], np.float32(norms)[factor == 1])
        np.testing.assert_allclose(
            record["zclip/threshold"][factor < 1], (norms * factor)[factor < 1], rtol=2e-5
        )


@pytest.mark.slow
def test_skip_spikes():
    figures = FIGURES["skip_spikes"]
    rules = {
        i: jaxclip.skip_spikes(
            optax.identity(),
            sigma=float(case["sigma"]),
            window=case["window"],
            min_history=case["min_history"],
            min_spread=0.0,
        )
        for i, case in enumerate(figures["cases"])
    }
    log = _run(rules, figures["norms"], {"value": figures["losses"]})
    for i, case in enumerate(figures["cases"]):
        after, record = log[i]
        np.testing.assert_array_equal(
            np.flatnonzero(record["skip_spikes/skipped"]), case["skipped"]
        )
        np.testing.assert_array_equal(np.flatnonzero(after == 0), case["skipped"])
