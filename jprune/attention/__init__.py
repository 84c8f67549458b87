"""Dynamic token and head pruning, KV-cache pruning and quantized attention.

Pure functions on arrays `(..., heads, tokens, dim)`, not modules. Keep counts are
static, so shapes are static too. Where to start:

    an encoder                     `cascade`
    generation with a KV cache     `cache`, then `decode`
    training what is kept          `soft`
    a Flax model                   `adapters`

Modules, in reading order:

    cascade     an encoder; pruned tokens and heads are gone from all later layers
    cache       a KV cache with a fixed number of slots (`init`, `start`)
    decode      one decoding step over it, which evicts unimportant tokens (`step`)
    soft        differentiable gates, learned keep counts and thresholds (LTP)
    buckets     pruning by threshold, at a few compiled sizes
    merge       token merging (ToMe)
    routers     tokens that skip a layer (FTP)
    allot       search for the sparsity of each layer
    fused       attention and token importance without storing probabilities (GPU)
    adapters    an `attention_fn` for Flax's attention modules

Names on this page:

    attend, softmax, scores                  dense attention, the reference
    token_importance, head_importance        SpAtten's scores
    top_indices, top_mask, sort_keys         exact selection with a static count
    take, put                                gather chosen tokens; write them back
    Schedule, schedule, dense                tokens and heads that each layer keeps
    ramp, ltp_ramp                           counts that fall from layer to layer
    from_ratios, Counts                      counts from ratios; their type
    multiply_adds, LayerCost                 the cost of a schedule
    draw_tokens                              a picture of its tokens
    HeadWeights, project, combine            projections by heads
    take_heads, keep_heads, mask_heads       heads: removed, chosen, masked
    keep_values, count_values, weigh_values  skips values of small probability
    split_planes, join_planes, Planes        numbers as two bit planes, and back
    Bits, progressive_attend, Progressive    attention that reads lower bits on demand
    progressive_scores                       logits from upper bits and from all bits
    quantize, fake_quantize, center_keys     linear quantization
    fetched, Fetched, fetched_bits           rows and bits read from memory
    refetch_fraction                         the fraction of rows that needed lower bits
"""

from jprune._core.deprecation import renamed as _renamed
from jprune.attention import adapters as adapters
from jprune.attention import allot as allot
from jprune.attention import buckets as buckets
from jprune.attention import cache as cache
from jprune.attention import cascade as cascade
from jprune.attention import decode as decode
from jprune.attention import fused as fused
from jprune.attention import merge as merge
from jprune.attention import routers as routers
from jprune.attention import soft as soft
from jprune.attention._attend import attend as attend
from jprune.attention._attend import scores as scores
from jprune.attention._attend import softmax as softmax
from jprune.attention._choose import put as put
from jprune.attention._choose import sort_keys as sort_keys
from jprune.attention._choose import take as take
from jprune.attention._choose import top_indices as top_indices
from jprune.attention._choose import top_mask as top_mask
from jprune.attention._draw import draw_tokens as draw_tokens
from jprune.attention._heads import HeadWeights as HeadWeights
from jprune.attention._heads import combine as combine
from jprune.attention._heads import keep_heads as keep_heads
from jprune.attention._heads import mask_heads as mask_heads
from jprune.attention._heads import project as project
from jprune.attention._heads import take_heads as take_heads
from jprune.attention._importance import head_importance as head_importance
from jprune.attention._importance import token_importance as token_importance
from jprune.attention._quantize import Bits as Bits
from jprune.attention._quantize import Planes as Planes
from jprune.attention._quantize import Progressive as Progressive
from jprune.attention._quantize import center_keys as center_keys
from jprune.attention._quantize import fake_quantize as fake_quantize
from jprune.attention._quantize import join_planes as join_planes
from jprune.attention._quantize import progressive_attend as progressive_attend
from jprune.attention._quantize import progressive_scores as progressive_scores
from jprune.attention._quantize import quantize as quantize
from jprune.attention._quantize import split_planes as split_planes
from jprune.attention._schedules import Counts as Counts
from jprune.attention._schedules import LayerCost as LayerCost
from jprune.attention._schedules import Schedule as Schedule
from jprune.attention._schedules import dense as dense
from jprune.attention._schedules import from_ratios as from_ratios
from jprune.attention._schedules import ltp_ramp as ltp_ramp
from jprune.attention._schedules import multiply_adds as multiply_adds
from jprune.attention._schedules import ramp as ramp
from jprune.attention._schedules import schedule as schedule
from jprune.attention._traffic import Fetched as Fetched
from jprune.attention._traffic import fetched as fetched
from jprune.attention._traffic import fetched_bits as fetched_bits
from jprune.attention._traffic import refetch_fraction as refetch_fraction
from jprune.attention._values import count_values as count_values
from jprune.attention._values import keep_values as keep_values
from jprune.attention._values import weigh_values as weigh_values

__getattr__ = _renamed(__name__, {"keep_top": "jprune.attention.top_indices"})
