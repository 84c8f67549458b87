"""The forms of `where=`, and messages for trees and patterns that do not fit."""

import collections

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jprune as jp
from jprune import tree

PARAMS = {
    "body": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)},
    "head": {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(2)},
    "table": jnp.arange(4),
}
BOOLS = jax.tree.map(lambda w: False, PARAMS) | {"head": {"kernel": True, "bias": True}}


def _chosen(where, params=PARAMS):
    found = tree.by_path(tree.flags(where, params))
    assert all(type(c) is bool for c in found.values())
    return [path for path, c in found.items() if c]


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        (lambda path, leaf: leaf.ndim == 2, ["body/kernel", "head/kernel"]),
        ("head/.*", ["head/bias", "head/kernel"]),
        (["head/kernel", "body/b.*"], ["body/bias", "head/kernel"]),
        (("body/.*",), ["body/bias", "body/kernel"]),
        (BOOLS, ["head/bias", "head/kernel"]),
        (jax.tree.map(np.bool_, BOOLS), ["head/bias", "head/kernel"]),
    ],
    ids=["predicate", "pattern", "list", "tuple", "bools", "numpy"],
)
def test_every_form_selects_the_same_leaves_everywhere(where, expected):
    assert _chosen(where) == expected
    half = jp.recipes.magnitude(0.5)

    def is_chosen(masks):
        return [p for p, m in tree.by_path(masks).items() if np.shape(m) != ()]

    assert is_chosen(jp.prune(PARAMS, half, where=where)[1]) == expected
    tx = jp.sparsify(optax.sgd(0.1), half, every=None, where=where)
    state = tx.init(PARAMS)
    assert is_chosen(jp.masks_of(state)) == expected
    _, state = jp.refresh(half, state, PARAMS, where=where)
    assert is_chosen(jp.masks_of(state)) == expected
    ticket = jp.training.lottery_ticket(lambda p, m: p, half, where=where)
    assert is_chosen(ticket.init(PARAMS).masks) == expected


def test_params_may_be_a_list():
    params = [jnp.ones((2, 2)), jnp.ones((2, 2)), jnp.ones((2, 2))]
    assert _chosen([True, False, True], params) == ["0", "2"]
    assert _chosen(["0", "1"], params) == ["0", "1"]


def test_a_tree_of_bools_may_be_callable():
    """As Equinox's modules are: it is no predicate."""
    model = eqx.nn.MLP(2, 2, 3, 1, key=jax.random.key(0))
    params = eqx.filter(model, eqx.is_array)
    bools = jax.tree.map(lambda w: w.ndim == 2, params)
    assert callable(bools)
    assert _chosen(bools, params) == ["layers/0/weight", "layers/1/weight"]


def test_bools_of_the_whole_tree_fit_a_part_of_it():
    """`optax.masked` and `optax.partition` hide leaves from what they wrap."""
    floats = {k: w for k, w in PARAMS.items() if k != "table"}
    meant = {k: b for k, b in BOOLS.items() if k != "table"}
    tx = jp.sparsify(optax.sgd(0.1), jp.recipes.magnitude(0.5), end=0, where=meant)
    labels = jp.label(floats, [("body/.*", "dense"), (".*", "sparse")])
    tx = optax.partition({"dense": optax.sgd(0.1), "sparse": tx}, labels)
    _, state = tx.update(floats, tx.init(floats), floats)
    masks = tree.by_path(jp.masks_of(state))
    assert int(masks["head/kernel"].sum()) == 3
    assert np.shape(masks["body/kernel"]) == ()


@pytest.mark.parametrize(
    ("where", "message"),
    [
        (
            {"head": BOOLS["head"]},
            r"^The bools of where have no leaf 'body/bias' \(",
        ),
        (BOOLS | {"tail": True}, r"have a leaf 'tail', which the params lack\.$"),
        (BOOLS | {"table": 1.0}, r"at 'table' it has 1\.0, of type float"),
        (BOOLS | {"table": "no"}, "at 'table' it has 'no', of type str"),
        (BOOLS | {"table": np.ones(4, bool)}, r"shape \(4,\). Masks belong in"),
        (["head/.*", True], "at '0' it has 'head/.*', of type str"),
        ([], "contains no pattern"),
        (None, "selects nothing: it has no leaves"),
        (jax.tree.map(lambda w: False, PARAMS), "selects nothing. Leaves: body/bias"),
        ("heads/.*", "pattern 'heads/.*' matches no leaf"),
        (["head/.*", "tail"], "pattern 'tail' matches no leaf"),
        ("head/[", r"^The pattern 'head/\[' is not a regular expression: untermin"),
    ],
)
def test_what_selects_no_leaves_is_refused(where, message):
    with pytest.raises(jp.PruningError, match=message) as found:
        tree.flags(where, PARAMS)
    assert len(str(found.value)) < 300
    with pytest.raises(jp.PruningError, match=message):
        jp.prune(PARAMS, jp.recipes.magnitude(0.5), where=where)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: jp.matching("a", "b("), r"'b\(' is not a regular .*: missing \)"),
        (lambda: jp.excluding("*"), r"'\*' is not a regular .*: nothing to repeat"),
        (
            lambda: jp.matching(["a", "b"]),
            r"is a string; got \['a', 'b'\], of",
        ),
        (lambda: jp.label(PARAMS, [("(", 1)]), r"'\(' is not a regular"),
        (lambda: jp.select(jp.keep_top(0.5), "("), r"'\(' is not a regular"),
        (lambda: jp.links.uniform(pins=[("(", 0.5)]), r"'\(' is not a regular"),
        (
            lambda: jp.sparsify(optax.sgd(0.1), jp.keep_top(0.5), where="("),
            r"'\(' is not a regular",
        ),
        (
            lambda: jp.recipes.hydra(lambda p, x: 0.0, 0.5, steps=1, where=["("]),
            r"'\(' is not a regular",
        ),
    ],
)
def test_patterns_are_checked_at_construction(make, message):
    with pytest.raises(jp.PruningError, match=message):
        make()


def test_the_first_path_that_differs_is_named():
    like = {"a": {"b": 1, "c": 2}, "d": 3}
    for other, message in (
        (
            {"a": {"b": 1}, "d": 3},
            "^The masks have no leaf 'a/c', which the params h",
        ),
        (
            {"a": 1, "d": 3},
            r"no leaf 'a/b' \(and 1 more\), which .*; they have 'a', ",
        ),
        ({"a": {"b": 1, "c": {"x": 2}}, "d": 3}, "no leaf 'a/c', .* they have 'a/c/x'"),
        (
            like | {"e": None, "f": 4},
            "^The masks have a leaf 'f', which the params",
        ),
        (None, r"no leaf 'a/b' \(and 2 more\)"),
    ):
        with pytest.raises(jp.PruningError, match=message):
            tree.in_tree_of(like, other, "masks")
    with pytest.raises(jp.PruningError, match=r"have shape \(2,\) at 'd', where"):
        tree.in_tree_of(like, like | {"d": np.ones(2)}, "gradients", shapes=True)


def test_the_order_of_keys_and_boxes_do_not_matter():
    like = {"a": 1, "b": 2}
    other = collections.OrderedDict([("b", 20), ("a", 10)])
    assert tree.in_tree_of(like, other, "masks") == {"a": 10, "b": 20}


def test_masks_of_another_tree_are_not_intersected():
    one, two = {"a": jnp.array(True)}, {"b": jnp.array(True)}
    with pytest.raises(jp.PruningError, match="leaf 'a', which the first masks have"):
        jp.masks.intersect(one, two)
