"""Attention layers of every kind, with their logits and `qk_clip` in float64 NumPy."""

import jax.numpy as jnp
import numpy as np

from tests.support import oracles as o

KERNEL = {"kernel": (6, 3, 4), "bias": (3, 4)}
SHAPES = {
    "multi": {"query": KERNEL, "key": KERNEL, "value": KERNEL},
    "grouped": {"query": {"kernel": (6, 4, 2)}, "key": {"kernel": (6, 2, 2)}},
    "latent": {
        "q_nope": (6, 3, 4), "k_nope": (5, 3, 4), "q_rope": (6, 3, 2), "k_rope": (6, 2),
        "v": (5, 3, 4),
    },
    "stack": {k: {"kernel": (2, 6, 3, 4), "bias": (2, 3, 4)} for k in ("query", "key")},
    "dense": {"kernel": (6, 6)},
}  # fmt: skip
NAMES = ("multi", "grouped", "latent", "stack")
EXPONENTS = {  # of the query's share alpha
    "query": lambda alpha: alpha, "q_nope": lambda alpha: alpha,
    "key": lambda alpha: 1 - alpha, "k_nope": lambda alpha: 1 - alpha,
    "q_rope": lambda alpha: 1.0,
}  # fmt: skip
RANDOM = np.random.default_rng(0)
X, LATENT = RANDOM.normal(size=(7, 6)), 0.3 * RANDOM.normal(size=(7, 5))


def roles():
    """A tree of roles, a prefix of the parameters."""
    flax = {"query": "q", "key": "k"}
    latent = {k: k if k in EXPONENTS else None for k in SHAPES["latent"]}
    return {
        "multi": {**flax, "value": None}, "grouped": flax, "latent": latent, "stack": flax,
        "dense": None,
    }  # fmt: skip


def _heads(x, part):
    """Queries or keys of every head, (..., tokens, heads, size)."""
    parts = part if isinstance(part, dict) else {"kernel": part}
    found = np.einsum("tf,...fhd->...thd", x, o.wide(parts["kernel"]))
    return found + o.wide(parts["bias"])[..., None, :, :] if "bias" in parts else found


def _products(q, k):
    k = np.repeat(k, q.shape[-2] // k.shape[-2], axis=-2)
    return np.einsum("...qhd,...khd->...hqk", q, k) / q.shape[-1] ** 0.5


def largest_logits(params):
    """S of every head of every layer."""
    found = {}
    for name in NAMES:
        layer = params[name]
        if name != "latent":
            logits = _products(_heads(X, layer["query"]), _heads(X, layer["key"]))
        else:
            q, k = _heads(X, layer["q_nope"]), _heads(LATENT, layer["k_nope"])
            rope = np.einsum("qhd,kd->hqk", _heads(X, layer["q_rope"]), X @ o.wide(layer["k_rope"]))
            logits = (np.einsum("qhd,khd->hqk", q, k) + rope) / 6**0.5
        found[name] = logits.max((-2, -1))
    return found


def clipped(params, logits, tau, alpha):
    """The parameters after `qk_clip`, in float64."""

    def scaled(w, gamma, share, is_bias):
        each = (gamma**share)[..., None] if is_bias else (gamma**share)[..., None, :, None]
        return o.wide(w) * each

    new = {}
    for name, layer in params.items():
        new[name] = dict(layer)
        gamma = np.minimum(1, tau / np.maximum(logits.get(name, np.ones(1)), tau))
        for key in layer if name in NAMES else ():
            share = EXPONENTS[key](alpha) if key in EXPONENTS else None
            if name == "grouped":
                share = 1.0 if key == "query" else None
            if share is None:
                continue
            part = layer[key]
            new[name][key] = (
                {k: scaled(w, gamma, share, k == "bias") for k, w in part.items()}
                if isinstance(part, dict)
                else scaled(part, gamma, share, False)
            )
    return new


def build(dtype, scale=1.0, seed=0):
    """Parameters, or an update, of all layers."""
    random = np.random.default_rng(seed)

    def leaf(shape):
        return jnp.asarray(random.normal(size=shape) * scale, dtype)

    def tree(shapes):
        return {k: tree(s) if isinstance(s, dict) else leaf(s) for k, s in shapes.items()}

    return tree(SHAPES)
