"""Cycles of a matrix product on a systolic array, in closed form.

One operand stays in the array, tile by tile, while another streams through it. For
A (m, k) times W (k, n) on R rows and C columns:

    stationary  tiles                     lines of each    fill and drain
    weights     ceil(k / R) ceil(n / C)   m                2 R + C - 2
    outputs     ceil(m / R) ceil(n / C)   k                R + C - 2
    inputs      ceil(k / R) ceil(m / C)   n                2 R + C - 2

With the fill counted for each tile, tiles (lines + fill) - 1 are exactly SCALE-Sim's
cycles. Machines with double-buffered operands hide the fill, which leaves tiles times
lines: also ZigZag's count, except for loading and unloading.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jprune.hardware import _ranges
from jprune.hardware._arithmetic import Arithmetic, hard

DATAFLOWS = ("weights", "outputs", "inputs")
"""Names of the stationary operands, in the order of `Accelerator.dataflows`."""


class Tiles(NamedTuple):
    """Tiling of a product onto an array in one dataflow.

    Attributes:
      down: tiles along the rows.
      across: tiles along the columns.
      lines: lines that stream through each tile, one per cycle.
      fill: cycles to load, fill and drain a tile.
    """

    down: Any
    across: Any
    lines: Any
    fill: Any


def tiling(
    sizes: tuple[Any, Any, Any], rows: Any, columns: Any, r: Arithmetic | None = None
) -> tuple[Tiles, Tiles, Tiles]:
    """Returns the tiles of a product in the three dataflows.

    Args:
      sizes: m, n, k.
      rows: R.
      columns: C.
      r: hard or smooth arithmetic; hard if None.

    Returns:
      `Tiles` for stationary weights, outputs and inputs.

    Example:
      >>> weights, outputs, inputs = tiling((50, 30, 20), 8, 16)
      >>> [float(x) for x in outputs]
      [7.0, 2.0, 20.0, 22.0]
    """
    r = r or hard()
    m, n, k = sizes
    over_k, over_n = r.tiles(k / rows), r.tiles(n / columns)
    loaded = 2 * rows + columns - 2
    return (
        Tiles(over_k, over_n, m, loaded),
        Tiles(r.tiles(m / rows), over_n, k, rows + columns - 2),
        Tiles(over_k, r.tiles(m / columns), n, loaded),
    )


def cycles(
    sizes: tuple[Any, Any, Any],
    rows: Any,
    columns: Any,
    *,
    fill: Any = 1.0,
    r: Arithmetic | None = None,
) -> jax.Array:
    """Returns the cycles of a product in the three dataflows.

    tiles (lines + fill * (fill and drain)) - fill: SCALE-Sim's with `fill` 1.

    Args:
      sizes: m, n, k.
      rows: R.
      columns: C.
      fill: fraction in [0, 1] of fill and drain that is not hidden.
      r: hard or smooth arithmetic; hard if None.

    Returns:
      `(3,)` in the order of `DATAFLOWS`; exact in float32 below 2^24, see
      `exact_cycles`.

    Raises:
      PruningError: as in `check_sizes`.

    Example:
      >>> cycles((512, 768, 768), 128, 128).tolist()
      [32183.0, 24527.0, 27599.0]

    References:
      Samajdar et al., SCALE-Sim: Systolic CNN Accelerator Simulator, 2018,
      arXiv:1811.02883. The formulas are those of its version 3.
    """
    check_sizes(sizes, rows, columns)
    found = tiling(sizes, rows, columns, r)
    each = [t.down * t.across * (t.lines + fill * t.fill) - fill for t in found]
    return jnp.stack(each)


def hidden_cycles(
    sizes: tuple[Any, Any, Any],
    rows: Any,
    columns: Any,
    *,
    bytes_per_cycle: Any,
    sram: Any,
    r: Arithmetic | None = None,
) -> Any:
    """Returns the cycles of a single product with hidden fill and stationary weights.

    max(m tiles + load, (W + O + tile) / bandwidth), where the load is what precedes the
    first product: the inputs, as many of them as the chip holds at once, and a tile of
    weights. This is ZigZag's convention for a TPU-like machine; it lets the transfer of
    the inputs run in parallel with that of the weights.

    Args:
      sizes: m, n, k; 8 bits each.
      rows: R.
      columns: C.
      bytes_per_cycle: DRAM bandwidth, bytes per cycle.
      sram: bytes for inputs and outputs.
      r: hard or smooth arithmetic; hard if None.

    Returns:
      A scalar, cycles.

    Raises:
      PruningError: if a size, the bandwidth or the SRAM is not positive; a traced one
        is a `checkify` debug check.

    Example:
      >>> float(hidden_cycles((512, 768, 768), 32, 32, bytes_per_cycle=64, sram=2**21))
      301072.0

    References:
      Mei et al., ZigZag: Enlarging Joint Architecture-Mapping Design Space Exploration
      for DNN Accelerators, 2021. The formula was inferred from its version 3.9.1.
    """
    check_sizes(sizes, rows, columns)
    given = {"bytes_per_cycle": bytes_per_cycle, "sram": sram}
    _ranges.check_numbers(_ranges.POSITIVE, **given)
    r = r or hard()
    m, n, k = sizes
    kept = tiling(sizes, rows, columns, r)[0]
    tile = rows * columns / bytes_per_cycle
    load = m * k / r.tiles(m * k / sram) / bytes_per_cycle
    stream = (k * n + m * n) / bytes_per_cycle
    return r.larger(kept.down * kept.across * m + load + tile, stream + tile)


class Wide(NamedTuple):
    """An integer below 2^64 in two halves, without 64-bit types.

    Attributes:
      high: uint32, the multiples of 2^32.
      low: uint32, the remainder.
    """

    high: jax.Array
    low: jax.Array


def exact_cycles(
    sizes: tuple[Any, Any, Any],
    rows: Any,
    columns: Any,
    *,
    batch: Any = 1,
    counted: bool = True,
) -> Wide:
    """Returns the cycles of a product in the three dataflows, exactly.

    batch tiles (lines + fill and drain) - 1, or batch tiles lines with the fill hidden,
    in integers. Jits and vmaps.

    Args:
      sizes: m, n, k: integers, positive, below 2^31.
      rows: R, an integer.
      columns: C, an integer.
      batch: number of such products.
      counted: static; whether fill and drain count.

    Returns:
      `(3,)` in the order of `DATAFLOWS`; below 2^64 if batch times tiles is below 2^32.

    Raises:
      PruningError: as in `check_sizes`.

    Example:
      >>> to_int(exact_cycles((2**20, 2**14, 2**14), 128, 128)).tolist()
      [17186127871, 17446207487, 17580425215]
    """
    check_sizes(sizes, rows, columns)
    m, n, k, rows, columns, batch = (
        jnp.asarray(x).astype(jnp.uint32) for x in (*sizes, rows, columns, batch)
    )
    one = np.uint32(1)

    def over(a: jax.Array, b: jax.Array) -> jax.Array:
        return (a + b - one) // b

    loaded = 2 * rows + columns - np.uint32(2)
    found = (
        (over(k, rows) * over(n, columns), m, loaded),
        (over(m, rows) * over(n, columns), k, rows + columns - np.uint32(2)),
        (over(k, rows) * over(m, columns), n, loaded),
    )
    tiles = jnp.stack([t for t, _, _ in found]) * batch
    lines = jnp.stack([x + f if counted else x for _, x, f in found])
    product = multiply(tiles, lines)
    return minus_small(product, jnp.asarray(one)) if counted else product


def multiply(a: jax.Array, b: jax.Array) -> Wide:
    """Multiplies two uint32 arrays exactly.

    By halves of 16 bits: a b = ah bh 2^32 + (ah bl + al bh) 2^16 + al bl.

    Args:
      a: uint32.
      b: uint32.

    Returns:
      A `Wide`.

    Example:
      >>> import jax.numpy as jnp
      >>> a = jnp.uint32(2**31)
      >>> product = multiply(a, jnp.uint32(6))  # 3 * 2^32
      >>> int(product.high), int(product.low)
      (3, 0)
    """
    shift, mask = np.uint32(16), np.uint32(0xFFFF)
    ah, al, bh, bl = a >> shift, a & mask, b >> shift, b & mask
    low, middle = al * bl, ah * bl
    middle = middle + (low >> shift)  # below 2^32: a product of halves leaves room
    other = al * bh + (middle & mask)
    high = ah * bh + (middle >> shift) + (other >> shift)
    return Wide(high, (other << shift) | (low & mask))


def add(a: Wide, b: Wide) -> Wide:
    """Returns a + b.

    Args:
      a: a `Wide`.
      b: a `Wide`.

    Returns:
      A `Wide`.

    Example:
      >>> import jax.numpy as jnp
      >>> a = Wide(jnp.uint32(0), jnp.uint32(2**32 - 1))
      >>> found = add(a, Wide(jnp.uint32(2), jnp.uint32(1)))
      >>> int(found.high), int(found.low)
      (3, 0)
    """
    low = a.low + b.low
    return Wide(a.high + b.high + (low < a.low).astype(jnp.uint32), low)


def minus_small(a: Wide, b: jax.Array) -> Wide:
    """Returns a - b, which must not be negative.

    Args:
      a: a `Wide`.
      b: uint32.

    Returns:
      A `Wide`.

    Example:
      >>> import jax.numpy as jnp
      >>> found = minus_small(Wide(jnp.uint32(1), jnp.uint32(0)), jnp.uint32(1))
      >>> int(found.high), int(found.low)  # 2^32 - 1
      (0, 4294967295)
    """
    borrow = (a.low < b).astype(jnp.uint32)
    return Wide(a.high - borrow, a.low - b)


def to_int(a: Wide) -> np.ndarray:
    """Converts to a NumPy array of uint64, on the host.

    Args:
      a: a `Wide`.

    Returns:
      An array of its shape.

    Example:
      >>> import jax.numpy as jnp
      >>> int(to_int(Wide(jnp.uint32(1), jnp.uint32(5))))  # 2^32 + 5
      4294967301
    """
    high, low = (np.asarray(x, np.uint64) for x in a)
    return (high << np.uint64(32)) | low


def check_sizes(sizes: tuple[Any, Any, Any], rows: Any, columns: Any) -> None:
    """Raises if sizes of a product or an array are not positive.

    Args:
      sizes: m, n, k.
      rows: R.
      columns: C.

    Raises:
      PruningError: names the size; a traced one is a `checkify` debug check.

    Example:
      >>> check_sizes((64, 32, 0), rows=8, columns=8)
      Traceback (most recent call last):
          ...
      jprune._core.base.PruningError: k has to be positive; got 0.
    """
    m, n, k = sizes
    named = {"m": m, "n": n, "k": k, "rows": rows, "columns": columns}
    _ranges.check_numbers(_ranges.POSITIVE, **named)
