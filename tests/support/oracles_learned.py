"""Learned thresholds and guards as formulas, one after another, in float64 and Python lists.

A rule's object is called once per update with one group's norm, and the norm of all groups' finite
norms together; it returns `(factor, limit)`: the factor of the group, exactly 1.0 where nothing may
change, and the recorded threshold. A limit of NaN is not compared.
"""

import math

import numpy as np

INF = math.inf


def is_observed(n):
    return math.isfinite(n) and n > 0


def hard(n, c):
    """min(1, c / n), or 1 for a norm that is not finite."""
    return c / n if math.isfinite(n) and n > c else 1.0


class Grown:
    """A reference whose largest norm allowed, `allowed`, grows by at most a factor.

    `added`: the number that the rule adds to the norm in the quotient.
    """

    def __init__(self, oracle, max_growth, added=0.0):
        self.oracle, self.max_growth, self.added, self.last = oracle, max_growth, added, None

    def __call__(self, n, total=None):
        factor, limit = self.oracle(n, total)
        if self.last is None and not is_observed(n):
            return factor, limit
        most = self.max_growth * (n if self.last is None else self.last)
        if is_observed(n):
            self.last = min(self.oracle.allowed, most)
            if n > most:
                factor = min(factor, most / (n + self.added))
                most = most / (1 + self.added / n)
        return factor, most if limit > most else limit


class Quantile:
    def __init__(self, q, window, factor=1.0):
        self.q, self.window, self.factor, self.seen = q, window, factor, []

    def __call__(self, n, total=None):
        if is_observed(n):
            self.seen = [*self.seen, n][-self.window :]
        c = self.factor * np.percentile(self.seen, 100 * self.q) if self.seen else INF
        self.allowed = c
        return hard(n, c), c


class TrackedQuantile:
    def __init__(self, q=0.5, eta=0.2, initial=INF, max_growth=INF):
        self.q, self.eta, self.c = q, min(eta, math.log(max_growth) / q), initial

    def __call__(self, n, total=None):
        if is_observed(n) and self.c == INF:
            self.c = n
        c = self.c
        if is_observed(n):
            self.c = c * math.exp(-self.eta * ((n <= c) - self.q))
        return hard(n, c), c


def largest_usual(seen, sigma, min_spread, ddof=0):
    """The largest number that is no spike beside those seen."""
    mean = np.mean(seen)
    return mean + max(sigma * np.std(seen, ddof=ddof), min_spread * abs(mean))


class MeanPlusSigma:
    def __init__(self, sigma, window, min_history, min_spread=1e-3):
        self.sigma, self.window, self.min_history = sigma, window, min_history
        self.min_spread, self.seen = min_spread, []

    def __call__(self, n, total=None):
        ready = len(self.seen) >= self.min_history
        c = self.allowed = largest_usual(self.seen, self.sigma, self.min_spread) if ready else INF
        if is_observed(n):
            self.seen = [*self.seen, n][-self.window :]
        return hard(n, c), c


class ZScore:
    def __init__(self, z_threshold=2.5, alpha=0.97, eps=1e-6, warmup_steps=25, max_norm=1.0,
                 clip_factor=1.0, mode="reciprocal", skip_update_on_spike=False,
                 restart_after=200, min_spread=1e-3, added=1e-6):  # fmt: skip
        self.min_spread = min_spread
        self.z_threshold, self.alpha, self.eps, self.mode = z_threshold, alpha, eps, mode
        self.warmup_steps, self.clip_factor = warmup_steps, clip_factor
        self.max_norm = INF if max_norm is None else max_norm
        self.skip, self.restart_after = skip_update_on_spike, restart_after or INF
        self.added = added  # to the norm in the quotient, by the rule and not by its threshold
        self.begin()

    def begin(self):
        self.buffer, self.mu, self.var, self.spikes = [], None, None, 0

    def highest_kept(self):
        """The norm up to which nothing would be clipped."""
        if self.mu is None:
            return self.max_norm
        if self.clip_factor > 1:
            return math.nan
        largest = self.mu + self.z_threshold * (self.var**0.5 + self.eps)
        return min(max(largest, self.mu * (1 + self.min_spread)), self.max_norm)

    def __call__(self, n, total=None):
        limit = self.allowed = self.highest_kept()
        if not is_observed(n):
            return 1.0, limit
        e = self.warm_up(n) if self.mu is None else self.bound(n)
        if n > e:
            return e / (n + self.added), e / (1 + self.added / n)
        return 1.0, limit

    def warm_up(self, n):
        self.buffer.append(n)
        if len(self.buffer) == self.warmup_steps:
            self.mu, self.var = np.mean(self.buffer), np.var(self.buffer)
        return self.max_norm

    def bound(self, n):
        sigma = self.var**0.5
        z = (n - self.mu) / (sigma + self.eps)
        spike = z > self.z_threshold and n > self.mu * (1 + self.min_spread)
        x = n
        if spike and self.mode == "reciprocal":
            x = self.clip_factor * (self.mu + self.z_threshold * sigma / (z / self.z_threshold))
        if spike and self.mode == "max":
            x = self.clip_factor * (self.mu + self.z_threshold * sigma)
        if spike and self.mode == "mean":
            x = self.mu
        if not (spike and self.skip):
            self.mu = self.alpha * self.mu + (1 - self.alpha) * x
            self.var = self.alpha * self.var + (1 - self.alpha) * (x - self.mu) ** 2
        self.spikes = self.spikes + 1 if spike else 0
        if self.spikes >= self.restart_after:
            self.begin()
        return min(x, self.max_norm)


