"""Random functions that read every size from the shapes of their params.

So `fn(small_params)` is what a shrunk function has to compute, by an oracle that knows
nothing of dims. Steps that count entries from the front (`driven=False`) mean other
entries once some are gone; such functions have the masked one for an oracle only.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

SIZES = (6, 8, 10, 12)  # no power of one is a usual number, as 4 ** -0.5 is


@jax.custom_jvp
def bent(x):
    return jnp.where(x > 0, x, 0.1 * x)


bent.defjvp(lambda x, t: (bent(*x), t[0] * jnp.where(x[0] > 0, 1.0, 0.3)))


@jax.custom_vjp
def rounded(x):
    return jnp.round(4.0 * x)


rounded.defvjp(lambda x: (rounded(x), jnp.cos(x)), lambda c, g: (g * c,))

FUNCTIONS = (
    jax.nn.relu,
    jax.nn.gelu,
    jax.nn.silu,
    jnp.tanh,
    jax.nn.softmax,
    functools.partial(jax.nn.softmax, axis=1),
    functools.partial(jax.nn.log_softmax, axis=-1),
    jax.nn.softplus,
    bent,
    rounded,
)


class Maker:
    """Draws params, and remembers whether all steps are driven by shapes."""

    def __init__(self, seed):
        self.rng = np.random.default_rng(seed)
        self.params = {}
        self.states = []
        self.driven = True
        self.tokens = True  # whether there may be another number of them

    def size(self):
        return int(self.rng.choice(SIZES))

    def choose(self, *options):
        return options[self.rng.integers(len(options))]

    def param(self, *shape, fan=None):
        name = f"p{len(self.params)}"
        scale = 1 / math.sqrt(fan or 4)
        values = scale * self.rng.normal(size=shape)
        self.params[name] = jnp.asarray(values)
        return name

    def state(self, *shape):
        self.states.append(self.param(*shape))
        return self.states[-1]

    def counter(self):
        name = self.state()
        self.params[name] = jnp.asarray(self.rng.integers(1, 9), jnp.int32)
        return name


def add(h, *vectors):
    for v in vectors:
        h = h + v.reshape((1,) * (h.ndim - v.ndim) + v.shape)
    return h


def dense(m, n):
    k = m.size()
    w, b = m.param(n, k, fan=n), m.param(k)
    return lambda p, h: add(h @ p[w], p[b])


def function(m, n):
    f = m.choose(*FUNCTIONS)
    return lambda p, h: f(h)


def residual(m, n):
    k = m.size()
    w, v, f = m.param(n, k, fan=n), m.param(k, n, fan=k), m.choose(*FUNCTIONS)
    return lambda p, h: h + f(h @ p[w]) @ p[v]


def joined(m, n):
    w = m.param(n, m.size(), fan=n)
    return lambda p, h: jnp.concatenate([h @ p[w], jnp.tanh(h)], -1)


def gated(m, n):
    w = m.param(n, 2 * m.size(), fan=n)

    def step(p, h):
        a, b = jnp.split(h @ p[w], 2, axis=-1)
        return jax.nn.sigmoid(a) * b

    return step


def attention(m, n):
    heads, d = m.choose(2, 3), m.size()
    q, k, v = (m.param(n, heads, d, fan=n) for _ in range(3))
    o = m.param(heads, d, n, fan=heads * d)
    inside = m.choose(True, False)

    def step(p, h):
        a, b, c = (jnp.einsum("bmn,nhd->bmhd", h, p[w]) for w in (q, k, v))
        scale = 1 / math.sqrt(p[q].shape[2])
        a = a * scale if inside else a
        logits = jnp.einsum("bmhd,bkhd->bhmk", a, b)
        weights = jax.nn.softmax(logits if inside else logits * scale)
        return h + jnp.einsum("bhmk,bkhd,hdn->bmn", weights, c, p[o])

    return step


def heads(m, n):
    count, d = m.choose(3, 5), m.choose(6, 8)
    w, s, f = m.param(n, count * d, fan=n), m.param(count), m.choose(*FUNCTIONS)
    axis = m.choose(2, 3)

    def step(p, h):
        u = (h @ p[w]).reshape(*h.shape[:2], p[s].shape[0], -1)
        u = u * p[s][None, None, :, None]
        u = f(u - u.mean(axis, keepdims=True)).transpose(0, 1, 3, 2)
        return u.reshape(*h.shape[:2], -1)

    return step


def mixed(m, n):
    m.tokens, k = False, m.size()
    t = m.param(5, k, fan=5)
    back = m.param(k, 5, fan=k)
    return lambda p, h: jnp.swapaxes(
        jnp.tanh(jnp.swapaxes(h, 1, 2) @ p[t]) @ p[back], 1, 2
    )


def normed(m, n):
    s, kind = m.param(n), m.choose("layer", "rms", "std", "var1", "einsum")

    def step(p, h):
        scale = p[s][None, None, :]
        if kind == "rms":
            return h * lax.rsqrt(jnp.mean(h * h, -1, keepdims=True) + 0.3) * scale
        if kind == "einsum":
            squares = jnp.einsum("bmn,bmn->bm", h, h)[..., None] / h.shape[-1]
            return h * lax.rsqrt(squares + 0.3) * scale
        centre = h - h.mean(-1, keepdims=True)
        if kind == "std":  # with the slope of a square root at 0, where all are equal
            noise = jnp.arange(h.shape[1], dtype=h.dtype)[None, :, None]
            both = jnp.concatenate([h + noise, h - noise - 1], -1)
            return centre / (jnp.std(both, -1, keepdims=True) + 0.3) * scale
        ddof = int(kind == "var1")
        var = jnp.var(h, -1, keepdims=True, ddof=ddof)
        return centre * lax.rsqrt(var + 0.3) * scale

    return step


def shifted(m, n):
    m.tokens = False
    b, t = m.param(n), m.param(5, n)
    return lambda p, h: add(h, p[b], p[t])


def padded(m, n):
    low, high = m.choose((1, 2), (0, 3))
    return lambda p, h: jnp.pad(h, ((0, 0), (0, 0), (low, high)))


def repeated(m, n):
    if n > 12:
        return None
    m.driven = False  # how often is an axis of its own, that may shrink
    return lambda p, h: jnp.repeat(h, 2, axis=-1)


def tiled(m, n):
    if n > 12:
        return None
    return lambda p, h: jnp.tile(h, (1, 1, 2))


def stacked(m, n):
    return lambda p, h: jnp.stack([h, jnp.tanh(h)], 1).max(1)


def unstacked(m, n):
    w = m.param(3, n)

    def step(p, h):
        return sum(jnp.unstack(h[:, None] * p[w][None, :, None, :], axis=1))

    return step


def rolled(m, n):
    m.driven = False
    k, f = int(m.rng.integers(1, n)), m.choose(0, 1)
    return lambda p, h: jnp.roll(h, k, axis=-1) + f * h


def sliced(m, n):
    m.driven = False
    a = int(m.rng.integers(0, n // 2))
    return lambda p, h: h[..., a : a + n // 2]


def strided(m, n):
    if n % 2 or jax.__version_info__ < (0, 8):  # there it is a gather
        m.driven = False
    start = m.choose(0, 1) if n % 2 == 0 else 0
    return lambda p, h: h[..., start::2]


def summed(m, n):
    axis = m.choose(1, 2)
    return lambda p, h: 0.3 * jnp.cumsum(h, axis)


def reduced(m, n):
    f, axis = m.choose(jnp.max, jnp.min, jnp.mean, jnp.sum), m.choose(1, 2)
    return lambda p, h: jnp.tanh(h) * f(h, axis=axis, keepdims=True)


def scanned(m, n):
    k = m.size()
    w = m.param(4, n, k, fan=n), m.param(4, k, n, fan=k)
    remat = m.choose(True, False)

    def step(p, h):
        def body(h, ws):
            return h + jnp.tanh(h @ ws[0]) @ ws[1], None

        body = jax.checkpoint(body) if remat else body
        return lax.scan(body, h, tuple(p[i] for i in w))[0]

    return step


def branched(m, n):
    k = m.size()
    w, v = m.param(n, k, fan=n), m.param(n, k, fan=n)
    return lambda p, h: lax.cond(
        jnp.all(h[0, 0] > 0), lambda h: h @ p[w], lambda h: jnp.sin(h @ p[v]), h
    )


def mapped(m, n):
    w = m.param(n, m.size(), fan=n)
    return lambda p, h: jax.vmap(lambda row: jax.nn.silu(row @ p[w]))(h)


def permuted(m, n):
    m.driven = False  # the order shrinks like a param
    order = m.rng.permutation(n)
    return lambda p, h: h[..., order]


def tied(m, n):
    w = m.param(n, m.size(), fan=n)
    return lambda p, h: jnp.tanh(h @ p[w]) @ p[w].T


def bilinear(m, n):
    w, v = m.param(n, 3, fan=n), m.param(9, m.size(), fan=9)

    def step(p, h):
        u = h @ p[w]
        return jnp.einsum("bmi,bmj->bmij", u, u).reshape(*h.shape[:2], -1) @ p[v]

    return step


def remated(m, n):
    w = m.param(n, m.size(), fan=n)
    return lambda p, h: jax.checkpoint(lambda w, h: jnp.tanh(h @ w))(p[w], h)


STEPS = (
    *(dense, dense, dense, function, function, residual, joined, gated, attention),
    *(heads, mixed, normed, normed, shifted, padded, repeated, tiled, stacked),
    *(unstacked, rolled, sliced, strided, summed, reduced, scanned, branched, mapped),
    *(permuted, tied, bilinear, remated),
)


class Drawn(NamedTuple):
    """A random function.

    Attributes:
      fn: `(params, x) -> (result, new state by its name in params)`.
      params: its params.
      x: an input `(3, 5, 4)`.
      driven: whether shapes of params drive all steps.
      tokens: whether it is made for any number of tokens.
    """

    fn: Callable[..., Any]
    params: dict[str, Any]
    x: Any
    driven: bool
    tokens: bool


def draw(seed, more=(), fewer=(), length=7):
    """Returns a random function.

    Args:
      seed: of the function.
      more: further steps, of which every third is one; first of all the second.
      fewer: steps that are drawn anew.
      length: how many steps lie between the first and the last matrix.
    """
    m = Maker(seed)
    x = jnp.asarray(m.rng.normal(size=(3, 5, 4)))
    steps = [dense(m, 4)]
    h = jax.eval_shape(steps[0], m.params, x)
    saved = []
    while len(steps) < length:
        make = m.choose(*(more if more and len(steps) % 3 == 1 else STEPS))
        step = None if make in fewer else make(m, h.shape[-1])
        after = h if step is None else jax.eval_shape(step, m.params, h)
        if step is None or after.shape[-1] > 40:
            continue
        steps.append(step)
        saved.append((len(steps) - 1, h.shape[-1]))
        h = after
    same = [i for i, n in saved if n == h.shape[-1]]
    skip = int(m.choose(*same)) if same else None  # what went into a step comes back
    last = m.param(h.shape[-1], 2, fan=h.shape[-1])

    def fn(p, x):
        p, h, kept = dict(p), x, None  # steps write state
        for i, step in enumerate(steps):
            kept = h if i == skip else kept
            h = step(p, h)
        out = (h if kept is None else h + kept) @ p[last]
        return out, {name: p[name] for name in m.states}

    return Drawn(fn, m.params, x, m.driven, m.tokens)
