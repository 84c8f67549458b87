"""Attention that prunes tokens and heads on the fly and fetches fewer bits.

probs -> token_importance -> keep_top -> take      tokens that leave, layer by layer
outputs -> head_importance -> keep_top             heads that leave
schedule(length, tokens, heads, values)            how many of each, static
cascade.encode(cascade.start(x, groups), layers, plan, mix, finish)    all together
fused.attend_summed(q, k, v, valid)       column sums without the probabilities, on GPUs
"""

from jprune.attention import adapters as adapters
from jprune.attention import allot as allot
from jprune.attention import buckets as buckets
from jprune.attention import cascade as cascade
from jprune.attention import fused as fused
from jprune.attention import merge as merge
from jprune.attention import routers as routers
from jprune.attention import soft as soft
from jprune.attention.attend import attend as attend
from jprune.attention.choose import keep_top as keep_top
from jprune.attention.choose import take as take
from jprune.attention.heads import HeadWeights as HeadWeights
from jprune.attention.heads import combine as combine
from jprune.attention.heads import keep_heads as keep_heads
from jprune.attention.heads import mask_heads as mask_heads
from jprune.attention.heads import project as project
from jprune.attention.heads import take_heads as take_heads
from jprune.attention.importance import head_importance as head_importance
from jprune.attention.importance import token_importance as token_importance
from jprune.attention.quantize import Bits as Bits
from jprune.attention.quantize import center_keys as center_keys
from jprune.attention.quantize import fake_quantize as fake_quantize
from jprune.attention.quantize import progressive_attend as progressive_attend
from jprune.attention.schedules import Schedule as Schedule
from jprune.attention.schedules import dense as dense
from jprune.attention.schedules import from_ratios as from_ratios
from jprune.attention.schedules import ltp_ramp as ltp_ramp
from jprune.attention.schedules import multiply_adds as multiply_adds
from jprune.attention.schedules import ramp as ramp
from jprune.attention.schedules import schedule as schedule
from jprune.attention.traffic import Fetched as Fetched
from jprune.attention.traffic import fetched as fetched
from jprune.attention.traffic import fetched_bits as fetched_bits
from jprune.attention.traffic import refetch_fraction as refetch_fraction
from jprune.attention.values import count_values as count_values
from jprune.attention.values import keep_values as keep_values
from jprune.attention.values import weigh_values as weigh_values