class EmaRatio:
    def __init__(self, max_ratio=1.05, beta=0.98, warmup_steps=100, warmup_norm=1.0, floor=1e-8):
        self.max_ratio, self.beta, self.floor = max_ratio, beta, floor
        self.warmup_steps, self.warmup_norm = warmup_steps, warmup_norm
        self.t, self.gamma = 0, None

    def __call__(self, n, total):
        warm = self.t < self.warmup_steps or self.gamma is None
        self.t += 1
        after = math.nan if warm else self.max_ratio * self.gamma
        self.allowed = INF if warm else after
        if not is_observed(n):
            return 1.0, after
        h = min(self.warmup_norm / total if warm else after / n, 1.0)
        if self.gamma is None:
            self.gamma = h * n
        elif warm:
            self.gamma = min(self.gamma, h * n)
        else:
            self.gamma = self.beta * self.gamma + (1 - self.beta) * h * n
        self.gamma = max(self.gamma, self.floor)
        return h, after


class Growth:
    """At most a multiple of the last norm that was left."""

    def __init__(self, most, floor=1e-8):
        self.most, self.floor, self.last = most, floor, None

    def __call__(self, n, total=None):
        limit = math.nan if self.last is None else self.most * self.last
        if not is_observed(n):
            return 1.0, limit
        left = n if self.last is None else min(n, limit)
        self.last = max(left, self.floor)
        return (left / n if left < n else 1.0), limit


class Aggc:
    """A band around the moving average of the norms that were left."""

    def __init__(self, high, low=None, beta=0.98):
        self.high, self.low, self.beta, self.t, self.mean = high, low, beta, -1, None

    def __call__(self, n, total=None):
        self.t += 1
        high = self.high(self.t) if callable(self.high) else self.high
        if self.mean is None:
            if is_observed(n):
                self.mean = n
            return 1.0, math.nan
        most = high * self.mean
        if not is_observed(n):
            return 1.0, most
        left = min(n, most)
        if self.low is not None:
            left = max(left, self.low * self.mean)
        self.mean = self.beta * self.mean + (1 - self.beta) * left
        return (1.0 if left == n else left / n), (most if self.low is None else left)


class Stabilizer:
    """The norm that a norm becomes: Adam's step for the sequence of norms."""

    def __init__(self, beta1=0.7, beta2=0.9, eps=1e-8):
        self.beta1, self.beta2, self.eps = beta1, beta2, eps
        self.m, self.v, self.t = 0.0, 0.0, 0

    def __call__(self, n, total=None):
        if is_observed(n):
            self.t += 1
            self.m = self.beta1 * self.m + (1 - self.beta1) * n
            self.v = self.beta2 * self.v + (1 - self.beta2) * n * n
        if self.t == 0:
            return 1.0, INF
        m, v = self.m / (1 - self.beta1**self.t), self.v / (1 - self.beta2**self.t)
        c = m / (math.sqrt(v) + self.eps)
        return (c / n if is_observed(n) else 1.0), c


class SkipSpikes:
    """Says of each update whether it is skipped; `limits` are the thresholds it had."""

    def __init__(self, sigma=6.0, window=128, min_history=64, max_consecutive=None,
                 min_spread=1e-3):  # fmt: skip
        self.sigma, self.window, self.min_history = sigma, window, min_history
        self.min_spread = min_spread
        self.patience = INF if max_consecutive is None else max_consecutive
        self.rings, self.limits, self.bad_in_a_row = {}, {"norm": [], "value": []}, 0

    def is_bad(self, name, x):
        """And remembers it."""
        ring = self.rings.get(name, [])
        ready = len(ring) >= self.min_history
        limit = largest_usual(ring, self.sigma, self.min_spread, ddof=1) if ready else INF
        self.limits[name].append(limit)
        if not math.isfinite(x):
            return True
        self.rings[name] = [*ring, x][-self.window :]
        return x > limit

    def __call__(self, norm, value=None):
        bad = self.is_bad("norm", norm)
        if value is not None:
            bad = self.is_bad("value", value) or bad
        self.bad_in_a_row = self.bad_in_a_row + 1 if bad else 0
        return bad and self.bad_in_a_row <= self.patience


class StableAdam:
    """One leaf; answers the update and the root mean square that may not exceed the threshold."""

    def __init__(self, b1=0.9, b2=0.999, eps=1e-8, eps_root=0.0, nesterov=False, threshold=1.0):
        self.b1, self.b2, self.eps, self.eps_root = b1, b2, eps, eps_root
        self.nesterov, self.threshold = nesterov, threshold
        self.t, self.mu, self.nu = 0, 0.0, 0.0

    def __call__(self, g):
        g = np.asarray(g, np.complex128 if np.iscomplexobj(g) else np.float64)
        square = g.real**2 + g.imag**2
        self.t += 1
        self.mu = self.b1 * self.mu + (1 - self.b1) * g
        self.nu = self.b2 * self.nu + (1 - self.b2) * square
        m = self.mu / (1 - self.b1**self.t)
        v = self.nu / (1 - self.b2**self.t)
        if self.nesterov:  # Dozat's, as in optax
            m = self.b1 * self.mu / (1 - self.b1 ** (self.t + 1))
            m = m + (1 - self.b1) * g / (1 - self.b1**self.t)
        rms = np.sqrt(np.mean(square / np.maximum(v, self.eps**2)))
        adam = m / (np.sqrt(v + self.eps_root) + self.eps)
        return adam / max(1.0, rms / self.threshold), rms
