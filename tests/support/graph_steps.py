"""Further steps of random functions: state that is returned, collectives under vmap.

A step takes params and an activation `(batch, tokens, features)`. A step with state
writes its new value over the old one; the function returns all that was written.
"""

import jax
import jax.numpy as jnp
from jax import lax

AROUND = [(i, (i + 1) % 3) for i in range(3)]  # the batch has three members


def mean_of(h):
    return h.mean((0, 1))


def statistics(m, n):
    """Batch normalization: by the batch, or by what is left of earlier ones."""
    mean, var, scale = m.state(n), m.state(n), m.param(n)
    by_batch, momentum = m.choose(True, False), m.choose(0.9, 0.7)

    def step(p, h):
        new = mean_of(h), jnp.var(h, (0, 1))
        for name, value in zip((mean, var), new, strict=True):
            p[name] = momentum * p[name] + (1 - momentum) * value
        centre, spread = new if by_batch else (p[mean], p[var])
        normal = (h - centre[None, None]) * lax.rsqrt(spread**2 + 0.3)[None, None]
        return normal * p[scale][None, None]

    return step


def averaged(m, n):
    """The mean of all batches so far, counted by an integer."""
    mean, count = m.state(n), m.counter()

    def step(p, h):
        p[count] = p[count] + 1
        share = 1 / p[count].astype(h.dtype)
        p[mean] = p[mean] + share * (mean_of(h) - p[mean])
        return h - p[mean][None, None]

    return step


def moments(m, n):
    """Second moments of an activation, which mix its features."""
    gram = m.state(n, n)

    def step(p, h):
        rows = h.reshape(-1, h.shape[-1])
        p[gram] = 0.8 * p[gram] + 0.2 * rows.T @ rows / rows.shape[0]
        return h + 0.1 * jnp.tanh(h @ p[gram])

    return step


def cached(m, n):
    """The last activation, and the greatest entry of each feature."""
    k = m.size()
    last, top, w = m.state(3, 5, k), m.state(n), m.param(n, k, fan=n)

    def step(p, h):
        new = h @ p[w]
        new, p[last] = new + 0.5 * p[last], new
        p[top] = jnp.maximum(0.9 * p[top], jnp.abs(h).max((0, 1)))
        return jnp.concatenate([new, h / (1 + p[top] ** 2)[None, None]], -1)

    return step


def stacked(m, n):
    """Statistics of the layers of a scan, which go with their layers."""
    w, mean = m.param(4, n, n, fan=n), m.state(4, n)

    def step(p, h):
        def layer(h, given):
            w, mean = given
            mean = 0.7 * mean + 0.3 * mean_of(h)
            return h + jnp.tanh((h - mean[None, None]) @ w), mean

        h, p[mean] = lax.scan(layer, h, (p[w], p[mean]))
        return h

    return step


STATE = (statistics, statistics, averaged, moments, cached, stacked)


def over_batch(m, n):
    """Each member of the batch on its own, but for one collective."""
    wide = n <= 12
    options = [
        lambda r: r - lax.pmean(r, "i"),
        lambda r: 0.3 * lax.psum(jnp.tanh(r), "i"),
        lambda r: r + lax.ppermute(r, "i", AROUND),
        lambda r: lax.all_gather(r, "i").max(0),
        lambda r: lax.all_gather(r, "i")[::-1].mean(0),
        lambda r: r * (1 + lax.axis_index("i")).astype(r.dtype),
        lambda r: r - lax.pmax(lax.stop_gradient(r), "i"),
        rooted,
        centred,
    ]
    op = m.choose(*options, *([joined] * 3 if wide else []))
    w = m.param(3 * n if op is joined else n, m.size(), fan=n)
    return lambda p, h: jax.vmap(lambda r: op(r) @ p[w], axis_name="i")(h)


def joined(r):
    """The features of all members, one after the other."""
    return lax.all_gather(r, "i", axis=1, tiled=True)


def rooted(r):
    """Root mean squares over features and members."""
    squares = lax.pmean((r * r).mean(-1, keepdims=True), "i")
    return r * lax.rsqrt(squares + 0.3)


def centred(r):
    """A mean over features and members whose divisor counts both."""
    total = lax.psum(r.sum(-1, keepdims=True), "i")
    return r - total / (r.shape[-1] * lax.psum(1, "i"))


def over_features(m, n):
    """Features are the mapped axis, so that a collective is over those that stay."""
    kind = m.choose("pmean", "psum", "all_gather", "pmax", "axis_index", "ppermute")
    m.driven &= kind not in ("axis_index", "ppermute")  # these count from the front
    next_one = [(i, (i + 1) % n) for i in range(n)]
    op = {
        "pmean": lambda c: c - lax.pmean(c, "f"),
        "psum": lambda c: jnp.tanh(c) + 0.1 * lax.psum(c, "f"),
        "all_gather": lambda c: c * jnp.tanh(lax.all_gather(c, "f")).mean(0),
        "pmax": lambda c: jnp.exp(c - lax.pmax(lax.stop_gradient(c), "f")),
        "axis_index": lambda c: c * (1 + lax.axis_index("f")).astype(c.dtype),
        "ppermute": lambda c: c + lax.ppermute(c, "f", next_one),
    }[kind]
    return lambda p, h: jax.vmap(op, -1, -1, axis_name="f")(h)


def ensemble(m, n):
    """Members of which some may go; the mean is over those that are left."""
    k = m.size()
    w, v = m.param(4, n, k, fan=n), m.param(4, k, n, fan=k)
    op = m.choose(lax.pmean, lax.psum, lambda y, name: lax.all_gather(y, name).max(0))

    def step(p, h):
        one = lambda w, v: op(jnp.tanh(h @ w) @ v, "member")  # noqa: E731
        return h + jax.vmap(one, axis_name="member", out_axes=None)(p[w], p[v])

    return step


COLLECTIVES = (
    over_batch,
    over_batch,
    over_batch,
    over_features,
    over_features,
    ensemble,
)
