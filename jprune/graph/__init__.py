"""Structural pruning: coupled axes of any JAX function, and smaller arrays.

A *group* is a set of axes of params that must shrink together, because the function
adds, multiplies or contracts them entry by entry. Its *entry* k, one channel or head,
consists of slice k of all these axes, and is kept or removed as a whole. Axes form a
group only if the function sums over them and nothing freezes their size.

    small = compress(fn, params, x, remove=0.5)             half the multiply-adds

    graph = trace(fn, params, x)                            finds the groups
    scores = group_scores(graph, params, each=np.square)    scores their entries
    keep = choose(graph, scores, 0.5, cost=multiply_adds)   halves the multiply-adds
    small_fn, small_params = shrink(graph, params, keep=keep)

`compress` is the composition of such steps, and returns a `Compressed`;
`compress_gradually` alternates them with training (type `Train`).

The parts follow in reading order. Groups:

    trace, Graph              records a function and finds its groups
    Group, Member             axes that shrink together; one of them
    explain, Note             what is frozen, and why; which constants follow a size
    entry_indices             which entry each position of an axis belongs to
    check_known               raises for names that are not groups
    layout                    input and output axes of kernels, for `layout=` of links
    Options                   how constants that follow sizes change
    Outcome                   what a tracing rule of your own returns

Scores of entries:

    group_scores              from any scores of weights, such as |w|, w^2 or |w g|
    group_l2                  squared norms of coupled weights, on one scale
    by_mean, by_max           put groups on one scale, so that they can compete
    first_member              counts the first member of a group alone
    gain_scores               filters' scores times gains (Beta-Rank)
    gains, filter_members     gains, from a batch; the filters that have one
    geometric_median_scores   distances from the other filters (FPGM)
    spread_to_params          back from entries to weights

Which entries are kept:

    choose                    the best entries, by a fraction or under a budget
    all_groups, each_group, same_kind, isomorphic     who competes (type `Compete`)
    is_width, is_inner, whole_heads           which groups may shrink
    sizes                     the sizes of groups after a choice

Costs, exact polynomials in the sizes of groups (types `Cost`, `Sizes`):

    multiply_adds, parameters, parameter_bytes, activation_bytes, bytes_moved
    penalty                   a differentiable penalty on a cost, for learned masks
    operations, Operation, measure           what a cost of your own is made of

Smaller arrays:

    shrink                    the same function on smaller arrays
    without_entries           the full-size function, as if entries were removed
    rebuild                   a module of the same class, with the small arrays
    make_plan                 a choice as plain data (types `Keep` -> `Plan`)
    slice_tree, expand        cuts a tree, such as an optimizer state; and back
    compose, dumps, loads     one plan after another; plans as JSON
    shapes, widths            shapes of the leaves after a plan
    save, restore             function, arrays and plan on the disk (type `Saved`)

Before entries are removed:

    keep_groups               a link that masks whole entries during training
    param_masks, kept_by      masks of params from entries, and entries from masks
    add_group_decay, add_growing_decay, add_l1        sparse training (`GrowingState`)

Depth, initialization and pictures:

    branches, Branch          residual branches
    branch_scores             their scores
    without_branches          the function without some of them
    fit_widths, first_entries                widths at initialization
    summary, print_summary, draw_widths      tables and pictures

To read the code, start with `_groups.find_groups`, which decides what is a group. The
private package `_engine` holds the recorded program: `terms` and `dims` (axes as terms
of products and concatenations, merged by union-find), `layout` (the values of such
terms), `program` (equations), `rules` (one for each JAX primitive; a primitive without
a rule freezes its axes), `routing` (routers and their experts), `jaxprs` and `lines`
(of which equation, on which line of the user), `scopes` and `meshes` (named axes, and
shardings that are part of types), `running` (the program at other sizes) and `hosting`
(many small arrays on the host, uncompiled).
"""

