"""The paper's decoding in float64, token by token, with dictionaries for caches."""

import numpy as np


class Slow:
    """One sequence: what each layer still holds, and everybody's importance."""

    def __init__(self, budgets, *, sinks=0, recent=0):
        self.budgets, self.sinks, self.recent = budgets, sinks, recent
        self.layers = [{} for _ in budgets]  # position -> (key, value), (kv heads, dim)
        self.scores = {}  # position -> importance
        self.position = 0
        self.evicted = [None] * len(budgets)  # of the last step
        self.margin = np.inf  # how near any decision came to another one

    def prompt(self, keys, values, scores):
        """Keys and values of each layer, (kv heads, tokens, dim)."""
        self.position = len(scores)
        self.scores = dict(enumerate(np.asarray(scores, np.float64)))
        for layer, k, v in zip(self.layers, keys, values, strict=True):
            layer.update({t: (k[:, t], v[:, t]) for t in range(len(scores))})
        self.shrink(self.budgets)

    def shrink(self, budgets):
        self.budgets = budgets
        for layer, budget in zip(self.layers, budgets, strict=True):
            order = sorted(layer, key=lambda t: (not self.stays(t), -self.scores[t], t))
            if budget < len(order):
                self.near(order[budget - 1], order[budget])
            for t in order[budget:]:
                del layer[t]

    def near(self, *tokens):
        if len(tokens) == 2 and not any(map(self.stays, tokens)):
            self.margin = min(self.margin, np.ptp([self.scores[t] for t in tokens]))

    def stays(self, t):
        return t < self.sinks or t > self.position - self.recent

    def step(self, qs, ks, vs):
        """One token through all layers: q (heads, dim), k and v (kv heads, dim)."""
        outs, before = [], None
        self.scores[self.position] = 0.0
        for i, (q, k, v) in enumerate(zip(qs, ks, vs, strict=True)):
            layer = self.layers[i]
            gone = None
            if len(layer) == self.budgets[i]:
                gone = before if before in layer else self.worst(layer)
                del layer[gone]
            layer[self.position] = (k, v)
            self.evicted[i] = before = gone
            outs.append(self.attend(q, layer))
        self.position += 1
        return outs

    def worst(self, layer):
        free = [t for t in layer if not self.stays(t)]
        order = sorted(free, key=lambda t: (self.scores[t], -t))
        self.near(*order[:2])
        return order[0]

    def attend(self, q, layer):
        tokens = sorted(layer)
        out = np.zeros((len(q), layer[tokens[0]][1].shape[-1]))
        for h, row in enumerate(np.asarray(q, np.float64)):
            shared = h * len(layer[tokens[0]][0]) // len(q)
            keys = np.array([layer[t][0][shared] for t in tokens], np.float64)
            values = np.array([layer[t][1][shared] for t in tokens], np.float64)
            logits = keys @ row / np.sqrt(len(row))
            p = np.exp(logits - logits.max())
            p /= p.sum()
            out[h] = p @ values
            for t, seen in zip(tokens, p, strict=True):
                self.scores[t] += seen
        return out
