"use strict";
// Training and validation loss of each model against training steps.
TT.figures.loss = (stage) => {
  const { data } = TT;
  const part = ({ step, bits }) => ({ step: TT.numbers(step), bits: TT.numbers(bits) });
  const models = data.models.map((model, index) => ({ name: model.name, index, train: part(model.history.train), valid: part(model.history.valid) }))
    .filter((model) => model.train.step.length);
  const floors = data.floors.map(({ name, bits }) => ({ name, bits: TT.number(bits) }));
  const steps = [...new Set(models.flatMap((m) => [...m.train.step, ...m.valid.step]))].sort((a, b) => a - b);
  let x, y, layer, frame;

  // The record at a step, or the last one before it: what was known then.
  const last = (list, step) => list.step.findLastIndex((s) => s <= step);
  const readout = TT.readout();
  const cursor = TT.cursor(`Loss in ${data.lossUnit} by training step: ${models.map((m) => m.name).join(", ")}. Arrow keys move along the steps.`, {
    count: () => steps.length,
    start: steps.length - 1,
    at: (px) => { const v = x.invert(px); return steps.reduce((best, s, i) => Math.abs(s - v) < Math.abs(steps[best] - v) ? i : best, 0); },
    show(i, touched) {
      const step = steps[i];
      layer.replaceChildren(touched ? TT.svg("line", { x1: x(step), x2: x(step), y1: frame.top, y2: frame.bottom }) : "");
      return readout.set(`step ${TT.count(step)}`, models.map((m) => {
        const t = last(m.train, step), v = last(m.valid, step);
        if (touched && v >= 0 && Number.isFinite(m.valid.bits[v])) layer.append(TT.svg("path", { class: `mark ${TT.model(m.index)}`, d: TT.mark(m.index, x(m.valid.step[v]), y(Math.min(m.valid.bits[v], y.domain[1])), 5.5) }));
        return { index: m.index, key: m.name, text: `train ${TT.text(t < 0 ? null : m.train.bits[t])}` + (m.valid.step.length ? `, valid ${TT.text(v < 0 ? null : m.valid.bits[v])}` : "") };
      }));
    },
  });
  stage.append(readout.node, cursor.plot);

  function ceiling(values) {
    const top = Math.max(...values, ...floors.map((f) => f.bits));
    const sorted = [...values].sort((a, b) => a - b);
    const usual = Math.max(...floors.map((f) => f.bits * 1.08), sorted[Math.floor(sorted.length * .9)] * 1.6);
    return Math.min(top, Number.isFinite(usual) ? usual : top);
  }

  function curves(svg, m, width, right, top, ends) {
    const group = TT.svg("g", { class: TT.model(m.index) });
    const at = (list) => list.step.map((s, i) => [x(s), Number.isFinite(list.bits[i]) ? y(list.bits[i]) : null]);
    const dots = (list) => list.step.map((s, i) => TT.mark(m.index, x(s), y(list.bits[i]), 3.5)).filter((d, i) => list.bits[i] <= y.domain[1]).join("");
    group.append(TT.svg("path", { class: "curve thin", "clip-path": "url(#clip-loss)", d: TT.line(at(m.train)) }));
    if (m.train.step.length === 1) group.append(TT.svg("path", { class: "open", d: dots(m.train) }));
    group.append(TT.svg("path", { class: `curve ${TT.dash(m.index)}`, "clip-path": "url(#clip-loss)", d: TT.line(at(m.valid)) }));
    if (m.valid.step.length <= 40) group.append(TT.svg("path", { class: "mark small", d: dots(m.valid) }));
    const lost = [m.train, m.valid].flatMap((list) => list.bits.map((b, i) => [b, list.step[i]])).filter(([b]) => !Number.isFinite(b)).sort((a, b) => a[1] - b[1])[0];
    if (lost) {
      group.append(TT.trouble(m, x(lost[1]), top + 12 + 18 * m.index, width, m.name, `${TT.text(lost[0])} from step ${TT.count(lost[1])}`));
    } else {
      const list = m.valid.step.length ? m.valid : m.train, value = list.bits[list.bits.length - 1];
      ends.push({ y: y(TT.clamp(value, ...y.domain)), name: m.name, value: TT.text(value), m });
    }
    svg.append(group);
  }

  function draw(width) {
    const narrow = width < 560, top = 36, height = narrow ? 250 : 330, bottom = top + height, left = 34;
    const labels = Math.max(40, ...models.map((m) => TT.width(`${m.name} 0.00`, true)), ...(narrow ? [] : floors.map((f) => TT.width(`${f.name} 0.00`, true))));
    const right = width - TT.clamp(labels + 22, 50, narrow ? width * .3 : 200);
    const values = models.flatMap((m) => [...m.train.bits, ...m.valid.bits]).filter(Number.isFinite);
    const high = values.length ? ceiling(values) : Math.max(1, ...floors.map((f) => f.bits)), low = Math.min(...(values.length ? values : [0]), ...floors.map((f) => f.bits));
    const pad = (high - low || Math.abs(high) || 1) * .06;
    x = (steps.every(Number.isInteger) ? TT.whole : TT.linear)([Math.min(0, steps[0]), Math.max(steps[steps.length - 1], 1)], [left, right]);
    y = TT.linear([low >= 0 ? Math.max(0, low - 2 * pad) : low - pad, high + pad], [bottom, top]);
    frame = { top, bottom };
    const svg = TT.canvasSvg(width, bottom + 46);
    svg.append(TT.svg("clipPath", { id: "clip-loss" }, TT.svg("rect", { x: left, y: top, width: Math.max(right - left, 1), height })),
      TT.word(0, 14, data.lossUnit, { class: "title" }), TT.yAxis(y, left, right, (v) => TT.minus(v), { gap: 40 }));
    const ends = [];
    for (const floor of floors) {
      const py = y(floor.bits), name = `${floor.name} ${TT.text(floor.bits)}`;
      svg.append(TT.svg("line", { class: "floor", x1: left, x2: right, y1: py, y2: py }));
      if (narrow) svg.append(TT.word(right - 4, py - 5, name, { class: "halo", "text-anchor": "end" }));
      else ends.push({ y: py, name: floor.name, value: TT.text(floor.bits) });
    }
    models.forEach((m) => curves(svg, m, width, right, top, ends));
    for (const end of TT.spread(ends, 16, top, bottom)) {
      const room = width - right - 10 - TT.width(` ${end.value}`, true);
      svg.append(TT.svg("text", { x: right + 10, y: end.y + 4, class: end.m ? `model halo ${TT.model(end.m.index)}` : "halo" },
        `${TT.fit(end.name, room)} `, TT.svg("tspan", { class: "light" }, end.value)));
    }
    svg.append(TT.xAxis(x, bottom, "training steps", { gap: 64 }));
    layer = TT.svg("g", { class: "cursor" });
    svg.append(layer);
    cursor.plot.replaceChildren(svg);
    cursor.refresh();
  }
  const csv = () => ["loss.csv", [["model", "split", "step", data.lossUnit.replaceAll(" ", "_")],
    ...models.flatMap((m) => ["train", "valid"].flatMap((split) => m[split].step.map((s, i) => [m.name, split, s, m[split].bits[i]])))]];
  return { draw, csv };
};
