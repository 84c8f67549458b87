"""What a workload costs on an accelerator: cycles, seconds, energy, bytes, area.

    gemm = hw.workload.product(m=512, n=768, k=768)
    hw.cost(gemm, hw.machines.tpu_v1())    one pure function of two pytrees

    machines        presets: TPU v1 and v5e, A100, H100, Eyeriss, SpAtten, ...
    networks        workloads of well-known networks; `from_graph` of any function
    workload        make, join and count workloads
    accelerators    peaks, ridges, scaling of `Accelerator`s
    cost            cycles, energy, DRAM bytes and area; differentiable, vmappable
    fit, worth, saving     prune under a limit of seconds, joules or bytes
    search          many designs at once, or down the gradient of one
    evolve          Pareto fronts of designs by NSGA-II
    systolic, topk, spatten    parts of the model: arrays, selection, SpAtten's pipeline

Read `Workload` and `Accelerator` (all fields have units), then `cost`.
"""

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
from jprune.hardware._constraints import fit as fit
from jprune.hardware._constraints import saving as saving
from jprune.hardware._constraints import worth as worth
from jprune.hardware._cost import RESOURCES as RESOURCES
from jprune.hardware._cost import Cost as Cost
from jprune.hardware._cost import Energy as Energy
from jprune.hardware._cost import cost as cost
from jprune.hardware._tracing import Metric as Metric
from jprune.hardware._tracing import from_graph as from_graph
from jprune.hardware._tracing import on as on
from jprune.hardware._workload import Workload as Workload
