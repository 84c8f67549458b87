"""The cost model once more: plain Python numbers, loops and ifs, float64."""

import math

import numpy as np

RESOURCES = ["multipliers", "vector", "softmax", "top-k", "sram", "dram", "launch"]


def entropy(p):
    return -sum(x * math.log(x) for x in (p, 1 - p) if x > 0)


def topk_cycles(n, k, parallelism):
    if k in (0, n):
        return 0.0
    rounds = max(1.9 * math.log(n) - 0.7, 0)
    return 2 * n * (1 + entropy(k / n)) / parallelism + 3.5 * rounds


def rate(machine, bits):
    for width, found in zip((4, 8, 16, 32), machine["rates"], strict=True):
        if bits <= width:
            return found
    return machine["rates"][-1]


def sizes(o):
    """Returns batch, m, n and k of the part of a product that is kept."""
    kept = zip(("batch", "m", "n", "k"), o["keep"], strict=True)
    return [math.floor(o[name] * float(share) + 1e-3) for name, share in kept]


def weight_bits(o):
    return o["weight_bits"] + o["refetch"] * o["lsb_bits"]


def whole_arrays(o):
    """Returns the bytes of inputs, weights and outputs, nothing shared or packed."""
    b, m, n, k = sizes(o)
    return (
        b * m * k * o["input_bits"] / 8,
        b * k * n * weight_bits(o) / 8,
        b * m * n * o["output_bits"] / 8,
    )


def share_of_passes(o, machine):
    """Returns the part of the multiplications that zero weights leave."""
    if o["pattern"] == 1:
        log_lanes = 2 * math.log(machine["lanes"])
        spread = math.sqrt(log_lanes * o["density"] * (1 - o["density"]) / sizes(o)[3])
        slowest = min(1.0, o["density"] + spread)
        return 1 - machine["skip"] + machine["skip"] * slowest
    if o["pattern"] == 2:
        return max(o["density"], 1 / machine["n_of_m"])
    return 1.0


def dataflows(o, machine):
    """Returns cycles, number and SRAM bytes of each dataflow that the machine has."""
    b, m, n, k = sizes(o)
    a, w, c = whole_arrays(o)
    rows, columns = machine["rows"], machine["columns"]
    speed = rate(machine, max(o["input_bits"], o["weight_bits"] + o["lsb_bits"]))
    speed *= machine["efficiency"]
    arrays = machine["arrays"] * (o["share"] if machine["pipelined"] else 1)
    left = share_of_passes(o, machine)
    choices = []
    for i, (down, across, lines, fill) in enumerate(
        [
            (k / rows, n / columns, m, 2 * rows + columns - 2),
            (m / rows, n / columns, k, rows + columns - 2),
            (k / rows, m / columns, n, 2 * rows + columns - 2),
        ]
    ):
        if not machine["dataflows"][i]:
            continue
        down, across = math.ceil(down), math.ceil(across)
        waves = math.ceil(b * down * across / arrays)
        each = lines * (1 + o["refetch"]) * left / speed + machine["fill"] * fill
        moved = {
            0: a * across + w + c * (2 * down - 1),
            1: a * across + w * down + c,
            2: a + w * across + c * (2 * down - 1),
        }[i]
        busy = waves * each - machine["fill"] if b * lines else 0.0
        choices.append((busy, i, moved))
    return choices


def dram_bytes(o, machine):
    """Returns the bytes between DRAM and the chip, by the best of three tilings."""
    b, m, n, k = sizes(o)
    stored = weight_bits(o)
    if o["pattern"] and machine["compressed"]:
        places = 1 if o["pattern"] == 1 else 2 * o["density"]
        stored = min(stored, o["density"] * stored + places)
    room = machine["sram"] * 1024 / (2 if machine["overlap"] == 1 else 1)
    a1 = m * k * o["input_unique"] * o["input_bits"] / 8
    w1 = k * n * stored / 8
    side = math.sqrt(room / (o["output_bits"] / 8))
    read = min(
        x * o["input_dram"] * a1 + y * o["weight_dram"] * w1
        for x, y in [
            (math.ceil(w1 / room), 1),
            (1, math.ceil(a1 / room)),
            (math.ceil(n / side), math.ceil(m / side)),
        ]
    )
    return b * read + whole_arrays(o)[2] * o["output_dram"] + o["gathered"]


