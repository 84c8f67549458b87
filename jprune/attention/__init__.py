"""Dynamic token and head pruning, and quantised attention, as functions on arrays.

    attend                             attention, dense, with masks
    token_importance, head_importance  what the probabilities say
    top_indices, take                     the most important, with a static count
    keep_values, weigh_values          values of the largest probabilities only
    progressive_attend, Bits           keys in two planes: high bits, low bits on demand
    schedule, ramp, ltp_ramp           how many tokens and heads each layer keeps
    fetched, fetched_bits              what a schedule reads from memory

    cascade     an encoder: tokens and heads leave layer by layer
    cache       a KV cache with a static budget of slots; `decode` steps over it
    soft        differentiable gates and learned thresholds (LTP)
    buckets     thresholds with a few compiled sizes
    merge       token merging (ToMe); `routers` skip tokens for a layer (FTP)
    fused       column sums without the probabilities, on GPUs
    allot       a search for the sparsity of each block
    adapters    `attention_fn` for Flax modules

Arrays are `(..., heads, tokens, dim)`; counts are static, so shapes are. Read
`cascade` for encoders, `cache` and `decode` for generation.
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
from jprune.attention._choose import sort_keys as sort_keys
from jprune.attention._choose import take as take
from jprune.attention._choose import top_indices as top_indices
from jprune.attention._choose import top_mask as top_mask
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
from jprune.attention._quantize import center_keys as center_keys
from jprune.attention._quantize import fake_quantize as fake_quantize
from jprune.attention._quantize import progressive_attend as progressive_attend
from jprune.attention._quantize import progressive_scores as progressive_scores
from jprune.attention._quantize import quantize as quantize
from jprune.attention._schedules import Counts as Counts
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
