"""Checkpoints that were damaged, are foreign, or belong to another model."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from support.damage import flip, saved_files, seal, small
from support.exact import assert_same, files_of

from jprune import checkpoint

ERROR = checkpoint.CheckpointError


def refuses(directory, like, match, **kwargs):
    """Restoring fails, names the checkpoint and why, and touches nothing."""
    before = files_of(directory)
    with pytest.raises(ERROR, match=match) as caught:
        checkpoint.restore(directory, like, **kwargs)
    assert str(directory) in str(caught.value)
    assert files_of(directory) == before
    return str(caught.value)


def says(data):
    try:
        return json.loads(data)
    except ValueError:
        return None


def test_one_flipped_bit_is_never_silent(tmp_path):
    state = small()
    path = checkpoint.save(tmp_path, 3, state)
    rng = np.random.default_rng(2)
    for file in saved_files(path):
        intact = file.read_bytes()
        size = 8 * len(intact)
        for bit in rng.choice(size, min(size, 40), replace=False):
            flip(file, bit)
            # White space is all that may change, and only a manifest has some.
            if file.name == "manifest.json" and says(file.read_bytes()) == says(intact):
                assert_same(checkpoint.restore(tmp_path, state), state)
            else:
                refuses(tmp_path, state, "cannot restore")
            flip(file, bit)
        assert file.read_bytes() == intact
    assert_same(checkpoint.restore(tmp_path, state), state)


def test_what_orbax_reads_wrongly_is_caught_by_the_leaf(tmp_path):
    state = {"w": small()["w"]}
    path = checkpoint.save(tmp_path, 3, state)
    largest = max(saved_files(path / "arrays"), key=lambda file: file.stat().st_size)
    messages = []
    for bit in range(8 * 2000, 8 * 2000 + 160, 20):
        flip(largest, bit)
        seal(path, lambda _: None)  # as if the files had been written like this
        messages.append(refuses(tmp_path, state, "cannot restore"))
        flip(largest, bit)
    assert any("leaf 'w': it does not match its checksum" in m for m in messages)


@pytest.mark.parametrize("length", [0, 0.5, 0.99, None])
def test_truncated_and_deleted_files_are_named(length, tmp_path):
    state = small()
    path = checkpoint.save(tmp_path, 3, state)
    for file in saved_files(path):
        data = file.read_bytes()
        file.unlink()
        if length is not None:
            file.write_bytes(data[: int(length * len(data))])
        refuses(tmp_path, state, file.name)
        file.write_bytes(data)
    assert_same(checkpoint.restore(tmp_path, state), state)


def emptied(path):
    shutil.rmtree(path)
    path.mkdir()


def not_a_checkpoint(path):
    emptied(path)
    (path / "notes.txt").write_text("hello")


def foreign_orbax(path):
    shutil.rmtree(path)
    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(path, args=ocp.args.PyTreeSave({"w": np.ones(3)}))


def not_utf8(path):
    (path / "manifest.json").write_bytes(b"\xff\xfe{}")


def other_json(path):
    (path / "manifest.json").write_text("[1, 2]")


def deep_json(path):
    (path / "manifest.json").write_text("[" * 100_000)


def other_schema(path):
    seal(path, lambda manifest: manifest.update(schema=2))


def schema_true(path):
    seal(path, lambda manifest: manifest.update(schema=True))  # equal to 1


def edited(path):
    text = (path / "manifest.json").read_text()
    (path / "manifest.json").write_text(text.replace("float32", "float16"))


def without_leaves(path):
    seal(path, lambda manifest: manifest.pop("leaves"))


def of_another_step(path):
    seal(path, lambda manifest: manifest.update(step=4))


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (emptied, "no manifest.json"),
        (not_a_checkpoint, "no manifest.json"),
        (foreign_orbax, "no manifest.json"),
        (not_utf8, "damaged"),
        (other_json, "not written by jprune"),
        (deep_json, "RecursionError"),
        (other_schema, "schema is 2; this version reads 1"),
        (schema_true, "schema is True; this version reads 1"),
        (edited, "own checksum"),
        (without_leaves, "KeyError: 'leaves'"),
        (of_another_step, "holds step 4"),
    ],
)
def test_foreign_and_damaged_checkpoints_are_named(damage, match, tmp_path):
    state = small()
    checkpoint.save(tmp_path, 2, state)
    damage(checkpoint.save(tmp_path, 3, state))
    refuses(tmp_path, state, match)
    # It is not skipped unseen, and the one before is as good as ever.
    assert checkpoint.all_steps(tmp_path) == [2, 3]
    assert_same(checkpoint.restore(tmp_path, state, step=2), state)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"w": jnp.zeros((40, 50), jnp.bfloat16)}, "leaf 'w'.*float32.*bfloat16"),
        ({"w": np.zeros((40, 50), np.uint8)}, "leaf 'w'.*float32.*uint8"),
        ({"w": jnp.zeros((50, 40))}, r"leaf 'w'.*\[40, 50\].*\[50, 40\]"),
        ({"mask": jnp.zeros((40, 50), jnp.uint8)}, "leaf 'mask'.*bool.*uint8"),
        ({"empty": jnp.zeros((0, 3))}, "leaf 'empty'"),
        ({"key": jax.ShapeDtypeStruct((2,), np.uint32)}, "leaf 'key'"),
        ({"count": 5}, "leaf 'count'.*int32.*Python int"),
        ({"count": "five"}, "leaf 'count': it is a str"),
        ({"more": {"of": jnp.ones(2)}}, "`like` that it lacks: more/of;"),
        ({"w": None}, "that `like` lacks: w$"),
    ],
)
def test_a_changed_model_is_refused_leaf_by_leaf(change, match, tmp_path):
    checkpoint.save(tmp_path, 3, small())
    refuses(tmp_path, {**small(), **change}, match)


def test_another_prng_is_refused(tmp_path):
    checkpoint.save(tmp_path, 3, {"key": jax.random.key(0, impl="rbg")})
    refuses(tmp_path, {"key": jax.random.key(0, impl="unsafe_rbg")}, "leaf 'key'")


def test_what_jax_would_cast_is_refused(tmp_path):
    checkpoint.save(tmp_path, 3, {"x": np.ones(3)})
    like = {"x": jax.ShapeDtypeStruct((3,), np.float64)}
    refuses(tmp_path, like, "leaf 'x'.*float64 to float32.*jax_enable_x64")


def test_steps_that_are_not_there(tmp_path):
    refuses(tmp_path, {}, "no checkpoint was saved in this directory$")
    nowhere = tmp_path / "nowhere"
    with pytest.raises(ERROR, match=f"from {nowhere}: this directory does not exist$"):
        checkpoint.restore(nowhere, {}, step=3)
    assert checkpoint.latest_step(nowhere) is None
    checkpoint.save(tmp_path, 3, small())
    refuses(tmp_path, small(), "no checkpoint of step 4; its steps are 3$", step=4)
    for step in range(5, 30):
        (tmp_path / f"step_{step:08d}").mkdir()
    listed = ", ".join(map(str, range(10, 30)))
    refuses(tmp_path, {}, f"its steps are {listed}, and 6 earlier ones$", step=4)
