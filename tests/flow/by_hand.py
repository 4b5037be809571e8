"""A stack of layers unrolled by hand in float64, with every z, state and step's own copy of the weights kept, and the
gradient through time of it by brute-force autograd: one backward pass for each loss step."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from throughtime.engine.trace import step_of

F64 = torch.float64


@dataclass
class Kept:
    """One layer in one direction: by step, the net inputs, the states, and the weights by name."""

    zs: list = field(default_factory=list)
    states: list = field(default_factory=list)
    weights: list = field(default_factory=list)
    last: list = field(default_factory=list)


def one_direction(cell, w, x, first, lengths, reverse):
    T, B, _ = x.shape
    H = w["weight_ih"].shape[0] // len(cell.gates)
    kept = Kept([None] * T, [None] * T, [None] * T)
    now, shown = list(first), [None] * T
    for t in reversed(range(T)) if reverse else range(T):
        own = {n: v.clone() for n, v in w.items()}
        kept.weights[t] = own
        zero = torch.zeros(B, len(cell.gates) * H, dtype=F64)
        zx = cell.input(x[t]) @ own["weight_ih"].T + own.get("bias_ih", zero)
        z = {}
        for i, gate in enumerate(cell.gates):
            z[gate] = zx[:, i * H : (i + 1) * H]
        U = {}
        for i, gate in enumerate(cell.recurrent_gates):
            rows = slice(i * H, (i + 1) * H)
            b = own["bias_hh"][rows] if "bias_hh" in own else 0
            if gate in cell.inside:
                U[f"U_{gate}"] = own["weight_hh"][rows]
                z[gate] = z[gate] + b
            elif gate in cell.apart:
                z[f"{gate}_x"], z[f"{gate}_h"] = z.pop(gate), now[0] @ own["weight_hh"][rows].T + b
            else:
                z[gate] = z[gate] + now[0] @ own["weight_hh"][rows].T + b
        zs = [z[c.name].clone() for c in cell.columns]
        matrices = [own["weight_" + n[2:] if n.startswith("W_") else n] for n in cell.matrices]
        new = list(step_of(cell, [*zs, *now, *(own[n] for n in cell.units), *U.values(), *matrices]))
        kept.zs[t], kept.states[t] = zs, new
        valid = (t < lengths)[:, None]
        now = [torch.where(valid, v, old) for v, old in zip(new, now, strict=True)]
        shown[t] = torch.where(valid, now[0], 0.0)
    kept.last = now
    return kept, torch.stack(shown)


def unrolled(cell, layers, x, first=None, lengths=None, masks=None, skip=False):
    """layers: [layer][direction] of weights by name; first: states each [layers * dirs, B, .]. (kept, y, finals)."""
    T, B, _ = x.shape
    lengths = torch.full((B,), T) if lengths is None else lengths
    kept, outputs, below, n = [], [], x, 0
    for k, directions in enumerate(layers):
        if k:
            below = outputs[-1] if masks is None else outputs[-1] * masks[k]
            below = torch.cat([x, below], -1) if skip else below
        here = []
        kept.append([])
        for d, w in enumerate(directions):
            H = w["weight_ih"].shape[0] // len(cell.gates)
            P = w["weight_hh"].shape[1] if "weight_hh" in w else H
            start = (
                [torch.zeros(B, P if i == 0 else H, dtype=F64) for i in range(len(cell.states))]
                if first is None
                else [s[n] for s in first]
            )
            run, y = one_direction(cell, w, below, start, lengths, bool(d))
            kept[-1].append(run)
            here.append(y)
            n += 1
        outputs.append(torch.cat(here, -1))
    y = torch.cat(outputs, -1) if skip else outputs[-1]
    runs = [r for directions in kept for r in directions]
    finals = [torch.stack([r.last[s] for r in runs]) for s in range(len(cell.states))]
    return kept, y, finals


def weights_of(module):
    """The weights of a torch layer, or one of ours, as `unrolled` takes them, layer by layer."""
    layers = []
    for k in range(module.num_layers):
        directions = []
        for suffix in ("", "_reverse")[: 1 + module.bidirectional]:
            end = f"_l{k}{suffix}"
            named = dict(module.named_parameters())
            directions.append(
                {n.removesuffix(end): v.detach().double().requires_grad_() for n, v in named.items() if n.endswith(end)}
            )
        layers.append(directions)
    return layers


def rows(kept, sources):
    """For each loss step t the gradients at everything kept; sources[t]: pairs of tensor and gradient.

    Gives found[layer][direction] = (maps, totals, parts); parts[name] is [T, T, *shape of the parameter].
    """
    flat = [r for directions in kept for r in directions]
    T = len(flat[0].zs)
    wanted, shapes = [], []
    for r in flat:
        for k in range(T):
            names = list(r.weights[k])
            wanted += [*r.zs[k], *r.states[k], *r.weights[k].values()]
            shapes.append((len(r.zs[k]), len(r.states[k]), names))
    by_row = []
    for t in range(T):
        pairs = [(v, g) for v, g in sources[t] if v.requires_grad]
        if pairs:
            outs, gs = zip(*pairs, strict=True)
            by_row.append(torch.autograd.grad(outs, wanted, gs, retain_graph=True, materialize_grads=True))
        else:
            by_row.append([torch.zeros_like(v) for v in wanted])
    found, i = [], 0
    per = len(wanted) // (len(flat) * T)
    for j, _ in enumerate(flat):
        Z, S, names = shapes[j * T]
        z, states, parts = [], [], {n: [] for n in names}
        for k in range(T):
            at = i + k * per
            z.append(torch.stack([torch.cat(row[at : at + Z], -1) for row in by_row]))
            states.append([torch.stack([row[at + Z + s] for row in by_row]) for s in range(S)])
            for m, n in enumerate(names):
                parts[n].append(torch.stack([row[at + Z + S + m] for row in by_row]))
        i += T * per
        maps = {"z": torch.stack([v.flatten(1).norm(dim=1) for v in z], 1)}
        totals = {"z": torch.stack([v.sum(0) for v in z])}
        for s in range(S):
            maps[s] = torch.stack([v[s].flatten(1).norm(dim=1) for v in states], 1)
            totals[s] = torch.stack([v[s].sum(0) for v in states])
        found.append((maps, totals, {n: torch.stack(v, 1) for n, v in parts.items()}))
    sizes = [len(d) for d in kept]
    it = iter(found)
    return [[next(it) for _ in range(n)] for n in sizes]


def sources_of(y, finals, g, g_finals, lengths, dirs):
    """What enters at each step t: g_t at y_t, and at the final states of the sequences whose last step t is."""
    T, B = y.shape[:2]
    lengths = torch.full((B,), T) if lengths is None else lengths
    found = []
    for t in range(T):
        pairs = [(y[t], g[t])]
        for v, gv in zip(finals, g_finals, strict=True):
            last = (torch.arange(v.shape[0]) % dirs == 1)[:, None] & (t == 0) if dirs == 2 else torch.zeros(1, 1).bool()
            forward = (torch.arange(v.shape[0]) % dirs == 0)[:, None] & (lengths == t + 1)
            pairs.append((v, torch.where((last | forward)[..., None], gv, 0.0)))
        found.append(pairs)
    return found


def check(captured, found, states, rtol=1e-9, atol=1e-12):
    """A captured recurrence against brute force: maps, totals, and every share of every parameter."""

    def close(a, b, what):
        torch.testing.assert_close(a, b.to(a), rtol=rtol, atol=atol, msg=lambda m: f"{captured}, {what}: {m}")

    maps, totals, parts = found
    flow, ours = captured.flow(), captured.totals()
    names = dict(enumerate(states))
    assert flow.maps.keys() == {names.get(n, n) for n in maps}
    for n in maps:
        close(flow.maps[names.get(n, n)], maps[n], f"map {names.get(n, n)}")
        close(ours[names.get(n, n)], totals[n], f"total {names.get(n, n)}")
    check_shares(captured.shares(), parts, -1 if captured.reverse else 1, close)


def check_shares(shares, parts, sign, close):
    """parts[name]: [T, T, *shape], the gradient that comes from loss step t by way of step k."""
    assert shares.parameters.keys() == parts.keys()
    for n, part in parts.items():
        p, T = shares[n], part.shape[0]
        G = part.sum((0, 1))
        close(p.gradient, G, n)
        square = G.square().sum()
        t = torch.arange(T)
        lag = sign * (t[:, None] - t)
        by_lag = torch.stack([part[lag == int(d)].sum(0) for d in p.by_lag.at])
        assert len(p.by_lag.at) == T or len(p.by_lag.at) == 2 * T - 1
        for got, want in ((p.by_lag, by_lag), (p.by_loss_step, part.sum(1)), (p.by_past_step, part.sum(0))):
            assert got.error is None
            close(got.norm, want.flatten(1).norm(dim=1), f"{n}: norms")
            if square > 0:
                close(got.contribution, (want * G).flatten(1).sum(1) / square, f"{n}: contributions")
                close(got.contribution.sum(), torch.ones(()), f"{n}: sum")
        if square > 0:
            close(p.pairs, (part * G).flatten(2).sum(2) / square, f"{n}: pairs")
        if p.by_unit is not None and square > 0:
            units = len(p.by_unit.at)
            mine = torch.stack([G.reshape(-1, units, *G.shape[1:])[:, u].norm() for u in range(units)])
            close(p.by_unit.norm, mine, f"{n}: units")
            close(p.by_unit.contribution.sum(), torch.ones(()), f"{n}: units sum")
            close(p.by_lag_and_unit.sum(1), p.by_lag.contribution, f"{n}: lags over units")
            along = (by_lag * G / square).flatten(2).sum(2) if G.dim() > 1 else by_lag * G / square
            close(p.by_lag_and_unit, along.reshape(len(by_lag), -1, units).sum(1), f"{n}: lag and unit")
