"""The recipes of docs/guides/models.md: small functions are networks of small sizes."""

import jax
import numpy as np

from jprune import graph as jg


def check(names):
    """The small functions equal the same models, made with the sizes that are left."""
    images, tokens, mask = names["images"], names["tokens"], names["mask"]
    llama, unet, mobile = (names[f"{n}_small"] for n in ("llama", "unet", "mobile"))
    whisper, wide = names["whisper_small"], {}
    for name, mask_of in mobile.keep.items():
        wide["first" in name] = int(mask_of.sum())
    widths = {n: names["widths"][n][1] for n in ("down", "low", "up")}
    left = jg.sizes(unet.graph, unet.keep)
    groups = tuple(left.get(f"params/{n}/kernel[3]", 4) for n in ("down", "low"))
    small_unet = names["UNet"](**widths, groups=groups)
    small_mobile = names["MobileNet"]((wide[True], wide[False]))
    small_bert = names["Bert"](**_sizes_of_bert(names["left"]))

    def both():
        bert = names["bert_fn"](names["small_bert"], tokens, mask)
        moe, p = names["moe_fn"], names["small_experts"]
        without = jg.without_entries(whisper.graph, whisper.keep)
        inputs = (names["mel"], tokens)
        return [
            (bert, small_bert.apply(names["small_bert"], tokens, mask)),
            (llama.fn(llama.params, tokens), names["llama"](llama.params, tokens)),
            (unet.fn(unet.params, images), small_unet.apply(unet.params, images)),
            (
                mobile.fn(mobile.params, images),
                small_mobile.apply(mobile.params, images),
            ),
            (moe(p, names["x"]), names["mixture"](p, names["x"])),
            (whisper.fn(whisper.params, *inputs), without(names["whisper"], *inputs)),
            (names["vit_fn"](names["small_vit"], images), names["vit_rebuilt"](images)),
        ]

    for found, wanted in jax.jit(both)():
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=2e-5)
    check_sizes(names)


def _sizes_of_bert(left):
    sizes = {"heads": 4, "hidden": 64, "pooled": 32}
    for name, n in left.items():
        (which,) = (
            w
            for w, p in (("heads", "Att"), ("hidden", "up"), ("pooled", "pool"))
            if p in name
        )
        sizes[which] = n
    return sizes


def check_sizes(names):
    """Heads are whole, the ratio of queries to keys is 2, and the rest is as it was."""
    attend = names["small_vit"].attend
    assert attend.query.kernel.shape == (32, 2, 8)
    assert attend.out.kernel.shape == (2, 8, 32)
    layers = names["llama_small"].params["layers"]
    for p in layers:
        heads = p["k"].shape[1]
        assert p["q"].shape == (32, 2 * heads, 4)
        assert p["v"].shape == p["k"].shape
        assert p["o"].shape == (2 * heads, 4, 32)
    assert any(p["k"].shape[1] < 4 for p in layers)
    small, full = names["llama_small"], names["params"]
    assert small.params["embed"].shape == full["embed"].shape
    assert small.cost_after <= 0.6 * small.cost_before
    bert = names["small_bert"]["params"]
    assert bert["words"]["embedding"].shape == (50, 32)
    assert names["widths"]["up"][0] == sum(
        names["widths"][n][1] for n in ("low", "down")
    )
    kept = names["small_experts"]
    assert {kept["router"].shape[1], kept["up"].shape[0], kept["down"].shape[0]} == {4}
