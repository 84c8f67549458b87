"""One trace of a function gives groups of axes, and the function on smaller arrays.

graph = trace(fn, params, x)                    what must shrink together
scores = group_scores(graph, |w|^2)             any criterion, entry by entry
keep = select(graph, scores, 0.5, cost=multiply_adds)
plan = make_plan(graph, keep)                   plain data
small_fn, small_params = shrink(graph, params, plan)
"""

from jprune.graph.budget import all_groups as all_groups
from jprune.graph.budget import each_group as each_group
from jprune.graph.budget import is_width as is_width
from jprune.graph.budget import isomorphic as isomorphic
from jprune.graph.budget import same_kind as same_kind
from jprune.graph.budget import select as select
from jprune.graph.budget import sizes as sizes
from jprune.graph.cost import activation_bytes as activation_bytes
from jprune.graph.cost import bytes_moved as bytes_moved
from jprune.graph.cost import multiply_adds as multiply_adds
from jprune.graph.cost import operations as operations
from jprune.graph.cost import parameter_bytes as parameter_bytes
from jprune.graph.cost import parameters as parameters
from jprune.graph.cost import penalty as penalty
from jprune.graph.cropping import first_entries as first_entries
from jprune.graph.cropping import fit_widths as fit_widths
from jprune.graph.depth import Branch as Branch
from jprune.graph.depth import branch_scores as branch_scores
from jprune.graph.depth import branches as branches
from jprune.graph.depth import without as without
from jprune.graph.distances import geometric_median_scores as geometric_median_scores
from jprune.graph.groups import Group as Group
from jprune.graph.groups import Member as Member
from jprune.graph.groups import check_known as check_known
from jprune.graph.groups import places as places
from jprune.graph.masking import keep_groups as keep_groups
from jprune.graph.masking import kept_by as kept_by
from jprune.graph.plan import Plan as Plan
from jprune.graph.plan import compose as compose
from jprune.graph.plan import dumps as dumps
from jprune.graph.plan import expand as expand
from jprune.graph.plan import loads as loads
from jprune.graph.plan import make_plan as make_plan
from jprune.graph.plan import shapes as shapes
from jprune.graph.plan import slice_tree as slice_tree
from jprune.graph.plan import widths as widths
from jprune.graph.program import Note as Note
from jprune.graph.program import Options as Options
from jprune.graph.program import Outcome as Outcome
from jprune.graph.regularize import GrowingState as GrowingState
from jprune.graph.regularize import add_group_decay as add_group_decay
from jprune.graph.regularize import add_growing_decay as add_growing_decay
from jprune.graph.regularize import add_l1 as add_l1
from jprune.graph.scores import by_max as by_max
from jprune.graph.scores import by_mean as by_mean
from jprune.graph.scores import first as first
from jprune.graph.scores import group_scores as group_scores
from jprune.graph.scores import masks as masks
from jprune.graph.scores import spread as spread
from jprune.graph.shrink import removed as removed
from jprune.graph.shrink import shrink as shrink
from jprune.graph.summary import draw_widths as draw_widths
from jprune.graph.summary import print_summary as print_summary
from jprune.graph.summary import summary as summary
from jprune.graph.trace import Graph as Graph
from jprune.graph.trace import explain as explain
from jprune.graph.trace import trace as trace
