"""Runs SCALE-Sim or ZigZag in an interpreter with that package, without jprune or JAX.

    python _peers.py scalesim '[[64, 64, 32, 16, 16, "ws"], ...]'
    python _peers.py zigzag '[[512, 768, 768, 32, 32], ...]'

Each product is `m, n, k, rows, columns` and, for SCALE-Sim, the dataflow. It prints one
JSON object with cycles and CPU seconds of each product, and the version of the tool.

SCALE-Sim (`pip install scalesim 'numpy<2'`) runs as its own command does, with the
bandwidth that it needs ("CALC"), so its cycles are those of the array. ZigZag
(`pip install zigzag-dse six`) runs on its own TPU-like machine, with the array of the
product, 8 bits for operands, 16 bits for partial sums, and a DRAM port of 512 bits per
cycle; it searches for the loop order with the least latency.
"""

import contextlib
import importlib
import json
import logging
import os
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import Any

LIMIT = 4  # loop factors whose orders ZigZag tries, at most

CONFIG = """
[general]
run_name = run
[architecture_presets]
ArrayHeight = {rows}
ArrayWidth = {columns}
IfmapSramSzkB = 4096
FilterSramSzkB = 4096
OfmapSramSzkB = 4096
IfmapOffset = 0
FilterOffset = 10000000
OfmapOffset = 20000000
Dataflow = {dataflow}
Bandwidth = 10
ReadRequestBuffer = 512
WriteRequestBuffer = 512
[layout]
IfmapCustomLayout = False
IfmapSRAMBankBandwidth = 10
IfmapSRAMBankNum = 10
IfmapSRAMBankPort = 2
FilterCustomLayout = False
FilterSRAMBankBandwidth = 10
FilterSRAMBankNum = 10
FilterSRAMBankPort = 2
[sparsity]
SparsitySupport = false
[run_presets]
InterfaceBandwidth = CALC
UseRamulatorTrace = False
"""


def scalesim(products: list[list[Any]], folder: Path) -> dict[str, Any]:
    """Returns SCALE-Sim's cycles for each product."""
    tool = importlib.import_module("scalesim.scale_sim").scalesim
    found: dict[str, Any] = {"cycles": [], "seconds": []}
    for m, n, k, rows, columns, dataflow in products:
        files = {name: folder / name for name in ("scale.cfg", "gemm.csv", "none.csv")}
        files["scale.cfg"].write_text(
            CONFIG.format(rows=rows, columns=columns, dataflow=dataflow)
        )
        files["gemm.csv"].write_text(f"Layer,M,N,K,\nproduct,{m},{n},{k},\n")
        files["none.csv"].write_text("Layer," + "x," * 21 + "\n")
        begin = time.process_time()
        run = tool(
            save_disk_space=True,
            verbose=False,
            config=str(files["scale.cfg"]),
            topology=str(files["gemm.csv"]),
            layout=str(files["none.csv"]),
            input_type_gemm=True,
        )
        run.run_scale(top_path=str(folder))
        (layer,) = run.runner.single_layer_sim_object_list
        found["cycles"].append(int(layer.get_compute_report_items()[1]))
        found["seconds"].append(time.process_time() - begin)
    found["version"] = metadata.version("scalesim")
    return found


def zigzag(products: list[list[Any]], folder: Path) -> dict[str, Any]:
    """Returns ZigZag's minimum cycles and energy in pJ for each product."""
    api = importlib.import_module("zigzag.api")
    yaml = importlib.import_module("yaml")
    inputs = Path(str(api.__file__)).parent / "inputs" / "hardware" / "tpu_like.yaml"
    found: dict[str, Any] = {"cycles": [], "energy": [], "seconds": []}
    for i, (m, n, k, rows, columns) in enumerate(products):
        machine = yaml.safe_load(inputs.read_text())
        machine["operational_array"]["sizes"] = [columns, rows]
        (port,) = machine["memories"]["dram"]["ports"]
        port["bandwidth_min"], port["bandwidth_max"] = 64, 512
        mapping = {
            "name": "default",
            "spatial_mapping": {"D1": [f"K, {columns}"], "D2": [f"C, {rows}"]},
            "memory_operand_links": {"O": "O", "W": "I2", "I": "I1"},
        }
        layer = {
            "id": 0,
            "operator_type": "Gemm",
            "equation": "O[b][k]+=I[b][c]*W[c][k]",
            "loop_dims": ["B", "C", "K"],
            "loop_sizes": [m, k, n],
            "operand_precision": {"W": 8, "I": 8, "O": 16, "O_final": 8},
            "operand_source": {"W": 0, "I": 0},
        }
        given = {"machine": machine, "mapping": [mapping], "layer": [layer]}
        for name, value in given.items():
            # Memories are ordered, the lowest first.
            (folder / f"{name}.yaml").write_text(yaml.safe_dump(value, sort_keys=False))
        begin = time.process_time()
        energy, latency, _ = api.get_hardware_performance_zigzag(
            str(folder / "layer.yaml"),
            str(folder / "machine.yaml"),
            str(folder / "mapping.yaml"),
            dump_folder=str(folder / str(i)),
            lpf_limit=LIMIT,
            loma_show_progress_bar=False,
        )
        found["cycles"].append(int(latency))
        found["energy"].append(float(energy))
        found["seconds"].append(time.process_time() - begin)
    found["version"] = metadata.version("zigzag-dse")
    return found


if __name__ == "__main__":
    tools = {"scalesim": scalesim, "zigzag": zigzag}
    logging.disable(logging.CRITICAL)
    with (
        tempfile.TemporaryDirectory() as name,
        contextlib.redirect_stdout(open(os.devnull, "w")),
    ):
        result = tools[sys.argv[1]](json.loads(sys.argv[2]), Path(name))
    print(json.dumps(result))
