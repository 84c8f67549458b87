"""Trains a small net on digits; killed at any moment and started again, it resumes.

`test_resume.py` runs it as a process of its own. Everything that the run depends
on is in the checkpointed state, or a function of the step.
"""

import argparse
import hashlib
import itertools
import os
import re
import signal
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jprune as jp
from jprune import checkpoint

TX = jp.sparsify(
    optax.adamw(3e-3, weight_decay=1e-2),
    jp.recipes.gradual_magnitude(0.9, begin=0, steps=90),
    every=7,
)


@jax.jit
def init() -> dict:
    rng = np.random.default_rng(0)
    params = {
        "hidden": {"kernel": rng.normal(size=(64, 48)) / 8, "bias": np.zeros(48)},
        "out": {"kernel": rng.normal(size=(48, 10)) / 7, "bias": np.zeros(10)},
    }
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)
    return {
        "params": params,
        "optimizer": TX.init(params),
        "key": jax.random.key(1),
        "scale": jnp.asarray(1.0),  # weakly typed, and it stays so
    }


@jax.jit
def train_step(state: dict, x, y) -> dict:
    key, noise = jax.random.split(state["key"])

    def loss_fn(params):
        hidden = x @ params["hidden"]["kernel"] + params["hidden"]["bias"]
        hidden = jax.nn.relu(hidden) * jax.random.bernoulli(noise, 0.8, hidden.shape)
        logits = hidden @ params["out"]["kernel"] + params["out"]["bias"]
        # Rounded to bfloat16 only while `scale` is weakly typed.
        logits = logits.astype(jnp.bfloat16) * state["scale"]
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    grads = jax.grad(loss_fn)(state["params"])
    updates, optimizer = TX.update(grads, state["optimizer"], state["params"])
    return {
        "params": optax.apply_updates(state["params"], updates),
        "optimizer": optimizer,
        "key": key,
        "scale": 0.999 * state["scale"],
    }


def digest(state: dict) -> str:
    keys = {**state, "key": jax.random.key_data(state["key"])}
    result = hashlib.sha256()
    for path, leaf in jax.tree.leaves_with_path(keys):
        result.update(f"{path} {leaf.aval}".encode())
        result.update(np.asarray(leaf).tobytes())
    return result.hexdigest()


def append(file: Path, line: str) -> None:
    with open(file, "a") as lines:
        lines.write(line + "\n")


def refuse_pickle(event: str, _: tuple) -> None:
    if event == "pickle.find_class":
        raise RuntimeError("something is being unpickled")


def die_at(event: str, pattern: str, count: str):
    """A hook that kills this process as it is about to touch a file, the nth time.

    Python announces what it asks of the system, such as a rename, before it does.
    """
    hits = itertools.count(1)

    def hook(name: str, args: tuple) -> None:
        is_hit = name == event and re.search(pattern, " ".join(map(str, args[:2])))
        if is_hit and next(hits) == int(count):
            os.kill(os.getpid(), signal.SIGKILL)

    return hook


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("directory", type=Path)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--every", type=int, default=3)
    parser.add_argument("--die", nargs=3, metavar=("EVENT", "PATTERN", "COUNT"))
    args = parser.parse_args()

    if args.die:
        sys.addaudithook(die_at(*args.die))
    sys.addaudithook(refuse_pickle)
    with np.load(args.directory / "digits.npz") as data:
        images, labels = data["images"], data["labels"]

    state, steps = init(), args.directory / "steps"
    start = checkpoint.latest_step(steps) or 0
    append(args.directory / "starts.txt", f"{start}")
    if start:
        state = checkpoint.restore(steps, jax.eval_shape(init))
    for step in range(start, args.steps):
        rows = np.random.default_rng([2, step]).choice(len(images), 64, replace=False)
        state = train_step(state, images[rows], labels[rows])
        if (step + 1) % args.every == 0:
            append(args.directory / "digests.txt", f"{step + 1} {digest(state)}")
            checkpoint.save(steps, step + 1, state)


if __name__ == "__main__":
    main()
