"""What a workload costs on an accelerator: cycles, seconds, energy, bytes, area.

gemm = workload.product(m=512, n=768, k=768)
found = cost(gemm, machines.tpu_v1())          one pure function of two pytrees
"""

from jprune.hardware import accelerators as accelerators
from jprune.hardware import constraints as constraints
from jprune.hardware import evolve as evolve
from jprune.hardware import machines as machines
from jprune.hardware import networks as networks
from jprune.hardware import search as search
from jprune.hardware import spatten as spatten
from jprune.hardware import systolic as systolic
from jprune.hardware import topk as topk
from jprune.hardware import workload as workload
from jprune.hardware.accelerators import Accelerator as Accelerator
from jprune.hardware.accelerators import accelerator as accelerator
from jprune.hardware.constraints import fit as fit
from jprune.hardware.constraints import saving as saving
from jprune.hardware.constraints import worth as worth
from jprune.hardware.cost import RESOURCES as RESOURCES
from jprune.hardware.cost import Cost as Cost
from jprune.hardware.cost import Energy as Energy
from jprune.hardware.cost import cost as cost
from jprune.hardware.tracing import from_graph as from_graph
from jprune.hardware.tracing import on as on
from jprune.hardware.workload import Workload as Workload
