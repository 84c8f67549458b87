"""Analytical cost of workloads on accelerators: time, energy, DRAM bytes, area.

    from jprune import hardware as hw

    bert, chip = hw.networks.bert_base(128), hw.machines.tpu_v5e()
    hw.cost(bert, chip).seconds       a pure function of two pytrees of arrays

Read `Workload` and `Accelerator`, whose fields have units, then `cost`, which can be
vmapped over millions of machines and, with a `temperature`, is smooth for gradients. In
reading order:

    Workload                 operations of a network, as numbers
    workload                 builds, joins and counts them
    networks                 workloads of BERT, GPT-2, ViT, ResNet-50, attention
    from_graph               the workload of any JAX function
    Accelerator              a machine, as numbers
    accelerator              makes one from its fields
    machines                 presets: tpu_v5e, tpu_v1, a100, h100, h200, eyeriss, ...
    accelerators             peaks, ridge points, areas, technology scaling
    cost, Cost, Energy       the cost model and its result
    cost_per_operation       the terms of that sum
    RESOURCES                what can limit an operation
    summary, print_summary   a table of operations: times, energies, bytes, limits
    print_comparison         a table of designs, with ratios to the first
    draw_roofline            a picture of operations under the limits of a machine

    as_graph_cost            the cost of group sizes on a machine, for `jprune.graph`
    worth, saving, fit       pruning to a budget of time, energy or bytes
    Metric                   the quantity to save, such as `lambda cost: cost.energy`
    search                   searches designs: evaluates many, or descends by gradients
    evolve                   searches designs: Pareto fronts by NSGA-II

    systolic, topk, spatten  closed forms: systolic arrays, SpAtten's top-k and pipeline

`jprune.search` has what such searches share: grids, random designs, Pareto fronts.
"""

from jprune._core.deprecation import renamed as _renamed
from jprune.hardware import accelerators as accelerators
from jprune.hardware import evolve as evolve
from jprune.hardware import machines as machines
from jprune.hardware import networks as networks
from jprune.hardware import search as search
from jprune.hardware import spatten as spatten
from jprune.hardware import systolic as systolic
from jprune.hardware import topk as topk
from jprune.hardware import workload as workload
from jprune.hardware._accelerator import Accelerator as Accelerator
from jprune.hardware._accelerator import accelerator as accelerator
from jprune.hardware._compare import print_comparison as print_comparison
from jprune.hardware._constraints import fit as fit
from jprune.hardware._constraints import saving as saving
from jprune.hardware._constraints import worth as worth
from jprune.hardware._cost import RESOURCES as RESOURCES
from jprune.hardware._cost import Cost as Cost
from jprune.hardware._cost import Energy as Energy
from jprune.hardware._cost import cost as cost
from jprune.hardware._cost import cost_per_operation as cost_per_operation
from jprune.hardware._roofline import draw_roofline as draw_roofline
from jprune.hardware._summary import print_summary as print_summary
from jprune.hardware._summary import summary as summary
from jprune.hardware._tracing import Metric as Metric
from jprune.hardware._tracing import as_graph_cost as as_graph_cost
from jprune.hardware._tracing import from_graph as from_graph
from jprune.hardware._workload import Workload as Workload

__getattr__ = _renamed(
    __name__,
    {"constraints": "jprune.hardware", "on": "jprune.hardware.as_graph_cost"},
)
