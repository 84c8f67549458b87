"""Perplexity and savings of a pruned KV cache for two small language models.

The models are a published Llama of 260,032 weights, evaluated on stories that it has
generated itself (so the rise of its perplexity is the divergence from its own
predictions), and a byte-level GPT that is trained here on tiny-shakespeare, evaluated
on its test split and on WikiText-2. Half of each window is the prompt, and the other
half is decoded. The amount of pruning is chosen on other windows: the least traffic
with a rise of at most a few percent.

Traffic is that of the keys and values that are read for a token, as in the authors'
traces. Computation is that of the products with them, including scores that are
recomputed from all bits.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.harness import timing
from experiments.harness.catalogue import Outcome, Study
from experiments.harness.stats import rounded
from experiments.loops import decoding
from experiments.models import decoder, stories
from experiments.studies.attention import _decoding_report as report
from experiments.studies.attention import _plots as plots
from experiments.studies.attention._levels import ROWS
from experiments.tasks import corpora
from jprune import attention as ja

BITS = ja.Bits(query=12, msb=6, lsb=4, value=6)
MORE_BITS = ja.Bits(query=12, msb=8, lsb=4, value=8)
MOST_BITS = ja.Bits(query=12, msb=10, lsb=4, value=8)


class Way(NamedTuple):
    """The techniques that are used, and how much each prunes.

    Attributes:
      share: mean budget, as a share of the full cache.
      heads: mean share of heads over the layers that prune heads.
      values: share of cached values that are read.
      bits: bits of keys, in two planes, and of values; None for float32.
    """

    share: float = 1.0
    heads: float = 1.0
    values: float = 1.0
    bits: ja.Bits | None = None


class Settings(NamedTuple):
    """Settings of the study.

    Attributes:
      seeds: seeds of the GPT's training and of the stories; only the first is used.
      steps: training steps of the GPT.
      batch_size: windows per training step, and number of decoded windows.
      length: length of the GPT's windows; those of the Llama are twice as long.
      width: width of the GPT's residual stream.
      depth: number of its layers.
      heads: heads per layer.
      rate: peak learning rate.
      shares: candidates of the mean budget, as shares of the full cache.
      usual: the other techniques at these budgets.
      milder: further candidates, in case those cost too much.
      threshold: rows whose largest probability is below it read the lower plane.
      rise: allowed rise of perplexity on the windows to choose with, in percent.
      toy: whether to run without a data directory: no Llama, and the GPT on
        scikit-learn's prose.
    """

    seeds: tuple[int, ...] = (0,)
    steps: int = 800
    batch_size: int = 16
    length: int = 256
    width: int = 128
    depth: int = 6
    heads: int = 4
    rate: float = 2e-3
    shares: tuple[float, ...] = (0.8, 0.6, 0.45, 0.3)
    usual: Way = Way(heads=0.9, values=0.5, bits=BITS)
    milder: tuple[Way, ...] = (
        Way(0.6, 1.0, 0.5, BITS),
        Way(0.8, 1.0, 0.5, BITS),
        Way(0.6, 1.0, 0.5, MORE_BITS),
        Way(0.8, 1.0, 0.5, MORE_BITS),
        Way(0.9, 1.0, 0.7, MORE_BITS),
        Way(0.9, 1.0, 0.7, MOST_BITS),
    )
    threshold: float = 0.05
    rise: float = 3.0
    toy: bool = False


class Model(NamedTuple):
    """A language model and its evaluation data.

    Attributes:
      decoder: the model.
      params: its parameters.
      choose: windows `(batch, length)` to choose budgets on.
      tests: windows to report, by name.
    """

    decoder: decoder.Decoder
    params: Any
    choose: np.ndarray
    tests: dict[str, np.ndarray]


def run(settings: Settings, data_dir: Path | None, progress: Any) -> Outcome:
    """Trains and loads the models, chooses budgets, and decodes."""
    builders: dict[str, Callable[[], Model]] = {
        "GPT": lambda: gpt(settings, data_dir),
    }
    if not settings.toy:
        builders["stories260K"] = lambda: llama(settings, data_dir)
    task = progress.add_task("decode", total=len(builders))
    figures: dict[str, Any] = {}
    for name, build in builders.items():
        figures[name] = judged(settings, build())
        progress.advance(task)
    panels = {f"{n}, windows to choose with": f["curves"] for n, f in figures.items()}
    tables = {"main": report.table(figures, settings.batch_size)}
    return Outcome(figures, tables, lambda path: plots.decoding(path, panels))


def gpt(settings: Settings, data_dir: Path | None) -> Model:
    """Returns the trained byte-level GPT."""
    text = corpora.descriptions() if settings.toy else corpora.shakespeare(data_dir)
    length, count = settings.length, settings.batch_size
    model = decoder.gpt(settings.heads)
    first, second = jax.random.split(jax.random.key(settings.seeds[0]))
    sizes = {n: getattr(settings, n) for n in ("length", "width", "depth")}
    params = decoder.init_gpt(first, vocabulary=256, **sizes)
    params = trained(settings, model, params, jnp.asarray(text.train), second)
    name = "prose" if settings.toy else "tiny-shakespeare"
    tests = {name: some_windows(text.test, length, count)}
    if not settings.toy:
        tests["WikiText-2"] = some_windows(corpora.wikitext(data_dir)[1], length, count)
    choose = some_windows(text.validation, length, count)
    return Model(model, params, choose, tests)


def some_windows(data: np.ndarray, length: int, count: int) -> np.ndarray:
    """Returns windows that are evenly spaced in a text, int32."""
    rows = corpora.windows(data, length)
    chosen = np.linspace(0, len(rows) - 1, min(count, len(rows))).astype(int)
    return rows[chosen].astype(np.int32)


def trained(
    settings: Settings, model: decoder.Decoder, params: Any, text: Any, key: jax.Array
) -> Any:
    """Returns the parameters after training on random windows of a text."""
    rate = optax.schedules.warmup_cosine_decay_schedule(
        0.0, settings.rate, settings.steps // 10 + 1, settings.steps + 1
    )
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate))
    offsets = jnp.arange(settings.length + 1)
    shape = settings.batch_size, 1

    def step(carry: Any, key: jax.Array) -> Any:
        params, state = carry
        start = jax.random.randint(key, shape, 0, len(text) - settings.length - 1)
        ids = text[start + offsets].astype(jnp.int32)
        grads = jax.grad(lambda p: loss(model, p, ids))(params)
        updates, state = tx.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), None

    keys = jax.random.split(key, settings.steps)
    go = jax.jit(lambda carry, keys: jax.lax.scan(step, carry, keys)[0][0])
    return go((params, tx.init(params)), keys)


def loss(model: decoder.Decoder, params: Any, ids: jax.Array) -> jax.Array:
    """Returns the mean cross-entropy of all tokens but the first, in nats."""
    logits = decoder.forward(model, params, ids[:, :-1])
    cross = optax.losses.softmax_cross_entropy_with_integer_labels(logits, ids[:, 1:])
    return cross.mean()


def llama(settings: Settings, data_dir: Path | None) -> Model:
    """Returns the published Llama, with stories that it generates."""
    model, params, _ = stories.load(data_dir)
    first = jnp.full(2 * settings.batch_size, stories.BEGIN, jnp.int32)
    tell = jax.jit(
        lambda key: decoding.generate(model, params, first, 2 * settings.length, key)
    )
    told = np.asarray(tell(jax.random.key(1000 + settings.seeds[0])))
    choose, test = np.split(told, 2)
    return Model(model, params, choose, {"its own stories": test})


def ways(way: Way) -> dict[str, Way]:
    """Returns the rows of the breakdown; each adds one technique."""
    tokens = Way(way.share)
    heads = tokens._replace(heads=way.heads)
    values = heads._replace(values=way.values)
    return dict(zip(ROWS, (Way(), tokens, heads, values, way), strict=True))


def options_of(
    settings: Settings, model: Model, way: Way, length: int
) -> tuple[decoding.Kept, decoding.Plan]:
    """Returns the settings of decoding for windows of a length."""
    depth = len(model.params["layers"])
    kv_heads = jax.eval_shape(
        lambda ids: decoding.summarize(model.decoder, model.params, ids).head_scores,
        jax.ShapeDtypeStruct((1, 2), jnp.int32),
    ).shape[-1]
    start = min(1.0, 1.5 * way.share)
    budgets = ja.ramp(depth, length, way.share, start=start, front=0.0, multiple=1)
    heads = ja.ramp(depth, kv_heads, way.heads, front=0.3, multiple=1)
    numbers: tuple[Any, Any] = (np.asarray(heads, np.float32), np.float32(way.values))
    kept = decoding.Kept(numbers[0], numbers[1], settings.threshold)
    recent = min(16, min(budgets) // 2)
    return kept, decoding.Plan(budgets, way.bits, recent=recent)


def measured(
    settings: Settings, model: Model, windows: np.ndarray, way: Way
) -> dict[str, float]:
    """Returns perplexity, and the traffic and products per token."""
    length = windows.shape[1]
    kept, plan = options_of(settings, model, way, length)
    ids = jnp.asarray(windows)
    losses, read = decoding.score(
        model.decoder, model.params, ids, length // 2, kept, plan
    )
    one = jax.eval_shape(
        lambda ids: decoding.summarize(model.decoder, model.params, ids),
        jax.ShapeDtypeStruct((1, 2), jnp.int32),
    )
    dim = one.keys[0].shape[-1]
    total = jax.tree.map(lambda x: float(np.asarray(x, np.float64).mean()), read)
    bits = way.bits or ja.Bits(32, 32, 0, 32)
    rows = (total.keys, total.lower, total.values)
    widths = (bits.msb, bits.lsb, bits.value)
    return {
        "perplexity": float(np.exp(np.asarray(losses, np.float64).mean())),
        "bytes": dim * sum(n * w for n, w in zip(rows, widths, strict=True)) / 8,
        "products": dim * total.products,
        "refetched": 100 * total.unsure / total.rows,
    }


def judged(settings: Settings, model: Model) -> dict[str, Any]:
    """Returns the chosen pruning, and the breakdown on each text."""
    curves: dict[str, dict[str, list[float]]] = {
        name: {"bytes": [], "perplexity": []} for name in ROWS[1:]
    }
    dense = measured(settings, model, model.choose, Way())
    tried = []
    for share in sorted(settings.shares, reverse=True):
        found = dense
        for name, way in ways(settings.usual._replace(share=share)).items():
            if name == ROWS[0]:
                continue
            found = measured(settings, model, model.choose, way)
            for key in ("bytes", "perplexity"):
                curves[name][key].append(rounded(found[key]))
        tried.append((settings.usual._replace(share=share), found))
    for way in settings.milder:
        tried.append((way, measured(settings, model, model.choose, way)))
    curves["dense"] = {k: [rounded(dense[k])] for k in ("bytes", "perplexity")}
    limit = (1 + settings.rise / 100) * dense["perplexity"]
    chosen = pick(tried, limit)
    texts = {
        name: {
            row: measured(settings, model, windows, way)
            for row, way in ways(chosen).items()
        }
        for name, windows in model.tests.items()
    }
    return {
        "chosen": jsonable(chosen),
        "tried": [{**jsonable(way), **found} for way, found in tried],
        "curves": curves,
        "texts": texts,
        "seconds": seconds(settings, model, chosen.share),
    }


def pick(tried: list[tuple[Way, dict[str, float]]], limit: float) -> Way:
    """Returns the candidate with the least traffic within the limit of perplexity.

    If there is none, the candidate with the least perplexity is returned.
    """
    good = [(way, found) for way, found in tried if found["perplexity"] <= limit]
    if good:
        return min(good, key=lambda one: one[1]["bytes"])[0]
    return min(tried, key=lambda one: one[1]["perplexity"])[0]


def jsonable(way: Way) -> dict[str, Any]:
    """Converts a `Way` to plain dicts."""
    return way._asdict() | {"bits": way.bits and way.bits._asdict()}


def seconds(settings: Settings, model: Model, share: float) -> dict[str, float]:
    """Returns milliseconds per decoded token of all windows, including the prompt.

    Only the smaller caches are faster here; heads, values and bits are masks and
    rounding.
    """
    windows = jnp.asarray(next(iter(model.tests.values())))
    length = windows.shape[1]
    forms = {}
    for name, way in (("dense", Way()), ("tokens", Way(share))):
        kept, plan = options_of(settings, model, way, length)
        inputs = (model.decoder, model.params, windows, length // 2, kept, plan)
        forms[name] = functools.partial(decoding.score, *inputs)
    tokens = length - length // 2 - 1
    return {n: 1e3 * t / tokens for n, t in timing.in_turns(forms, 3).items()}


STUDY = Study(settings=Settings(), claims=report.claims("stories260K and GPT"), run=run)
TOY_STUDY = Study(
    settings=Settings(
        steps=60, length=64, width=32, depth=3, shares=(0.8, 0.5), milder=(), toy=True
    ),
    claims=report.claims("toy GPT"),
    run=run,
)
