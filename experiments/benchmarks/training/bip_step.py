"""Cost of a step of bi-level pruning: two gradients, a selection, two updates."""

import functools
import statistics
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import jprune as jp
from experiments import models
from experiments.harness import timing
from experiments.harness.catalogue import Claim, Outcome, Study, Table
from experiments.harness.stats import mean_and_spread, plus_minus, rounded
from jprune.learned import bilevel

FORMS = {
    "dense": "dense step, SGD with momentum",
    "global": "BiP, global",
    "leaf": "BiP, each layer",
    "n_of_m": "BiP, 2:4",
    "above": "BiP, scores above a number: no search",
}


class Settings(NamedTuple):
    """Settings of the benchmark.

    Attributes:
      seeds: seeds of weights and inputs; one ratio each.
      steps: number of turns, in each of which every form takes a step; their median is
        reported.
      batch: images per gradient.
      sparsity: sparsity of BiP.
    """

    seeds: tuple[int, ...] = (0, 1, 2)
    steps: int = 7
    batch: int = 128
    sparsity: float = 0.95


class Network(NamedTuple):
    """A network, its image shape, and the layers that 2:4 cannot divide.

    The batch is that of the settings, times `larger`.
    """

    init: Any
    apply: Any
    shape: tuple[int, int, int]
    dense: tuple[str, ...]
    larger: int = 1


_MLP = Network(models.mlp.init, models.mlp.apply, (28, 28, 1), ())

NETWORKS = {
    "MLP 300-100": _MLP,
    # The batch of the study of BiP, where a weight is used for over 100 examples.
    "MLP 300-100, 4 x batch": _MLP._replace(larger=4),
    "CNN": Network(models.cnn.init, models.cnn.apply, (28, 28, 1), ("conv1/.*",)),
    "ResNet-20": Network(
        models.resnet.init, models.resnet.apply, (32, 32, 3), ("stem/.*",)
    ),
}


def run(settings: Settings, data_dir: Path | None, progress: Any) -> Outcome:
    """Times a step of every form in turns."""
    del data_dir
    task = progress.add_task("time", total=len(NETWORKS) * len(settings.seeds))
    found: dict[str, dict[str, list[float]]] = {}
    traces = {}
    for name, network in NETWORKS.items():
        forms = steps(settings, network)
        found[name] = {form: [] for form in FORMS}
        for seed in settings.seeds:
            taken = in_turns(settings, network, forms, seed)
            for form, seconds in taken.items():
                found[name][form].append(seconds)
            progress.advance(task)
        traces[name] = compilations(settings, network)
    figures = {
        "milliseconds": {
            name: {form: [rounded(1e3 * s) for s in v] for form, v in forms.items()}
            for name, forms in found.items()
        },
        "ratios": {
            name: {
                form: [rounded(a / b) for a, b in zip(v, forms["dense"], strict=True)]
                for form, v in forms.items()
            }
            for name, forms in found.items()
        },
        "traces_for_five_sparsities": traces,
    }
    return Outcome(figures, {"main": table(figures, settings)})


def loss(network: Network, params: Any, batch: tuple[jax.Array, jax.Array]):
    """Returns the mean cross-entropy."""
    images, labels = batch
    return optax.losses.softmax_cross_entropy_with_integer_labels(
        network.apply(params, images), labels
    ).mean()


def sgd() -> optax.GradientTransformation:
    """Returns the optimizer of both levels."""
    return optax.sgd(0.01, momentum=0.9)


def steps(settings: Settings, network: Network) -> dict[str, jp.Algorithm]:
    """Returns each form as an algorithm with two batches, of which it may use one."""
    objective = functools.partial(loss, network)
    bip = functools.partial(bilevel.bip, objective, lower=sgd(), upper=sgd())
    where = jp.excluding(*network.dense) if network.dense else jp.is_kernel
    return {
        "dense": dense(objective),
        "global": bip(jp.keep_top(settings.sparsity, scope="global")),
        "leaf": bip(jp.keep_top(settings.sparsity)),
        "n_of_m": bip(jp.keep_n_of_m(2, 4), where=where),
        # Without the search for a threshold: a lower bound of the cost of a step.
        "above": bip(jp.keep_above(0.01)),
    }


