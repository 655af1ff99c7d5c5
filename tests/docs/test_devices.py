"""The code of docs/devices.md trains as float64 NumPy does, one way like the other."""

import numpy as np
import pytest

import jaxclip
from tests.support.devices import (
    LIMIT,
    MARKS,
    PREAMBLE,
    WAYS,
    close,
    data,
    run,
    trained,
    trained_by_units,
)

pytestmark = MARKS
ROW, WHOLE = (1, 8), (8, 8)
# The shape of one device's part of the kernel, by heading; for pmap the number of devices leads.
HOLDS = {
    "One device": WHOLE,
    "`jit`, parameters replicated": WHOLE,
    "`jit`, parameters replicated, Explicit mesh": WHOLE,
    "`jit`, parameters sharded": ROW,
    "`jit`, parameters sharded, Explicit mesh": ROW,
    "`pmap`": WHOLE,
    "`vmap`": WHOLE,
    "`shard_map`": WHOLE,
    "`shard_map`, unchecked": WHOLE,
    "`shard_map`, FSDP by hand": ROW,
    "`shard_map`, FSDP by hand, unchecked": ROW,
    "`shard_map`, FSDP by hand, unchecked, some leaves replicated": ROW,
    "A guarded step": WHOLE,
    "Columns in pieces, and whole": ROW,
    "Gathered gradients": ROW,
}


def test_every_block_is_checked():
    assert list(WAYS) == list(HOLDS)


@pytest.mark.slow
@pytest.mark.parametrize("way", HOLDS)
def test_code_block_trains_as_numpy(way):
    names = run(PREAMBLE, WAYS[way])
    params = names["params"]
    if "Columns" in way:
        want, clipped, projected = trained_by_units(*data(names))
        assert 0 < clipped < 6 * 8
        assert 0 < projected < 6 * 8
        close(names["other"], want)
    else:
        want, norms = trained(*data(names))
        assert [norm > LIMIT for norm in norms] == [True] * 4 + [False] * 2
        record = jaxclip.metrics(names["opt_state"])
        last = np.unique(names.get("norm", record.get("clip_by_global_norm/norm")))
        np.testing.assert_allclose(last, norms[-1:], rtol=2e-5)
    close(params, want)
    held = {part.data.shape[-2:] for part in params["w"].addressable_shards}
    assert held == {HOLDS[way]}
    if way == "A guarded step":
        assert int(names["opt_state"].skipped_count) == 1
