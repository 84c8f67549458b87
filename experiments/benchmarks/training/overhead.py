"""Cost of `sparsify` per training step: nearly nothing while no refresh is due."""

import functools
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jprune as jp
from experiments.harness.catalogue import Claim, Outcome, Study, Table
from experiments.harness.stats import mean_and_spread, plus_minus, rounded

FORMS = {
    "adamw": "AdamW alone",
    "outside": "no refresh in the step (every=None)",
    "inside": "refresh in the step, not due",
    "packed": "refresh in the step, not due; packed masks",
    "zero": "refresh in the step, not due; zero moments",
    "amortised_outside": "amortised, jp.refresh every {every} steps",
    "amortised_inside": "amortised, in the step every {every} steps",
}
KINDS = ("train", "optimizer")  # with the gradient of a network, or without


class Settings(NamedTuple):
    """Settings of the benchmark.

    Attributes:
      seeds: seeds of weights and inputs; one ratio each.
      steps: number of rounds of the largest network, in each of which every form takes
        a step; their median is reported.
      refreshes: number of rounds with a refresh.
      networks: `(name, layers, width, times)` of networks of square layers; `times`
        multiplies the number of rounds.
      batch: rows of the input.
      every: updates between refreshes.
      sparsity: target sparsity.
    """

    seeds: tuple[int, ...] = (0, 1, 2)
    steps: int = 7
    refreshes: int = 3
    networks: tuple[tuple[str, int, int, int], ...] = (
        ("5M", 5, 1024, 4),
        ("50M", 12, 2048, 1),
    )
    batch: int = 256
    every: int = 100
    sparsity: float = 0.9


def run(settings: Settings, data_dir: Path | None, progress: Any) -> Outcome:
    """Times all forms in turns, with the gradient of a network and without."""
    del data_dir
    cases = [(n, kind) for n in settings.networks for kind in KINDS]
    task = progress.add_task("time", total=len(cases) * len(settings.seeds))
    seconds: dict[str, dict[str, list[float]]] = {}
    for (name, layers, width, times), kind in cases:
        rounds = settings.steps * times
        forms = compiled(settings, layers, width, kind)
        found: dict[str, list[float]] = {form: [] for form in FORMS}
        for seed in settings.seeds:
            params = network(layers, width, seed)
            x = drawn(inputs(settings, params, kind), seed)
            taken = in_turns(forms, settings, rounds, params, x)
            for form in FORMS:
                found[form].append(taken[form])
            progress.advance(task)
        seconds[f"{name} {kind}"] = found
    figures = {
        "milliseconds": {
            case: {form: [rounded(1e3 * s) for s in v] for form, v in forms.items()}
            for case, forms in seconds.items()
        },
        "ratios": {
            case: {
                form: [rounded(a / b) for a, b in zip(v, forms["adamw"], strict=True)]
                for form, v in forms.items()
            }
            for case, forms in seconds.items()
        },
    }
    return Outcome(figures, {"main": table(figures, settings)})


def network(layers: int, width: int, seed: int) -> dict[str, Any]:
    """Returns the parameters of square layers."""
    keys = jax.random.split(jax.random.key(seed), layers)
    draw = functools.partial(jax.random.normal, shape=(width, width))
    return {
        f"layer_{i}": {"kernel": draw(key) / np.sqrt(width)}
        for i, key in enumerate(keys)
    }


def loss(params: dict[str, Any], x: jax.Array) -> jax.Array:
    """Returns a loss with a nonzero gradient for all weights."""
    for layer in params.values():
        x = jnp.tanh(x @ layer["kernel"])
    return jnp.mean(jnp.square(x - 1))


def compiled(
    settings: Settings, layers: int, width: int, kind: str
) -> dict[str, tuple[Callable[..., Any], Any]]:
    """Returns each form as a function, and its state without that of AdamW.

    The function is `(params, inner, rest, count, x) -> (params, inner, rest)`, where
    `inner` is the state of AdamW; it donates the first three. So all forms share one
    set of params and moments.
    """
    adamw = optax.adamw(1e-3)
    end = settings.every  # all timed steps are at the end of the schedule
    pruner = jp.recipes.gradual_magnitude(settings.sparsity, begin=0, steps=end)
    inside = functools.partial(jp.sparsify, adamw, pruner, every=settings.every)
    optimizers = {
        "outside": jp.sparsify(adamw, pruner, every=None),
        "inside": inside(),
        "packed": inside(packed=True),
        "zero": inside(moments="zero"),
    }
    params = jax.eval_shape(lambda: network(layers, width, 0))
    x = inputs(settings, params, kind)

    def alone(params: Any, inner: Any, rest: Any, count: Any, x: Any) -> Any:
        del count
        grads = jax.grad(loss)(params, x) if kind == "train" else x
        updates, inner = adamw.update(grads, inner, params)
        return optax.apply_updates(params, updates), inner, rest

    def step(tx: Any, params: Any, inner: Any, rest: Any, count: Any, x: Any) -> Any:
        grads = jax.grad(loss)(params, x) if kind == "train" else x
        state = rest._replace(inner=inner, count=count)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), *apart(state)

    def refresh(params: Any, inner: Any, rest: Any, count: Any, x: Any) -> Any:
        del x
        state = rest._replace(inner=inner, count=count)
        params, state = jp.refresh(pruner, state, params)
        return params, *apart(state)

    def compile_with(function: Callable[..., Any], state: Any) -> Any:
        inner, rest = apart(state)
        donating = jax.jit(function, donate_argnums=(0, 1, 2), keep_unused=True)
        args = (params, inner, rest, jax.ShapeDtypeStruct((), jnp.int32), x)
        return donating.lower(*args).compile(), rest

    states = {k: jax.eval_shape(tx.init, params) for k, tx in optimizers.items()}
    return {
        "adamw": compile_with(alone, jax.eval_shape(adamw.init, params)),
        **{
            name: compile_with(functools.partial(step, tx), states[name])
            for name, tx in optimizers.items()
        },
        "refresh": compile_with(refresh, states["outside"]),
    }


