"use strict";
// The history of gradient norms, and what a clip threshold would have done to it.
TT.figures.norms = (stage, tools) => {
  const models = TT.data.models.map((model, index) => ({ ...model, index, norms: model.norms.map(TT.numbers), clip: TT.number(model.clip) })).filter((model) => model.norms.length);
  const good = models.flatMap((m) => m.norms.map(([, v]) => v)).filter((v) => v > 0 && Number.isFinite(v)).sort((a, b) => a - b);
  const quantile = (q) => good[Math.min(good.length - 1, Math.floor(q * good.length))];
  const used = models.find((m) => m.clip !== null)?.clip ?? null;
  let threshold = used ?? quantile(.9) ?? 1, width = 0;
  const readout = TT.readout(), plot = TT.html("div", { class: "plot" });
  stage.append(readout.node, plot);
  if (good.length) tools.append(TT.choice("Threshold", [...(used === null ? [] : [[used, `in use, ${TT.text(used)}`]]), ...[.5, .9, .99].map((q) => [quantile(q), `${100 * q}\u2009% quantile, ${TT.text(quantile(q))}`])], threshold, (v) => { threshold = v; draw(width); }));
  function draw(w) {
    width = w;
    const left = 44, right = w - 8, top = 12, height = 220, steps = models.flatMap((m) => m.norms.map(([s]) => s));
    const low = Math.log10(Math.min(good[0] ?? .1, threshold)), high = Math.log10(Math.max(good[good.length - 1] ?? 1, threshold));
    const x = TT.whole([0, steps.reduce((a, b) => Math.max(a, b), 1)], [left, right]), y = TT.exponents([Math.floor(low), Math.ceil(high + 1e-9)], [top + height, top]);
    const svg = TT.canvasSvg(w, top + height + 44, `Gradient norm over training: ${models.map((m) => m.name).join(", ")}`);
    svg.append(TT.yAxis(y, left, right, TT.power));
    for (const m of models) svg.append(TT.svg("g", { class: TT.model(m.index) },
      TT.svg("path", { class: `curve thin ${TT.dash(m.index)}`, d: TT.line(m.norms.map(([s, v]) => [x(s), v > 0 && Number.isFinite(v) ? y(Math.log10(v)) : null])) }),
      ...m.norms.filter(([, v]) => !Number.isFinite(v)).map(([s]) => TT.svg("path", { class: "bad", d: TT.cross(x(s), top + 8) }))));
    svg.append(TT.svg("line", { class: "floor", x1: left, x2: right, y1: y(Math.log10(threshold)), y2: y(Math.log10(threshold)) }),
      TT.svg("path", { class: "axis", d: `M${left},${top + height}H${right}` }), TT.xAxis(x, top + height, "training step", { gap: 60 }));
    plot.replaceChildren(svg);
    readout.set(`threshold ${TT.text(threshold)}`, models.map((m) => { const finite = m.norms.filter(([, v]) => Number.isFinite(v));
      return { index: m.index, key: models.length < TT.data.models.length ? "the model" : m.name, text: `would shorten ${TT.text(100 * finite.filter(([, v]) => v > threshold).length / Math.max(1, finite.length))}\u2009% of the steps` }; }));
  }
  const csv = () => ["gradient-norms.csv", [["model", "step", "norm"], ...models.flatMap((m) => m.norms.map(([s, v]) => [m.name, s, v]))]];
  return { draw, csv };
};
