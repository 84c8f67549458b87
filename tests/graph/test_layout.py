"""Roles of kernel axes from the trace, against the matrix products themselves."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

import jprune as jp
from jprune import graph as jg


def normal(*shape, seed=0):
    draw = np.random.default_rng((seed, *shape)).normal
    return jnp.asarray(draw(size=shape), jnp.float32)


def roles(fn, params, *inputs):
    """Input and output axes of each kernel, as strings of digits."""
    layout = jg.layout(jg.trace(fn, params, *inputs))
    digits = lambda axes: "".join(map(str, axes))  # noqa: E731
    found = {}
    for path, leaf in jp.tree.by_path(params).items():
        if np.ndim(leaf) > 1:
            each = layout(path, leaf)
            found[path] = digits(each.input) + "->" + digits(each.output)
    return found


def check_two_of_four(fn, params, x):
    """Asserts that each sum of a linear function has two zeros in every four terms.

    The derivative of a result by the inputs is what its dot product multiplies them by.
    """
    layout = jg.layout(jg.trace(fn, params, x))
    sparse, _ = jp.prune(params, jp.recipes.n_of_m(2, 4, layout=layout))
    each = np.asarray(jax.jacobian(fn, argnums=1)(sparse, x))
    fours = each.reshape(-1, x.size // 4, 4)
    np.testing.assert_array_equal((fours != 0).sum(-1), 2)


def test_two_of_four_along_the_contracted_axis():
    def hugging_face(p, x):
        return x @ p["model.layers.0.self_attn.q_proj.weight"].T

    p = {"model.layers.0.self_attn.q_proj.weight": normal(4, 8)}
    check_two_of_four(hugging_face, p, normal(8))

    def heads(p, x):
        return jnp.einsum("d,dhk->hk", x, p["q_proj"]["kernel"])

    check_two_of_four(heads, {"q_proj": {"kernel": normal(8, 4, 4)}}, normal(8))

    def scanned(p, x):
        """MaxText: a kernel (embed, layers, mlp), and a scan over the layers."""
        stacked = jnp.moveaxis(p["wi_0"]["kernel"], 1, 0)
        return lax.scan(lambda x, w: (x, x @ w), x, stacked)[1]

    check_two_of_four(scanned, {"wi_0": {"kernel": normal(8, 4, 12)}}, normal(8))


def test_kernels_of_flax_modules():
    nn = pytest.importorskip("flax.linen")

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.relu(nn.Conv(4, (3, 3), name="conv")(x))
            x = nn.Conv(4, (3, 3), feature_group_count=4, name="depthwise")(x)
            x = nn.MultiHeadDotProductAttention(2, name="mha")(x.reshape(1, 9, 4))
            x = nn.DenseGeneral((2, 3), name="split")(x)
            x = nn.DenseGeneral(5, axis=(-2, -1), name="join")(x)
            return nn.Dense(3, name="dense")(x)

    x = normal(1, 3, 3, 2)
    variables = Net().init(jax.random.key(0), x)
    found = roles(Net().apply, variables, x)
    kernels = {p: r for p, r in found.items() if p.endswith("kernel")}
    biases = {r for p, r in found.items() if p.endswith("bias")}
    assert biases == {"->"}
    assert kernels == {
        "params/conv/kernel": "2->3",
        "params/depthwise/kernel": "2->3",
        "params/mha/query/kernel": "0->12",
        "params/mha/key/kernel": "0->12",
        "params/mha/value/kernel": "0->12",
        "params/mha/out/kernel": "01->2",
        "params/split/kernel": "0->12",
        "params/join/kernel": "01->2",
        "params/dense/kernel": "0->1",
    }
    # A pruner sees the params alone, without the name of their collection.
    layout = jg.layout(jg.trace(Net().apply, variables, x))
    kernel = variables["params"]["mha"]["out"]["kernel"]
    assert layout("mha/out/kernel", kernel) == jp.KernelAxes((0, 1), (2,))


def test_layers_experts_and_windows_have_neither_role():
    def net(p, x):
        def block(x, w):  # square kernels, which a residual stream couples
            x = x + jax.checkpoint(lambda x: jnp.tanh(x @ w["square"]))(x)
            routed = jnp.stack([x[:2], x[2:]])
            each = jnp.einsum("end,edf->enf", routed, w["experts"])
            each = jnp.einsum("enf,efd->end", jax.nn.relu(each), w["down"])
            return x + each.reshape(x.shape), None

        x = lax.scan(block, x, p["blocks"])[0]
        patches = x.reshape(1, 2, 2, 4)
        out = lax.conv_general_dilated(
            patches,
            p["oihw"],
            (1, 1),
            "SAME",
            dimension_numbers=("NHWC", "OIHW", "NHWC"),
        )
        q, k = jnp.split(out @ jnp.concatenate([p["wq"].T, p["wk"].T], 1), 2, -1)
        rounded = jax.custom_jvp(lambda w: jnp.round(w))  # a straight-through estimate
        rounded.defjvp(lambda p, t: (rounded(*p), t[0]))
        return (q * k) @ rounded(p["half"].reshape(5, 3).astype(x.dtype)).T

    shapes = {"square": (3, 4, 4), "experts": (3, 2, 4, 6), "down": (3, 2, 6, 4)}
    p = {"blocks": {name: normal(*s) for name, s in shapes.items()}}
    p |= {"oihw": normal(4, 4, 3, 3), "wq": normal(3, 4), "wk": normal(3, 4, seed=1)}
    p |= {"half": normal(5, 1, 3).astype(jnp.bfloat16)}
    assert roles(net, p, normal(4, 4)) == {
        "blocks/down": "2->3",
        "blocks/experts": "2->3",
        "blocks/square": "1->2",
        "half": "2->0",
        "oihw": "1->0",
        "wk": "1->0",
        "wq": "1->0",
    }


def test_an_axis_with_two_roles_is_refused_with_both_lines():
    def tied(p, tokens):
        x = jax.nn.one_hot(tokens, 8) @ p["table"]
        return jnp.tanh(x @ p["square"]) @ p["table"].T

    p = {"table": normal(8, 4), "square": normal(4, 4)}
    layout = jg.layout(jg.trace(tied, p, jnp.arange(3)))
    assert layout("square", p["square"]) == jp.KernelAxes((0,), (1,))
    said = r"Axis 0 of 'table' has no single role: it is contracted at .*test_layout.py"
    with pytest.raises(jp.PruningError, match=f"{said}.* and an output at"):
        layout("table", p["table"])

    def packed(p, x):
        return x @ p["w"].reshape(3, 5)

    layout = jg.layout(jg.trace(packed, {"w": normal(1, 15)}, normal(2, 3)))
    with pytest.raises(jp.PruningError, match=r"Axis 1 of 'w' .* contracted"):
        layout("w", normal(1, 15))

    def looked_up(p, tokens):
        return p["table"][tokens] @ p["table"].T

    layout = jg.layout(jg.trace(looked_up, p, jnp.arange(3)))
    assert layout("table", p["table"]) == jp.KernelAxes((1,), (0,))


def test_leaves_without_roles_and_other_leaves_are_refused_by_name():
    def net(p, x):
        return x @ p["a"]["w"] * p["scale"]

    p = {"a": {"w": normal(4, 8)}, "scale": normal(4, 8)}
    layout = jg.layout(jg.trace(net, p, normal(4, 4)))
    assert layout("scale", p["scale"]) == jp.KernelAxes((), ())
    magnitude, top = jp.score_by_magnitude(), jp.keep_top
    for role, link in (
        ("input", jp.keep_n_of_m(2, 4, layout=layout)),
        ("output", optax.chain(jp.pool_over_axes(layout=layout), top(0.5))),
        ("input", top(0.5, allocation=jp.links.erdos_renyi(layout=layout))),
    ):
        with pytest.raises(jp.PruningError, match=f"no {role} axis for 'scale'"):
            jp.prune(p, optax.chain(magnitude, link), where=jp.matching("scale"))
    with pytest.raises(jp.PruningError, match=r"no leaves at 'b'.*a/w, scale"):
        layout("b", normal(4, 4))
    with pytest.raises(jp.PruningError, match=r"\(4, 8\) at a/w; got \(8, 4\)"):
        layout("a/w", normal(8, 4))
