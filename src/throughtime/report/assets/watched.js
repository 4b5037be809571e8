"use strict";
// The gradient horizon over training, as the watch measured it.
TT.figures.watched = (stage) => {
  const models = TT.data.models.map((model, index) => ({ name: model.name, index, watched: model.watched.map(([step, reach]) => ({ step: TT.number(step), ...reach })) })).filter((m) => m.watched.length);
  const steps = [...new Set(models.flatMap((m) => m.watched.map((w) => w.step)))].sort((a, b) => a - b), asked = TT.data.dataHorizon;
  const say = (reach) => `${reach.atLeast ? "\u2265\u2009" : ""}${TT.count(reach.steps)}`;
  let x, y, layer, frame;
  const readout = TT.readout();
  const cursor = TT.cursor(`Gradient horizon by training step: ${models.map((m) => m.name).join(", ")}. Arrow keys move along the measurements.`, {
    count: () => steps.length,
    start: steps.length - 1,
    at: (px) => { const v = x.invert(px); return steps.reduce((best, s, i) => Math.abs(s - v) < Math.abs(steps[best] - v) ? i : best, 0); },
    show(i, touched) {
      const step = steps[i];
      layer.replaceChildren(touched ? TT.svg("line", { x1: x(step), x2: x(step), y1: frame.top, y2: frame.bottom }) : "");
      return readout.set(`step ${TT.count(step)}`, models.map((m) => {
        const last = m.watched.findLast((w) => w.step <= step);
        return { index: m.index, key: m.name, text: last ? `${say(last)} steps` : "not yet measured" };
      }));
    },
  });
  stage.append(readout.node, cursor.plot);
  function draw(width) {
    const left = 44, right = width - 12, top = 34, height = 200, bottom = top + height;
    const seen = models.flatMap((m) => m.watched.map((w) => w.steps)), known = asked && asked.steps <= 3 * Math.max(...seen, 1);
    x = TT.whole([0, Math.max(steps[steps.length - 1], 1)], [left, right]);
    y = TT.whole([0, Math.max(...seen, known ? asked.steps : 0, 1) * 1.08], [bottom, top]);
    frame = { top, bottom };
    const svg = TT.canvasSvg(width, bottom + 46);
    svg.append(TT.word(0, 14, "gradient horizon, steps", { class: "title" }), TT.yAxis(y, left, right, TT.count));
    if (known) svg.append(TT.svg("line", { class: "floor", x1: left, x2: right, y1: y(asked.steps), y2: y(asked.steps) }),
      TT.word(right - 4, y(asked.steps) - 5, `asked for: ${say(asked)}`, { class: "halo", "text-anchor": "end" }));
    for (const m of models) svg.append(TT.svg("g", { class: TT.model(m.index) },
      TT.svg("path", { class: `curve ${TT.dash(m.index)}`, d: TT.line(m.watched.map((w) => [x(w.step), y(w.steps)])) }),
      ...m.watched.map((w) => TT.svg("path", { class: w.atLeast ? "open" : "mark small", d: TT.mark(m.index, x(w.step), y(w.steps), m.watched.length > 60 ? 2.5 : 4) }))));
    svg.append(TT.svg("path", { class: "axis", d: `M${left},${bottom}H${right}` }), TT.xAxis(x, bottom, "training steps", { gap: 64 }));
    layer = TT.svg("g", { class: "cursor" });
    svg.append(layer);
    cursor.plot.replaceChildren(svg);
    cursor.refresh();
  }
  const csv = () => ["horizons-over-training.csv", [["model", "step", "horizon", "at_least"], ...models.flatMap((m) => m.watched.map((w) => [m.name, w.step, w.steps, w.atLeast]))]];
  return { draw, csv };
};
