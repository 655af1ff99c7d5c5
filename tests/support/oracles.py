"""The expected result of every rule: in plain float64 NumPy, sharing nothing with jaxclip.

Each function takes and returns plain lists of NumPy arrays (the leaves that are measured).
"""

import numpy as np

INF = float("inf")


def wide(x):
    """The array in float64 or complex128."""
    x = np.asarray(x)
    return x.astype(np.complex128 if x.dtype.kind == "c" else np.float64)


def norm(x, ord=2, axis=None):
    """The norm of `x` with `axis` reduced (all, if None) and kept as size 1."""
    a = np.abs(wide(x))
    axis = tuple(range(a.ndim)) if axis is None else axis
    count = np.prod([a.shape[i] for i in axis], dtype=np.int64)
    if count == 0:
        return np.zeros([1 if i in axis else size for i, size in enumerate(a.shape)])
    if ord == INF:
        return a.max(axis=axis, keepdims=True)
    power = 2 if ord in ("rms", "average") else ord
    total = (a**power).sum(axis=axis, keepdims=True) ** (1 / power)
    return total / {"rms": count**0.5, "average": count}.get(ord, 1)


def unit_axes(ndim, axis):
    """The axes of a leaf that are reduced; `None`: all but the last, or all of a vector."""
    if axis is None:
        return tuple(range(ndim if ndim <= 1 else ndim - 1))
    wanted = axis if isinstance(axis, tuple) else (axis,)
    there = {a % ndim for a in wanted if -ndim <= a < ndim}
    return tuple(sorted(there)) or tuple(range(ndim))


def by_tree(ord=2):
    """One norm for all leaves."""

    def norms(leaves):
        flat = np.concatenate([np.zeros(0), *(np.abs(wide(x)).ravel() for x in leaves)])
        return [norm(flat, ord).reshape(()) for _ in leaves]

    return norms


def by_group(number, ord=2):
    """One norm for every `number`th leaf together: labels in turns."""

    def norms(leaves):
        found = [by_tree(ord)(leaves[i::number])[:1] for i in range(number)]
        return [found[i % number][0] for i in range(len(leaves))]

    return norms


def by_leaf(ord=2):
    """One norm per leaf."""
    return lambda leaves: [norm(x, ord) for x in leaves]


def by_unit(axis, ord=2):
    """One norm per slice."""
    return lambda leaves: [norm(x, ord, unit_axes(np.ndim(x), axis)) for x in leaves]


def by_element(leaves):
    """Every element its own norm."""
    return [np.abs(wide(x)) for x in leaves]


def constant(c, params):
    """The same limit everywhere."""
    return [np.float64(c) for _ in params]


def relative(norms, eps=1e-3):
    """A limit that is a multiple of the norm of the parameters."""
    return lambda c, params: [c * np.maximum(n, eps) for n in norms(params)]


def factors(norms, limits):
    """min(1, c / n), where 0 / 0 is 1 unless c is 0."""
    over = [n > c for n, c in zip(norms, limits, strict=True)]
    safe = [np.where(o, n, 1.0) for o, n in zip(over, norms, strict=True)]
    return [np.where(o, c / n, 1.0) for o, n, c in zip(over, safe, limits, strict=True)]


def scaled(leaves, norms, limits):
    """g min(1, c / n), leaf by leaf."""
    return [wide(g) * f for g, f in zip(leaves, factors(norms, limits), strict=True)]


def set_to(norms):
    """g c / n; 0 stays 0."""

    def result(c, leaves, params):
        found = zip(leaves, norms(leaves), strict=True)
        return [wide(g) * np.where(n > 0, c / np.where(n > 0, n, 1.0), 1.0) for g, n in found]

    return result


def clippy(absolute):
    """u min(1, min (rel |w| + abs) / |u|) for each leaf."""

    def result(rel, leaves, params):
        found = []
        for u, w in zip(map(wide, leaves), map(wide, params), strict=True):
            size, most = np.abs(u), rel * np.abs(w) + absolute
            safe = np.where(size > 0, size, 1.0)
            found.append(u * min(1.0, np.where(size > 0, most / safe, 1.0).min(initial=1.0)))
        return found

    return result


def difference(f, x, h=1e-6):
    """The gradient of the scalar function `f` at the float64 vector `x`, by central differences."""
    steps = h * np.eye(x.size).reshape((x.size, *x.shape))
    return np.array([(f(x + s) - f(x - s)) / (2 * h) for s in steps]).reshape(x.shape)
