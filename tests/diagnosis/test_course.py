"""The sentences of `of_metrics` about a run: its end, rules, guards, loss and updates."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxclip
from jaxclip import diagnosis

STEPS = 20
ONES = np.ones(STEPS)


def log(norms, **more):
    """Three layers with these norms, as of two layers of half the square each and one of none."""
    norms = np.asarray(norms, float)
    table = {f"grads/norm/layers/{i}/kernel": norms for i in range(3)}
    return table | {key.replace("__", "/"): np.asarray(v) for key, v in more.items()}


def rule(clipped, norms=ONES, threshold=2.0, name="clip_by_global_norm"):
    count = np.arange(1, len(norms) + 1)
    return {f"{name}/{key}": np.asarray(value) for key, value in {
        "norm": norms, "threshold": threshold * np.ones(len(norms)), "scale": np.ones(len(norms)),
        "count": count, "clipped_count": np.linspace(0, clipped, len(norms)).round().astype(int),
        "nonfinite_count": 0 * count,
    }.items()}  # fmt: skip


def guard(skipped, steps=STEPS, name="skip_nonfinite"):
    return {f"{name}/count": np.arange(1, steps + 1), f"{name}/nonfinite_count": np.zeros(steps),
            f"{name}/skipped_count": np.linspace(0, skipped, steps).round()}  # fmt: skip


def heads(found):
    return [sentence.partition(":")[0] for sentence in found.findings]


GROWN = np.append(10.0 * 4.0 ** np.arange(10), [np.nan] * 10)
QUIET = np.where(np.arange(STEPS) == 12, np.nan, ONES)


# ---- how gradients stop being finite


def test_growth_until_it_overflows_needs_a_bound():
    found = diagnosis.of_metrics(log(GROWN))
    assert found.finding == "exploding"
    said = found.findings[0]
    assert "grew from 17 at step 0 to 4.5e+06 at step 9, and is NaN or inf at step 10" in said
    assert "jaxclip.clip_by_global_norm(20)" in said  # the first norm is 10 sqrt(3)
    assert "skip_nonfinite" not in str(found)
    assert "cannot mend" not in str(found)
    assert found.nonfinite == (10, "layers/2")
    assert heads(found).count("exploding") == 1


def test_a_bound_for_updates_of_a_thousandth_of_the_weights():
    more = {f"{m}/norm/layers/{i}/kernel": n for i in range(3)
            for m, n in (("weights", 10 * ONES), ("updates", GROWN / 10))}  # fmt: skip
    found = diagnosis.of_metrics(log(GROWN, **more), "grads", "weights", "updates")
    assert "jaxclip.clip_by_global_norm(0.2)" in found.findings[0]  # 17 for 0.1 of the weights


def test_growth_in_spite_of_a_rule():
    found = diagnosis.of_metrics(log(GROWN) | rule(9))
    said = found.findings[0]
    assert "clip_by_global_norm clipped 9 of 20 steps, which was not enough" in said
    assert "jaxclip." not in str(found)
    quiet = {"clip/count": np.arange(1, STEPS + 1)}
    assert "clip is there, which was not enough" in diagnosis.of_metrics(
        log(GROWN) | quiet
    ).findings[0]  # fmt: skip


def test_growth_in_spite_of_a_monitor():
    """A monitor bounds nothing, whatever its leaves are called."""
    count = np.arange(1, STEPS + 1)
    monitors = {
        "m/norm": GROWN,
        "m/count": count,
        "m/nonfinite_count": count,
        "m/norm/count": GROWN,
    }
    assert (
        "jaxclip.clip_by_global_norm(20)" in diagnosis.of_metrics(log(GROWN) | monitors).findings[0]
    )


def test_quiet_then_nan_is_a_bad_batch():
    found = diagnosis.of_metrics(log(QUIET, grads__count=np.arange(101, 121)))
    assert found.finding == "non-finite"
    assert found.nonfinite == (112, "layers/2")
    said = found.findings[0]
    assert "at step 112, the gradient of every layer is NaN or inf" in said
    assert "its norm was 1.7 at most and did not grow until it overflowed" in said
    assert "jaxclip.skip_nonfinite leaves such a step out" in said
    assert "exploding" not in heads(found)


def test_quiet_then_nan_with_a_guard():
    found = diagnosis.of_metrics(log(QUIET) | guard(1))
    assert "skip_nonfinite skipped 1 of 20 steps." in found.findings[0]
    assert "jaxclip.skip_nonfinite" not in str(found)
    assert heads(found).count("skipped") == 0  # once is enough


def test_growth_with_a_guard():
    said = diagnosis.of_metrics(log(GROWN) | guard(10)).findings[0]
    assert "jaxclip.clip_by_global_norm(20)" in said
    assert said.endswith(
        " skip_nonfinite skipped 10 of 20 steps, too late: the weights had changed before."
    )


def test_nan_in_the_first_and_in_the_second_step():
    first = diagnosis.of_metrics(log([np.nan, np.nan])).findings[0]
    assert "at step 0, the gradient of every layer is NaN or inf: it began in the loss" in first
    second = diagnosis.of_metrics(log([1.0, np.nan])).findings[0]
    assert "one recorded step before it, this may be an explosion or a bad batch" in second
    assert "Clipping cannot" in first
    assert "Clipping cannot" not in second


# ---- rules and guards


@pytest.mark.parametrize("clipped", [0, 1, 10, 11, 20])
def test_share_of_clipped_steps(clipped):
    found = diagnosis.of_metrics(log(ONES) | rule(clipped, np.linspace(1, 9, STEPS)))
    clips = {0: "unclipped", 11: "clipped", 20: "clipped"}.get(clipped)
    assert heads(found) == (
        ["clipped", "sound"] if clips == "clipped" else ["healthy", *[clips] * bool(clips)]
    )
    if clips == "clipped":
        percent = f"{clipped} of 20 steps ({5 * clipped} %); the largest norm that it"
        assert percent in found.findings[0]
    if clips == "unclipped":
        by_value = rule(0, np.linspace(1, 9, STEPS), name="a/clip_by_value")
        assert "largest element that it" in diagnosis.of_metrics(log(ONES) | by_value).findings[1]
        assert (
            "clipped none of 20 steps; the largest norm that it recorded is 9" in found.findings[1]
        )


def test_rules_that_are_not_judged():
    """Few steps, no threshold, projections, monitors, and a rule without a record."""
    few = log(ONES[:9]) | rule(9, ONES[:9])
    assert heads(diagnosis.of_metrics(few)) == ["healthy"]
    none = log(ONES) | rule(0, threshold=np.inf)
    assert heads(diagnosis.of_metrics(none)) == ["healthy"]
    others = rule(20, name="project_max_norm") | {"clip/count": np.arange(STEPS)}
    others |= {"m/norm": ONES, "m/count": np.arange(STEPS), "m/nonfinite_count": 0 * ONES}
    assert heads(diagnosis.of_metrics(log(ONES) | others)) == ["healthy"]


def test_skipped_steps():
    found = diagnosis.of_metrics(log(ONES) | guard(3))
    assert found.findings[0] == "skipped: skip_nonfinite skipped 3 of 20 steps."
    assert heads(diagnosis.of_metrics(log(ONES) | guard(0))) == ["healthy"]


@pytest.mark.slow
def test_metrics_of_a_real_chain():
    """Rules and guards are those in the metrics; the guard's steps are the run's."""
    chain = optax.chain(jaxclip.clip_by_global_norm(1.0), optax.sgd(1e-3))
    tx = optax.chain(jaxclip.monitor(name="grads"), jaxclip.skip_nonfinite(chain))
    params = {f"Dense_{i}": {"kernel": jnp.ones((2, 2))} for i in range(3)}

    def step(state, scale):
        grads = jax.tree.map(lambda x: x * scale, params)
        _, state = tx.update(grads, state, params)
        return state, jaxclip.metrics(state)

    scales = jnp.full(STEPS, 5.0).at[15].set(jnp.nan)
    metrics = jax.lax.scan(step, tx.init(params), scales)[1]
    found = diagnosis.of_metrics({k: v[5:] for k, v in metrics.items()})
    assert heads(found) == ["non-finite", "clipped", "sound"]
    assert found.nonfinite == (15, "Dense_2")
    assert "skip_nonfinite skipped 1 of 20 steps" in found.findings[0]
    assert "clip_by_global_norm clipped 19 of 19 steps (100 %)" in found.findings[1]


# ---- loss and updates


@pytest.mark.parametrize(
    ("losses", "chance", "head", "text"),
    [
        (np.full(STEPS, 2.3), math.log(10), "loss", "does not fall: median 2.3 in the first 5"),
        (np.linspace(9, 2.3, STEPS), math.log(10), "loss",
         "no better than the 2.303 of a constant guess; it falls: median 8.295 in the first 5 "
         "recorded steps, 3.005 in the last 5."),
        (np.linspace(90, 24, STEPS), math.log(10), "loss", "far above the 2.303 of a constant"),
        (np.linspace(9, 2.3, STEPS), None, "healthy", "the loss falls: median 8.295 in"),
        (np.linspace(2.3, 0.1, STEPS), math.log(10), "healthy", "the loss falls: median 2.068 in"),
        (np.linspace(0.1, 0.2, STEPS), None, "loss", "does not fall: median 0.1105 in"),
        (np.append(ONES[1:], np.nan), 0.1, "healthy", "layers"),
    ],
)  # fmt: skip
def test_loss(losses, chance, head, text):
    found = diagnosis.of_metrics(log(ONES), loss=losses, chance=chance)
    assert found.finding == head
    assert text in found.findings[0]
    short = diagnosis.of_metrics(log(ONES[:9]), loss=losses[:9], chance=chance)
    assert short.finding == "healthy"


def test_two_records_of_many_steps_are_enough_for_the_loss():
    two = log(ONES[:2]) | {"grads/count": np.array([1, 101])}
    assert diagnosis.of_metrics(two, loss=[2.3, 2.3], chance=2.3).finding == "loss"
    assert diagnosis.of_metrics(two, loss=[2.3, 0.3], chance=2.3).finding == "healthy"


@pytest.mark.parametrize(
    ("ratio", "head", "text"),
    [(1e-3, "healthy", "update/weight is 0.001 to 0.001"), (0.029, "healthy", "0.029"),
     (0.031, "updates", "0.031 in layers/2, 0.031 in layers/1, 0.031 in layers/0, far "
      "above"), (3.4e-5, "healthy", "3.4e-05"), (3.2e-5, "updates", "far below the usual"),
     (0.0, "updates", "update/weight is 0 in"), (8.0, "updates", "too high")],
)  # fmt: skip
def test_updates_far_from_a_thousandth(ratio, head, text):
    more = {f"{m}/norm/layers/{i}/kernel": n * ONES for i in range(3)
            for m, n in (("weights", 5.0), ("updates", 5 * ratio))}  # fmt: skip
    found = diagnosis.of_metrics(log(ONES, **more), "grads", "weights", "updates")
    assert found.finding == head
    assert text in found.findings[0]
    assert ("far" in found.findings[0]) == (head == "updates")
    clipped = diagnosis.of_metrics(log(ONES, **more) | rule(20), "grads", "weights", "updates")
    said = " ".join(clipped.findings)
    assert ("the threshold or the learning rate" in said) == (head == "updates")


def test_updates_beside_other_findings():
    """Skipped steps do not count; if gradients vanish, the learning rate is not the cause."""
    skipped = np.where(np.arange(STEPS) % 4, 0.0, 5e-3)
    more = {f"{m}/norm/layers/{i}/kernel": n for i in range(3)
            for m, n in (("weights", 5 * ONES), ("updates", skipped))}  # fmt: skip
    monitors = ("grads", "weights", "updates")
    assert diagnosis.of_metrics(log(ONES, **more), *monitors).finding == "healthy"
    more |= {f"grads/norm/layers/{i}/kernel": 20.0**i * ONES for i in range(3)}
    more |= {f"updates/norm/layers/{i}/kernel": 1e-9 * ONES for i in range(3)}
    found = diagnosis.of_metrics(log(ONES) | more, *monitors)
    assert heads(found)[:2] == ["vanishing", "updates"]
    assert "learning rate" not in str(found)


def test_errors():
    with pytest.raises(ValueError, match=r"loss of shape \(3,\) must have shape \(steps,\)"):
        diagnosis.of_metrics(log(ONES), loss=np.ones(3))
    with pytest.raises(TypeError, match="chance='x'"):
        diagnosis.of_metrics(log(ONES), chance="x")
    with pytest.raises(TypeError, match="loss is traced"):
        jax.jit(lambda x: diagnosis.of_metrics(log(ONES), loss=x).growth)(ONES)
    order = diagnosis.LayerOrder({"a/kernel": 1}, frozenset())
    with pytest.raises(ValueError, match=r"order=.* has none of the layers \['layers/0', 'layer"):
        diagnosis.of_metrics(log(ONES), order=order)
