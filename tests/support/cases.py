"""Every recipe once, as the contract suite runs it."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jprune as jp
from jprune import graph as jg


class Case(NamedTuple):
    """A recipe under test.

    Attributes:
      recipe: its name in `jprune.recipes`.
      make: from a sparsity, which may be traced, to the pruner.
      exact: whether the total count is n - round(n * sparsity); False where a
        minimum per leaf may keep more.
      sparsity: the one to check with; None if the recipe has no such argument.
    """

    recipe: str
    make: Callable[[Any], jp.Pruner]
    exact: bool = True
    sparsity: float | None = 0.9


CASES = [
    Case("magnitude", lambda s: jp.recipes.magnitude(s)),
    Case(
        "gradual_magnitude",
        # The contract's clock stands at 0: from the first step on at the target.
        lambda s: jp.recipes.gradual_magnitude(s, begin=0, steps=1, initial=s),
    ),
    Case(
        "global_magnitude",
        lambda s: jp.recipes.global_magnitude(s, min_fraction=0.001),
        exact=False,
    ),
    Case("random_erk", lambda s: jp.recipes.random_erk(s, jax.random.key(3))),
    Case("snip", lambda s: jp.recipes.snip(s)),
    Case("n_of_m", lambda s: jp.recipes.n_of_m(2, 4), sparsity=None),
]


class AlgorithmCase(NamedTuple):
    """A recipe that owns its loop.

    Attributes:
      recipe: its name in `jprune.recipes`.
      make: from a loss and a sparsity, which may be traced, to the algorithm.
      note: what is special, where a recipe has several cases.
      batches: how many batches each argument of a step holds; None for one, as it
        is.
      takes_key: whether `init` takes a key.
    """

    recipe: str
    make: Callable[[Callable[..., Any], Any], jp.Algorithm]
    note: str = ""
    batches: tuple[int | None, ...] = (None,)
    takes_key: bool = True

    def state_of(self, method: jp.Algorithm) -> Callable[[Any, jax.Array], Any]:
        return method.init if self.takes_key else lambda params, _: method.init(params)

    def stream(self, steps: int) -> list[tuple[jax.Array, ...]]:
        rng = np.random.default_rng(0)
        shapes = [() if n is None else (n,) for n in self.batches]
        return [
            tuple(jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes)
            for _ in range(steps)
        ]


def small_params() -> Any:
    """Two kernels and what is none, in two types; all axes divide by 8."""
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape) / 2, jnp.float32)  # noqa: E731
    params = {
        "first": {"kernel": draw(8, 16), "bias": draw(16)},
        "second": {"kernel": draw(16, 8), "scale": draw(8)},
    }
    half = jax.tree.map(lambda w: w.astype(jnp.bfloat16), params["second"])
    return {**params, "second": half}


def small_loss(params: Any, x: jax.Array) -> jax.Array:
    """Of every weight alone, so that it compiles at once and shards any way."""
    wide = jax.tree.map(lambda w: w.astype(jnp.float32), params)
    each = [jnp.mean(jnp.square(w - jnp.sin(3 * w + x))) for w in jax.tree.leaves(wide)]
    return jnp.sum(jnp.stack(each))


def _bip(note: str = "", **options: Any) -> AlgorithmCase:
    make = lambda loss, s: jp.recipes.bip(loss, s, steps=8, **options)  # noqa: E731
    return AlgorithmCase("bip", make, note, batches=(2, None), takes_key=False)


def _searching(recipe: str) -> AlgorithmCase:
    search = getattr(jp.recipes, recipe)
    return AlgorithmCase(recipe, lambda loss, s: search(loss, s, steps=8))


def _training(recipe: str, note: str = "", **options: Any) -> AlgorithmCase:
    train = getattr(jp.recipes, recipe)
    weights = optax.adamw(1e-2)
    return AlgorithmCase(
        recipe, lambda loss, s: train(loss, s, weights, **options), note
    )


def _lottery_ticket(loss: Callable[..., Any], sparsity: Any) -> jp.Algorithm:
    """One round of a training that can be traced, jitted as a user would."""

    def train(params: Any, masks: Any) -> Any:
        def step(params: Any, x: jax.Array) -> tuple[Any, None]:
            slopes = jp.apply(jax.grad(loss)(params, x), masks)
            updates = jax.tree.map(lambda g: g * jnp.asarray(-0.1, g.dtype), slopes)
            return optax.apply_updates(params, updates), None

        return jax.lax.scan(step, params, jnp.linspace(-1.0, 1.0, 3))[0]

    method = jp.recipes.lottery_ticket(train, sparsity, rounds=1)
    # What the last round trained is given back too, though no round reads it.
    step = jax.jit(method.step, donate_argnums=0, keep_unused=True)
    return method._replace(step=step)


ALGORITHMS = [
    _bip(),
    _bip("reference", preset="reference"),
    _bip("filters", units="output"),
    _searching("hydra"),
    _searching("edge_popup"),
    _searching("sign_supermask"),
    _searching("lottery_jackpots"),
    _training("movement", steps=8),
    _training("soft_movement", steps=8),
    _training("soft_threshold", steps=8),
    _training("l0", steps=8),
    _training("l0", "channels", steps=8, units="output"),
    _training("consensus"),
    AlgorithmCase(
        "lottery_ticket",
        _lottery_ticket,
        "its schedule of rounds is static",
        batches=(),
        takes_key=False,
    ),
]


class StructuralCase(NamedTuple):
    """A recipe that takes a graph.

    Attributes:
      recipe: its name in `jprune.recipes`.
      make: from a graph and a sparsity to what the recipe gives. For a pruner the
        sparsity may be traced or a schedule.
      gives: what that is.
      note: what is special, where a recipe has several cases.
    """

    recipe: str
    make: Callable[[jg.Graph, Any], Any]
    gives: Literal["pruner", "link", "sizes", "branches"] = "pruner"
    note: str = ""


SCALES = jp.matching(".*norm/scale")


def _mask_sparsity(graph: jg.Graph, sparsity: float) -> Any:
    sizes = {n: max(1, round(g.size * (1 - sparsity))) for n, g in graph.groups.items()}
    keep = jg.first_entries(graph, sizes)
    return jp.recipes.mask_sparsity(graph, keep, 0.1, SCALES)


def _precrop(graph: jg.Graph, sparsity: float) -> dict[str, int]:
    kernels = [path for path, axes in graph.axes.items() if len(axes) > 1]
    return jp.recipes.precrop(graph, dict.fromkeys(kernels, 1 - sparsity))


def _layer_lottery(graph: jg.Graph, sparsity: float) -> Any:
    ones = jax.tree.map(lambda w: jnp.ones(w.shape, w.dtype), graph.params)
    count = round(sparsity * len(jg.branches(graph)))
    return jp.recipes.layer_lottery(graph, ones, lambda fn, params: params, count)


def _beta_rank(graph: jg.Graph, sparsity: Any) -> Any:
    """By the gains of weights of 1, which frameworks cannot order differently."""
    ones = jax.tree.map(lambda w: jnp.ones(w.shape, w.dtype), graph.params)
    rng = np.random.default_rng(0)
    batch = [jnp.asarray(rng.normal(size=x.shape), x.dtype) for x in graph.inputs]
    return jp.recipes.beta_rank(graph, sparsity, jg.gains(graph, ones, *batch))


STRUCTURAL_CASES = [
    StructuralCase("group_magnitude", jp.recipes.group_magnitude),
    StructuralCase("group_taylor", jp.recipes.group_taylor),
    StructuralCase(
        "group_taylor",
        lambda graph, s: jp.recipes.group_taylor(graph, s, joint=False),
        note="one by one",
    ),
    StructuralCase("group_fisher", jp.recipes.group_fisher),
    StructuralCase("fpgm", lambda graph, s: jp.recipes.fpgm(graph, s, scope="global")),
    StructuralCase(
        "network_slimming",
        lambda graph, s: jp.recipes.network_slimming(graph, s, SCALES),
    ),
    StructuralCase("beta_rank", _beta_rank),
    StructuralCase("mask_sparsity", _mask_sparsity, "link"),
    StructuralCase("precrop", _precrop, "sizes"),
    StructuralCase("layer_lottery", _layer_lottery, "branches"),
]