def dense(objective: Any) -> jp.Algorithm:
    """Returns ordinary training as an algorithm."""
    tx = sgd()

    def init(params: Any) -> Any:
        return jax.tree.map(jnp.copy, params), tx.init(params)

    @functools.partial(jax.jit, donate_argnames="state")
    def step(state: Any, lower: Any, upper: Any) -> tuple[Any, jax.Array]:
        del upper
        params, memory = state
        batch = jax.tree.map(lambda x: x[0], lower)
        value, grads = jax.value_and_grad(objective)(params, batch)
        updates, memory = tx.update(grads, memory, params)
        return (optax.apply_updates(params, updates), memory), value

    return jp.Algorithm(init, step, lambda state: state)


def in_turns(
    settings: Settings, network: Network, forms: dict[str, jp.Algorithm], seed: int
) -> dict[str, float]:
    """Returns the median seconds of a step of each form."""
    first, second, third = jax.random.split(jax.random.key(seed), 3)
    params = network.init(first, network.shape, 10)
    upper = draw(settings, network, second)
    lower = jax.tree.map(lambda x: x[None], draw(settings, network, third))
    states = {name: form.init(params) for name, form in forms.items()}

    def advance(name: str) -> Any:
        states[name], info = forms[name].step(states[name], lower, upper)
        return info

    for name in forms:  # compiles
        jax.block_until_ready(advance(name))
    taken: dict[str, list[float]] = {name: [] for name in forms}
    for _ in range(settings.steps):
        for name in forms:
            step = functools.partial(advance, name)
            taken[name].append(timing.seconds(step))
    return {name: statistics.median(times) for name, times in taken.items()}


def draw(settings: Settings, network: Network, key: jax.Array):
    """Returns a batch of noise, which costs the same as images."""
    one, two = jax.random.split(key)
    batch = settings.batch * network.larger
    images = jax.random.normal(one, (batch, *network.shape))
    return images, jax.random.randint(two, (batch,), 0, 10)


def compilations(settings: Settings, network: Network) -> int:
    """Returns the number of traces of the network for five sparsities, per gradient."""
    traces = []

    def counted(params: Any, batch: Any) -> jax.Array:
        traces.append(None)
        return loss(network, params, batch)

    @jax.jit
    def two_steps(sparsity: jax.Array, params: Any, batch: Any) -> Any:
        pruner = jp.keep_top(sparsity, scope="global")
        method = bilevel.bip(counted, pruner, lower=sgd(), upper=sgd())
        lower = jax.tree.map(lambda x: x[None], batch)
        state, _ = method.step(method.init(params), lower, batch)
        return method.finish(state)[1]

    params = network.init(jax.random.key(0), network.shape, 10)
    batch = draw(settings._replace(batch=8), network, jax.random.key(1))
    for sparsity in (0.8, 0.9, 0.95, 0.98, 0.99):
        jax.block_until_ready(two_steps(jnp.float32(sparsity), params, batch))
    return len(traces) // 2  # a lower and an upper gradient


def table(figures: dict[str, Any], settings: Settings) -> Table:
    """Returns the table of ratios."""
    rows = [
        (label, *(plus_minus(figures["ratios"][name][form]) for name in NETWORKS))
        for form, label in FORMS.items()
        if form != "dense"
    ]
    times = {
        name: mean_and_spread(figures["milliseconds"][name]["dense"])[0]
        for name in NETWORKS
    }
    return Table(
        columns=(
            "CPU time over a dense step's",
            *(f"{name} ({times[name]:.0f} ms)" for name in NETWORKS),
        ),
        rows=tuple(rows),
        caption=(
            f"One lower step and one of the scores, batch {settings.batch}, float32, "
            f"sparsity {settings.sparsity}, SGD with momentum on both levels, state "
            "donated; the dense step's own time in brackets. Medians of "
            f"{settings.steps} turns, mean ± std over {len(settings.seeds)} seeds."
        ),
    )


def _ratio(name: str, figures: dict[str, Any]) -> tuple[float, float | None]:
    return mean_and_spread(figures["ratios"][name]["global"])


def _traces(figures: dict[str, Any]) -> tuple[float, None]:
    return float(max(figures["traces_for_five_sparsities"].values())), None


STUDY = Study(
    Settings(),
    (
        *(
            Claim(
                f"a BiP step, global, over a dense step: {name}",
                "jprune",
                ("<=", 2.3),
                functools.partial(_ratio, name),
            )
            for name in NETWORKS
        ),
        Claim(
            "BiP at five sparsities: times that its loss is traced for a gradient",
            "jprune",
            ("<=", 1.0),
            _traces,
        ),
    ),
    run,
)
