"""What a workload costs on an accelerator: cycles, seconds, energy, bytes, area.

gemm = workload.product(m=512, n=768, k=768)
found = cost(gemm, machines.tpu_v1())          one pure function of two pytrees
"""

from jprune.hardware import accelerators as accelerators
from jprune.hardware import machines as machines
from jprune.hardware import systolic as systolic
from jprune.hardware import topk as topk
from jprune.hardware import workload as workload
from jprune.hardware.accelerators import Accelerator as Accelerator
from jprune.hardware.accelerators import accelerator as accelerator
from jprune.hardware.cost import RESOURCES as RESOURCES
from jprune.hardware.cost import Cost as Cost
from jprune.hardware.cost import Energy as Energy
from jprune.hardware.cost import cost as cost
from jprune.hardware.workload import Workload as Workload
