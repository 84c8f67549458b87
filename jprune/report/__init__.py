"""What was pruned: tables of params, scalars for a logger, and pictures.

    summary          sparsity and bytes, per leaf and in total, as plain data
    print_summary    the same as a table; needs rich (`jprune[report]`)
    metrics          sparsities from an optimizer state, inside `jit`, for a logger
    mask_metrics     the same from masks
    draw_sparsity    sparsity over training, from such metrics; needs matplotlib
                     (`jprune[plot]`)

Start with `print_summary`. Bytes are those of storage: of a pruned leaf, the kept
values and its mask as bits. `jprune.graph.summary` has what products cost, and
`jprune.hardware.summary` how long they take on a machine.
"""

from jprune.report._draw import draw_sparsity as draw_sparsity
from jprune.report._metrics import mask_metrics as mask_metrics
from jprune.report._metrics import metrics as metrics
from jprune.report._summary import print_summary as print_summary
from jprune.report._summary import summary as summary
