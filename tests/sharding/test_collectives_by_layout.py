"""What docs/devices.md says is sent: all-reduces under jit, and in shard_map."""

import re

import jax
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import jaxclip
from tests.support import collectives
from tests.support.devices import MARKS, mesh

pytestmark = MARKS


def _global():
    return jaxclip.clip_by_global_norm(1.0)


def _per_leaf():
    return jaxclip.clip_by_norm(1.0)


COUNTS = {  # for several leaves, of which every second one is sharded
    "norm per leaf": (_per_leaf, 1, 1),
    "guard around a global norm": (lambda: jaxclip.skip_nonfinite(_global()), 2, 2),
    "unchecked guard": (lambda: jaxclip.skip_nonfinite(_global(), check_step=False), 1, 1),
    "guard without a norm inside": (lambda: jaxclip.skip_nonfinite(optax.sgd(0.1)), 2, 1),
    "monitor, then global norm": (lambda: optax.chain(jaxclip.monitor(), _global()), 1, 1),
    "bound on elements, then global norm": (lambda: optax.chain(jaxclip.clip(1), _global()), 1, 1),
    "global norm, then monitor": (lambda: optax.chain(_global(), jaxclip.monitor()), 2, 2),
    "two global norms": (lambda: optax.chain(_global(), _global()), 2, 2),
    "global norm of another order": (lambda: jaxclip.clip_by_global_norm(1.0, ord=3), 1, 1),
    "norm per leaf, then global norm": (lambda: optax.chain(_per_leaf(), _global()), 2, 2),
    "two norms per leaf": (lambda: optax.chain(_per_leaf(), _per_leaf()), 2, 2),
}
OVER_TWO_AXES = {"global norm": (_global, 2, 1), "norm per leaf": (_per_leaf, 2, 1)}


def _programs(tx, tree, specs, over):
    """The compiled update, under jit and in shard_map."""

    def run(u):
        return tx.update(u, tx.init(u), u)

    put = {
        k: jax.device_put(x, jax.sharding.NamedSharding(over, specs[k])) for k, x in tree.items()
    }
    mapped = jax.shard_map(run, mesh=over, in_specs=(specs,), out_specs=(specs, P()))
    return [jax.jit(f).lower(put).compile().as_text() for f in (run, mapped)]


def _of_leaves(tx, count):
    tree = {f"{i:02d}": jnp.ones(3 if i % 2 else (8, 4)) for i in range(count)}
    specs = {key: P("data") if x.ndim == 2 else P() for key, x in tree.items()}
    return _programs(tx, tree, specs, mesh())


@pytest.mark.slow
def test_one_all_reduce_sends_one_number_per_leaf():
    """10 float32 numbers under jit, one in shard_map; a second one, of one, waits in a branch."""
    for text, numbers in zip(_of_leaves(_global(), 20), (10, 1), strict=True):
        assert collectives.of_text(text) == {"all-reduce": 1}
        sent = re.findall(r"= (\(?f32\[\].*?) all-reduce\(", text)
        assert sorted(shape.count("f32[]") for shape in sent) == [1, numbers]
        assert not any(f" {kind}(" in text for kind in collectives.KINDS if kind != "all-reduce")


@pytest.mark.slow
@pytest.mark.parametrize("name", COUNTS)
def test_counts(name):
    make, *counts = COUNTS[name]
    found = [collectives.of_text(text) for text in _of_leaves(make(), 6)]
    assert found == [{"all-reduce": number} for number in counts]


@pytest.mark.slow
@pytest.mark.parametrize("name", OVER_TWO_AXES)
def test_counts_over_two_axes(name):
    make, *counts = OVER_TWO_AXES[name]
    specs = {"a": P("data"), "b": P(None, "model"), "c": P("data", "model"), "d": P()}
    two = jax.make_mesh((4, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    texts = _programs(make(), {key: jnp.ones((8, 4)) for key in specs}, specs, two)
    found = [collectives.of_text(text) for text in texts]
    assert found == [{"all-reduce": number} for number in counts]


def test_replicated_gradients_send_nothing():
    tree = {"a": jnp.ones((8, 4)), "b": jnp.ones(3)}
    for text in _programs(_global(), tree, dict.fromkeys(tree, P()), mesh()):
        assert collectives.of_text(text) == {}
        assert "all-reduce" not in text
