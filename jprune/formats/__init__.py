"""Sparse formats for pruned weights: in memory, in products and in files.

A format is a function `(weight, mask) -> packed`, and exact:

    pack_bits              kept values and a bit per weight -> BitMask
    pack_n_of_m(n, m)      makes a format: N:M pattern, such as 2:4 -> NOfM
    pack_blocks(height, width)     makes a format: whole blocks of a matrix -> Blocks
    pack_dense             all values and the mask, for any leaf -> Dense
    packed.unpack()        back to the weight and its mask
    is_packed              tells packed weights (type `Packed`) from other leaves
    FormatError            raised if a mask does not fit a format, such as N:M

A tree of weights, each in the format of a rule on its path:

    pack_tree              `Rules`, pairs of a pattern and a `Format` -> packed tree
    unpack_tree            back to params and masks
    packed_sizes           bytes of each leaf, before and after

Files (safetensors):

    save_packed, load_packed     a tree of packed weights, verified by checksums
    save_dense                   masked weights for any other tool

Products with packed weights:

    block_matmul           on CPUs, faster than dense from moderate sparsity on
    n_of_m_matmul          a reference, which saves memory and no time
    with_values            other values in the same positions, for `jax.grad`

Sparse matrices of `jax.experimental.sparse`:

    to_bcoo, to_bcsr       from a weight and its mask
    of_bcoo, of_bcsr       back to a weight and its mask

Formats save memory and file size. Only blocks and BCSR also save time, on CPUs.

To read the code, start with `_formats`; `_grouped` has N:M patterns.
"""

from jprune.formats._coordinates import of_bcoo as of_bcoo
from jprune.formats._coordinates import of_bcsr as of_bcsr
from jprune.formats._coordinates import to_bcoo as to_bcoo
from jprune.formats._coordinates import to_bcsr as to_bcsr
from jprune.formats._formats import Format as Format
from jprune.formats._formats import FormatError as FormatError
from jprune.formats._formats import pack_bits as pack_bits
from jprune.formats._formats import pack_blocks as pack_blocks
from jprune.formats._formats import pack_dense as pack_dense
from jprune.formats._grouped import pack_n_of_m as pack_n_of_m
from jprune.formats._packed import BitMask as BitMask
from jprune.formats._packed import Blocks as Blocks
from jprune.formats._packed import Dense as Dense
from jprune.formats._packed import NOfM as NOfM
from jprune.formats._packed import Packed as Packed
from jprune.formats._packed import is_packed as is_packed
from jprune.formats._products import block_matmul as block_matmul
from jprune.formats._products import n_of_m_matmul as n_of_m_matmul
from jprune.formats._products import with_values as with_values
from jprune.formats._safetensors import load_packed as load_packed
from jprune.formats._safetensors import save_dense as save_dense
from jprune.formats._safetensors import save_packed as save_packed
from jprune.formats._tree import Rules as Rules
from jprune.formats._tree import pack_tree as pack_tree
from jprune.formats._tree import packed_sizes as packed_sizes
from jprune.formats._tree import unpack_tree as unpack_tree
