"""One trace of a function gives groups of axes, and the function on smaller arrays."""

from jprune.graph.groups import Group as Group
from jprune.graph.groups import Member as Member
from jprune.graph.groups import places as places
from jprune.graph.plan import Plan as Plan
from jprune.graph.plan import compose as compose
from jprune.graph.plan import dumps as dumps
from jprune.graph.plan import expand as expand
from jprune.graph.plan import loads as loads
from jprune.graph.plan import make_plan as make_plan
from jprune.graph.plan import shapes as shapes
from jprune.graph.plan import slice_tree as slice_tree
from jprune.graph.program import Note as Note
from jprune.graph.program import Options as Options
from jprune.graph.program import Outcome as Outcome
from jprune.graph.shrink import removed as removed
from jprune.graph.shrink import shrink as shrink
from jprune.graph.trace import Graph as Graph
from jprune.graph.trace import explain as explain
from jprune.graph.trace import trace as trace
