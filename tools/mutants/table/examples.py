"""Mutants of gradients of single examples, and of the noise scale."""

_RULES = "tests/contract/test_per_example.py"
_EXACT = "tests/contract/test_examples_exact.py"
_NOISE = "tests/contract/test_noise_scale.py"
_MESH = "tests/sharding/test_per_example.py"

CHANGES = {
    "_core/examples.py": {
        "Examples.reduced": [
            ("an example that is not finite spoils the sum",
             "jnp.where(good, x, jnp.zeros_like(x)) for x in wide", "x for x in wide",
             f"{_RULES}::test_examples"),
            ("sums are in the dtype of the gradients",
             "widened(x, accumulator(x)) for x in out.arrays", "x for x in out.arrays",
             f"{_EXACT}::test_long_sums_and_bad_memories"),
            ("padding reaches the rule",
             "jnp.where(row, x, jnp.zeros_like(x))", "x",
             f"{_RULES}::test_examples"),
            ("examples that are not finite are not in B",
             "for x in (row, row & ~good)", "for x in (good, row & ~good)",
             f"{_RULES}::test_examples"),
            ("a batch of padding is 0/0",
             "jnp.maximum(examples, 1)", "examples",
             f"{_RULES}::test_examples"),
            ("gradients are not compared with parameters",
             "if jax.tree.leaves(params):", "if False:",
             f"{_RULES}::test_errors"),
        ],
        "Examples._axes": [
            ("axes that shard parameters split examples",
             "if name not in sharded", "",
             f"{_MESH}::test_of_leaves_in_parts"),
        ],
        "_over_rows": [
            ("rows that fill the last micro-batch count",
             "& (jnp.arange(number * k) < size)", "",
             f"{_RULES}::test_examples"),
            ("norms are in the order of micro-batches",
             "x.swapaxes(0, 1).reshape", "x.reshape",
             f"{_RULES}::test_functions_of_one_example"),
        ],
        "_still": [
            ("an integer leaf keeps its axis of examples",
             "if axis is not None and", "if False and",
             f"{_RULES}::test_any_transformation"),
        ],
    },
    "_numerics/collectives.py": {
        "check_varying": [
            ("gradients that are sums over devices are clipped",
             "if not may_vary(x, name):", "if False:",
             f"{_MESH}::test_traced"),
        ],
        "apart": [
            ("norms of examples are summed over devices",
             "(*_APART.get(), *axes)", "_APART.get()",
             f"{_MESH}::test_of_each_device"),
        ],
        "maxima": [
            ("devices have records of their own",
             "jax.tree.map(largest, tree) if axes else tree", "tree",
             f"{_MESH}::test_of_each_device"),
        ],
    },
    "transforms/per_example.py": {
        "per_example.init": [
            ("windows of norms are averaged",
             "if any(map(_is_ring,", "if False and any(map(_is_ring,",
             f"{_RULES}::test_errors"),
        ],
        "_part": [
            ("memories of examples left out are averaged",
             'good if way == "mean" else row', "row",
             f"{_EXACT}::test_long_sums_and_bad_memories"),
            ("padding has a part in the record",
             "jnp.where(row, signed,", "jnp.where(True, signed,",
             f"{_RULES}::test_padding_is_not_recorded"),
            ("the smallest factor is the largest",
             '-new if way == "smallest"', 'new if way == "smallest"',
             f"{_RULES}::test_examples"),
        ],
        "_joined": [
            ("the record of a batch of padding is the least float",
             "jnp.where(number > 0, new.astype(old.dtype), old)", "new.astype(old.dtype)",
             f"{_RULES}::test_examples"),
        ],
        "_base": [
            ("numbers that are the same for all examples change by rounding",
             "jnp.where(jnp.isfinite(old), old, jnp.zeros_like(old))", "jnp.zeros_like(old)",
             f"{_RULES}::test_state"),
        ],
        "_ways": [
            ("norms in records are averaged",
             "[ways[field]] * len(own) if field in ways else own", "own",
             f"{_RULES}::test_examples"),
        ],
    },
    "functional/per_example.py": {
        "clip_per_example": [
            ("the norms are not returned",
             "Parts(kept=norm)", "Parts(kept=0 * norm)",
             f"{_RULES}::test_functions_of_one_example"),
        ],
    },
    "transforms/state_parts.py": {
        "": [
            ("the rule inside per_example is not in metrics",
             'PerExampleState: "rule_state",', "",
             f"{_RULES}::test_examples"),
            ("adopt: the optimizer inside hyperball is taken for its record",
             'HyperballState: "directed_state",', "",
             "tests/interop/test_adopt.py -k 'hyperball'"),
        ],
    },
    "transforms/noise.py": {
        "noise_scale.update": [
            ("the ratio is that of the last step",
             "keep * state.mean_noise * down + (1 - keep) * noise", "noise",
             f"{_NOISE}::test_averages_are_divided"),
            ("the trace is divided by 1/B alone",
             "(1 / b - 1 / big)", "(1 / big)",
             f"{_NOISE}::test_averages_are_divided"),
            ("squares overflow",
             "by = jnp.where(unit > 0, unit, 1)", "by = jnp.ones_like(unit)",
             f"{_NOISE}::test_edges"),
            ("averages keep an older unit",
             "down = jnp.square(state.unit / by)", "down = 1",
             f"{_NOISE}::test_edges"),
            ("a NaN is averaged",
             "jnp.where(finite, narrowed(_validate.number(decay), jnp.float32), 1)",
             "narrowed(_validate.number(decay), jnp.float32)",
             f"{_NOISE}::test_edges"),
            ("another number of micro-batches is accepted",
             "number != big // b", "False",
             f"{_NOISE}::test_errors"),
            ("a batch without a gradient in its noise has a negative scale",
             "ratio = jnp.where(signal > 0, ratio, unlimited(jnp.float32))", "",
             f"{_NOISE}::test_edges"),
        ],
    },
}  # fmt: skip