from jprune._core.deprecation import renamed as _renamed
from jprune.graph._budget import Compete as Compete
from jprune.graph._budget import all_groups as all_groups
from jprune.graph._budget import choose as choose
from jprune.graph._budget import each_group as each_group
from jprune.graph._budget import is_width as is_width
from jprune.graph._budget import isomorphic as isomorphic
from jprune.graph._budget import same_kind as same_kind
from jprune.graph._budget import sizes as sizes
from jprune.graph._compress import Compressed as Compressed
from jprune.graph._compress import compress as compress
from jprune.graph._compress import group_l2 as group_l2
from jprune.graph._compress import whole_heads as whole_heads
from jprune.graph._cost import Cost as Cost
from jprune.graph._cost import Operation as Operation
from jprune.graph._cost import Sizes as Sizes
from jprune.graph._cost import activation_bytes as activation_bytes
from jprune.graph._cost import bytes_moved as bytes_moved
from jprune.graph._cost import measure as measure
from jprune.graph._cost import multiply_adds as multiply_adds
from jprune.graph._cost import operations as operations
from jprune.graph._cost import parameter_bytes as parameter_bytes
from jprune.graph._cost import parameters as parameters
from jprune.graph._cost import penalty as penalty
from jprune.graph._cropping import first_entries as first_entries
from jprune.graph._cropping import fit_widths as fit_widths
from jprune.graph._depth import Branch as Branch
from jprune.graph._depth import branch_scores as branch_scores
from jprune.graph._depth import branches as branches
from jprune.graph._depth import without_branches as without_branches
from jprune.graph._distances import geometric_median_scores as geometric_median_scores
from jprune.graph._engine.program import Note as Note
from jprune.graph._engine.program import Options as Options
from jprune.graph._engine.program import Outcome as Outcome
from jprune.graph._explain import explain as explain
from jprune.graph._gains import filter_members as filter_members
from jprune.graph._gains import gain_scores as gain_scores
from jprune.graph._gains import gains as gains
from jprune.graph._gradual import Train as Train
from jprune.graph._gradual import compress_gradually as compress_gradually
from jprune.graph._groups import Group as Group
from jprune.graph._groups import Member as Member
from jprune.graph._groups import check_known as check_known
from jprune.graph._groups import entry_indices as entry_indices
from jprune.graph._inner import is_inner as is_inner
from jprune.graph._masking import keep_groups as keep_groups
from jprune.graph._masking import kept_by as kept_by
from jprune.graph._plan import Keep as Keep
from jprune.graph._plan import Plan as Plan
from jprune.graph._plan import compose as compose
from jprune.graph._plan import dumps as dumps
from jprune.graph._plan import loads as loads
from jprune.graph._plan import make_plan as make_plan
from jprune.graph._rebuild import rebuild as rebuild
from jprune.graph._regularize import GrowingState as GrowingState
from jprune.graph._regularize import add_group_decay as add_group_decay
from jprune.graph._regularize import add_growing_decay as add_growing_decay
from jprune.graph._regularize import add_l1 as add_l1
from jprune.graph._roles import layout as layout
from jprune.graph._save import Saved as Saved
from jprune.graph._save import restore as restore
from jprune.graph._save import save as save
from jprune.graph._scores import by_max as by_max
from jprune.graph._scores import by_mean as by_mean
from jprune.graph._scores import first_member as first_member
from jprune.graph._scores import group_scores as group_scores
from jprune.graph._scores import param_masks as param_masks
from jprune.graph._scores import spread_to_params as spread_to_params
from jprune.graph._shrink import shrink as shrink
from jprune.graph._shrink import without_entries as without_entries
from jprune.graph._slicing import expand as expand
from jprune.graph._slicing import shapes as shapes
from jprune.graph._slicing import slice_tree as slice_tree
from jprune.graph._slicing import widths as widths
from jprune.graph._summary import draw_widths as draw_widths
from jprune.graph._summary import print_summary as print_summary
from jprune.graph._summary import summary as summary
from jprune.graph._trace import Graph as Graph
from jprune.graph._trace import trace as trace

__getattr__ = _renamed(
    __name__,
    {
        "first": "jprune.graph.first_member",
        "masks": "jprune.graph.param_masks",
        "places": "jprune.graph.entry_indices",
        "removed": "jprune.graph.without_entries",
        "Scope": "jprune.graph.Compete",
        "select": "jprune.graph.choose",
        "spread": "jprune.graph.spread_to_params",
        "without": "jprune.graph.without_branches",
        "written": "jprune.graph.filter_members",
    },
)
