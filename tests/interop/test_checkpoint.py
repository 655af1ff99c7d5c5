"""States on disk: each comes back the same to the bit, or is refused in plain words."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxclip
from tests.support import disk, learned, moves, registry

checkpoint = pytest.importorskip("orbax.checkpoint")

pytestmark = [pytest.mark.relaxed, pytest.mark.filterwarnings("ignore")]  # Orbax's own

OLDER = Path(__file__).parents[1] / "data" / "states"
VERSIONS = sorted(path.name.removesuffix("-cut.msgpack") for path in OLDER.glob("*-cut.msgpack"))


@pytest.mark.slow
def test_orbax_round_trip_is_bit_exact(tmp_path):
    rules = [make() for make in learned.RULES.values()]
    chain = optax.chain(*rules, jaxclip.scale_by_stable_adam(), optax.scale(-0.1))
    tx = jaxclip.skip_spikes(jaxclip.skip_nonfinite(chain), window=6, min_history=2)
    params = {"a": jnp.ones((3, 2)), "b": jnp.ones(2)}
    state = moves.filled(tx, params)
    with checkpoint.StandardCheckpointer() as store:
        store.save(tmp_path / "state", state)
        store.wait_until_finished()
        restored = store.restore(tmp_path / "state", jax.eval_shape(tx.init, params))
    registry.assert_same_bits(restored, state)
    assert jaxclip.metrics(restored).keys() == jaxclip.metrics(state).keys()


@pytest.mark.slow
def test_resume_in_a_new_process_is_bit_exact(tmp_path):
    """Everything that remembers, guards around, spikes and NaN before and after the cut."""
    disk.main("whole", tmp_path)
    root = str(Path(__file__).parents[2])
    command = [sys.executable, "-m", "tests.support.disk", "rest", str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": root}
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr.decode()
    want, cut, got = (np.load(tmp_path / f"{part}.npz") for part in ("whole", "first", "rest"))
    assert sorted(got) == sorted(want)
    for key in want:
        assert got[key].tobytes() == want[key].tobytes(), key
    skipped = "[1].skipped_count"
    assert 0 < cut[skipped] < want[skipped]


@pytest.mark.slow
@pytest.mark.parametrize("version", VERSIONS)
def test_state_of_an_older_version(version):
    """It can be read, and the run goes on to the same result as then."""
    tx, like = disk.transformation(), disk.params()

    def read(part):
        stored = flax.serialization.msgpack_restore(
            (OLDER / f"{version}-{part}.msgpack").read_bytes()
        )
        weights = flax.serialization.from_state_dict(like, stored["0"])
        return weights, jaxclip.adopt(tx, like, stored["1"])

    (weights, cut), want = read("cut"), read("end")
    end = disk.run(jax.tree.map(jnp.asarray, weights), cut, range(disk.CUT, disk.STEPS))
    ends = zip(jax.tree_util.tree_leaves_with_path(end), jax.tree.leaves(want), strict=True)
    for (path, leaf), then in ends:
        key = jax.tree_util.keystr(path)
        np.testing.assert_allclose(leaf, then, rtol=1e-4, atol=1e-6, err_msg=key)


def test_pickled_state_of_0_1_0():
    """Its classes stood in other modules: three updates of guard, monitor and learned rules."""
    state = pickle.loads((OLDER / "0.1.0.pickle").read_bytes())
    rules = [
        jaxclip.autoclip(window=3),
        jaxclip.zclip(warmup_steps=2),
        jaxclip.adagc(warmup_steps=1),
    ]
    chain = optax.chain(
        jaxclip.monitor(name="grads"), jaxclip.clip_by_global_norm(1.0), *rules, optax.adam(1e-3)
    )
    tx = jaxclip.skip_spikes(chain, window=3, min_history=2)
    params = {"w": jnp.ones(2)}
    _, after = jax.jit(tx.update)({"w": jnp.full(2, 2.0)}, jax.tree.map(jnp.asarray, state), params)
    metrics = jaxclip.metrics(after)
    assert int(metrics["skip_spikes/count"]) == int(metrics["grads/count"]) == 4
    assert jax.tree.structure(after) == jax.tree.structure(tx.init(params))


def test_stored_states_include_0_1_0():
    assert "0.1.0" in VERSIONS


# ---- refusals


U = {"a": jnp.ones((3, 2)), "b": jnp.ones(2)}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "where"),
    [
        (lambda n: jaxclip.autoclip(window=n), r"memory\[0\].ordered"),
        (lambda n: jaxclip.autoclip(window=n, scope="leaf"), r"memory\[0\].ordered"),
        (lambda n: jaxclip.clip_by_history(window=n, min_history=2), r"memory\[0\].observations"),
        (
            lambda n: jaxclip.skip_spikes(optax.identity(), window=n, min_history=2),
            r"memory.norms.observations",
        ),
    ],
)
def test_state_with_another_window_is_refused(make, where):
    """A ring of 6 would work as one of 6, or of no certain length, in a rule that says 8."""
    state = make(6).init(U)
    with pytest.raises(ValueError, match=rf"state of \w+ has shape \(6,\) at state\.{where}, .*8"):
        jax.eval_shape(make(8).update, U, state)
    jax.eval_shape(make(8).update, U, make(8).init(U))


def test_state_for_other_params_is_refused():
    tx = jaxclip.adagc()
    state = tx.init(U | {"c": jnp.ones(3)})
    with pytest.raises(
        ValueError, match=r"adagc has shape \(\) at state\.memory\[2\].mean, but this rule"
    ):
        tx.update(U, state)
    with pytest.raises(
        ValueError, match=r"adagc has nothing at state\.memory\[1\].mean, but this rule"
    ):
        tx.update(U, tx.init({"a": U["a"]}))


def test_state_without_record_is_refused():
    with pytest.raises(ValueError, match=r"clip has nothing at state\.norm"):
        jaxclip.clip(1.0, record=True).update(U, jaxclip.clip(1.0).init(U))


OTHERS = {
    "clip_by_norm": jaxclip.clip_by_norm(1.0),
    "skip_nonfinite": jaxclip.skip_nonfinite(optax.identity()),
    "monitor": jaxclip.monitor(),
    "scale_by_stable_adam": jaxclip.scale_by_stable_adam(),
    "project_max_norm": jaxclip.project_max_norm(1.0),
    "clip": jaxclip.clip(1.0),
}


@pytest.mark.parametrize("name", OTHERS)
def test_state_of_another_rule_is_refused(name):
    """It would go on to tell the other rule's name."""
    others = [jaxclip.clip_by_global_norm(1.0).init(U), optax.adam(0.1).init(U), 3]
    for state in others:
        with pytest.raises(TypeError, match=f"but {name} needs its own .*; make one with init"):
            OTHERS[name].update(U, state, U)


def test_pickled_state_with_other_fields_is_refused():
    """As an older version might have written it."""
    rebuild, (base, rule, fields) = jaxclip.clip_by_norm(1.0).init(U).__reduce__()

    class Older:
        def __reduce__(self):
            return rebuild, (base, rule, fields[:-1])

    with pytest.raises(ValueError, match=r"state of clip_by_norm has 7 fields, .* has 8: norm, "):
        pickle.loads(pickle.dumps(Older()))
