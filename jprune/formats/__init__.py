"""Sparse formats: in memory, in products and in files.

    pack_bits, pack_n_of_m, pack_blocks, pack_dense    one leaf -> a `Packed` format
    pack_tree, unpack_tree, packed_sizes               a tree, by rules on paths
    to_bcoo, to_bcsr, of_bcoo, of_bcsr                 jax.experimental.sparse
    block_matmul, n_of_m_matmul                        products with packed weights
    save_packed, load_packed, save_dense               safetensors files

Formats save memory and files; only blocks, and BCSR on CPUs, save time. Read
`_formats` first.
"""

from jprune.formats._coordinates import of_bcoo as of_bcoo
from jprune.formats._coordinates import of_bcsr as of_bcsr
from jprune.formats._coordinates import to_bcoo as to_bcoo
from jprune.formats._coordinates import to_bcsr as to_bcsr
from jprune.formats._formats import BitMask as BitMask
from jprune.formats._formats import Blocks as Blocks
from jprune.formats._formats import Dense as Dense
from jprune.formats._formats import Format as Format
from jprune.formats._formats import FormatError as FormatError
from jprune.formats._formats import NOfM as NOfM
from jprune.formats._formats import Packed as Packed
from jprune.formats._formats import is_packed as is_packed
from jprune.formats._formats import pack_bits as pack_bits
from jprune.formats._formats import pack_blocks as pack_blocks
from jprune.formats._formats import pack_dense as pack_dense
from jprune.formats._formats import pack_n_of_m as pack_n_of_m
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