def apart(state: Any) -> tuple[Any, Any]:
    """Splits a state into that of AdamW and the rest."""
    if not hasattr(state, "inner"):
        return state, ()
    return state.inner, state._replace(inner=None, count=None)


def inputs(settings: Settings, params: Any, kind: str) -> Any:
    """Returns the shapes of a batch, or of gradients if there is no network."""
    if kind == "optimizer":
        return params
    width = params["layer_0"]["kernel"].shape[0]
    return jax.ShapeDtypeStruct((settings.batch, width), jnp.float32)


def drawn(shapes: Any, seed: int) -> Any:
    """Returns normal random arrays of these shapes."""
    key = jax.random.fold_in(jax.random.key(seed), 1)
    return jax.tree.map(lambda s: jax.random.normal(key, s.shape), shapes)


def in_turns(
    forms: dict[str, tuple[Callable[..., Any], Any]],
    settings: Settings,
    rounds: int,
    params: Any,
    x: Any,
) -> dict[str, float]:
    """Returns the median CPU seconds of each form, measured in turns."""
    inner = optax.adamw(1e-3).init(params)
    held = {
        name: jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), rest)
        for name, (_, rest) in forms.items()
    }
    taken: dict[str, list[float]] = {"due": [], **{name: [] for name in forms}}
    due, steady = jnp.int32(settings.every), jnp.int32(settings.every + 1)
    # Each form first computes its masks, in a step that is not timed.
    turns = [[(name, name, due) for name in ("refresh", *forms)]]
    for i in range(rounds):
        turn = [(name, name, steady) for name in forms if name != "refresh"]
        if i < settings.refreshes:
            turn += [("due", "inside", due), ("refresh", "refresh", due)]
        turns.append(turn)
    for turn in turns:
        for label, name, count in turn:
            holder = "outside" if name == "refresh" else name
            begin = time.process_time()
            out = forms[name][0](params, inner, held[holder], count, x)
            params, inner, held[holder] = jax.block_until_ready(out)
            if turn is not turns[0]:
                taken[label].append(time.process_time() - begin)
    seconds = {label: statistics.median(times) for label, times in taken.items()}
    return amortised(seconds, settings.every)


def amortised(seconds: dict[str, float], every: int) -> dict[str, float]:
    """Returns the times of all forms, with the refresh amortised over its steps."""
    once, refresh = seconds.pop("due"), seconds.pop("refresh")
    outside = seconds["outside"] + refresh / every
    inside = ((every - 1) * seconds["inside"] + once) / every
    return {**seconds, "amortised_outside": outside, "amortised_inside": inside}


def table(figures: dict[str, Any], settings: Settings) -> Table:
    """Returns the table of ratios to AdamW alone."""
    cases = list(figures["ratios"])
    own = {case: figures["milliseconds"][case]["adamw"] for case in cases}
    heads = (f"{case} ({mean_and_spread(own[case])[0]:.0f} ms)" for case in cases)
    return Table(
        columns=("CPU time over AdamW's", *heads),
        rows=tuple(
            (
                title.format(every=settings.every),
                *(plus_minus(figures["ratios"][case][form]) for case in cases),
            )
            for form, title in FORMS.items()
            if form != "adamw"
        ),
        caption=(
            "Ratios of CPU time per step, float32, buffers donated, sparsity "
            f"{settings.sparsity:g}; an MLP of "
            + " or ".join(f"{n} x {w}^2" for _, n, w, _ in settings.networks)
            + f" at batch {settings.batch} (train), or the optimizer's update without "
            f"a network (optimizer); AdamW's own time in brackets. Medians of "
            + " or ".join(str(settings.steps * t) for *_, t in settings.networks)
            + f" rounds, in turns ({settings.refreshes} with a refresh); "
            f"mean ± std over {len(settings.seeds)} seeds."
        ),
    )


def claim(case: str, form: str, words: str, bound: float) -> Claim:
    """Returns a claim on a ratio to AdamW alone."""
    return Claim(
        f"{words}, CPU time over AdamW's, {case}",
        "jprune",
        ("<=", bound),
        lambda figures: mean_and_spread(figures["ratios"][case][form]),
    )


STUDY = Study(
    Settings(),
    tuple(
        claim(f"{name} train", form, words, bound)
        for name in ("5M", "50M")
        for form, words, bound in (
            ("inside", "a step without refresh", 1.03),
            ("packed", "a step without refresh, packed masks", 1.03),
            ("zero", "a step without refresh, zero moments", 1.03),
            ("amortised_inside", "a refresh in the step every 100 steps", 1.05),
            ("amortised_outside", "a refresh from outside every 100 steps", 1.05),
        )
    ),
    run,
)