def other_cycles(o, machine):
    """Returns cycles of the vector unit, of exponentials and of top-k."""
    chosen = topk_cycles(o["select_from"], o["select_keep"], machine["topk"])
    return [
        o["elementwise"] / machine["vector"],
        o["exponentials"] / machine["softmax"],
        o["selections"] * chosen,
    ]


def picojoules(o, machine, sram, dram):
    """Returns energy by part."""
    b, m, n, k = sizes(o)
    skipped = {0: 0, 1: machine["skip"], 2: float(machine["n_of_m"] > 1)}
    done = b * m * n * k * (1 - skipped[o["pattern"]] * (1 - o["density"]))
    zero = 1 - o["input_density"] * o["density"] * b * m * n * k / done if done else 0
    pair = o["input_bits"] / machine["mac_bits"] / machine["mac_bits"]
    passes = o["weight_bits"] + o["refetch"] * (o["weight_bits"] + o["lsb_bits"])
    energy = {
        "multipliers": done
        * (1 - machine["gating"] * zero)
        * pair
        * passes
        * machine["mac_energy"],
        "vector": (o["elementwise"] + o["exponentials"]) * machine["vector_energy"],
        "sram": sram * machine["sram_energy"],
        "dram": 8 * dram * machine["dram_energy"],
    }
    share = min(max(o["select_keep"] / o["select_from"], 1e-6), 1 - 1e-6)
    compared = 2 * o["select_from"] * (1 + entropy(share))
    energy["vector"] += o["selections"] * compared * machine["topk_energy"]
    return energy


def one(o, machine):
    """Returns compute, transfer and start in cycles, bytes, pJ by part, the bound."""
    others = other_cycles(o, machine)

    def on_chip(choice):
        moving = choice[2] / machine["sram_bandwidth"]
        if machine["pipelined"]:
            return max(choice[0], *others, moving)
        return max(choice[0] + sum(others), moving)

    choices = dataflows(o, machine)
    best = min(choices, key=lambda choice: (on_chip(choice), choice[1]))
    compute, (multipliers, _, sram) = on_chip(best), best
    stages = [multipliers, *others, sram / machine["sram_bandwidth"]]
    dram = dram_bytes(o, machine)
    transfer = dram * machine["clock"] / machine["dram_bandwidth"]
    start = machine["launch"] * 1e3 * machine["clock"]
    energy = picojoules(o, machine, sram, dram)
    bound = RESOURCES[int(np.argmax([*stages, transfer, start]))]
    return compute + machine["latency"], transfer, start, dram, energy, bound


def cost(operations, machine):
    """Returns seconds, joules by part, bytes and bounds of a list of dicts."""

    def time(compute, transfer):
        hidden = machine["overlap"] * min(compute, transfer)
        return compute + transfer - hidden

    cycles, dram, energy, bounds = 0.0, 0.0, {}, []
    for i, o in enumerate(operations):
        compute, transfer, start, moved, parts, bound = one(o, machine)
        mine = time(compute, transfer) + start
        if o["joined"] and machine["pipelined"]:
            before = one(operations[i - 1], machine)
            both = time(max(before[0], compute), before[1] + transfer)
            mine = both - time(before[0], before[1])
        cycles += o["repeats"] * mine
        dram += o["repeats"] * moved
        for name, value in parts.items():
            energy[name] = energy.get(name, 0.0) + o["repeats"] * value * 1e-12
        bounds.append(bound)
    seconds = cycles / (machine["clock"] * 1e9)
    energy["leakage"] = machine["leakage"] * seconds
    return seconds, energy, dram, bounds


def rows(workload):
    """Returns a workload as a list of dicts of numbers."""
    arrays = {k: v for k, v in workload._asdict().items() if k != "names"}
    named = {k: np.asarray(v, np.float64) for k, v in arrays.items()}
    return [
        {k: v[i] if k == "keep" else float(v[i]) for k, v in named.items()}
        for i in range(len(named["m"]))
    ]


def numbers(machine):
    """Returns an accelerator as a dict of numbers."""
    found = {k: np.asarray(v, np.float64) for k, v in machine._asdict().items()}
    return {k: v if v.ndim else float(v) for k, v in found.items()}
