"use strict";
// The lag profile of each model, and under it how much the text depends on itself at the same lag.
TT.figures.lags = (stage, tools) => {
  const { data } = TT;
  const models = data.models.map((model, index) => ({ ...model, index,
    profile: Object.fromEntries(Object.entries(model.profile).map(([s, p]) => [s, TT.numbers(p)])) }))
    .filter((model) => Object.keys(model.profile).length);
  const text = data.dependence && { lags: TT.numbers(data.dependence.lags), bits: TT.numbers(data.dependence.bits), chance: TT.numbers(data.dependence.baseline), unit: data.dependence.unit, what: data.dependence.what };
  const states = TT.statesOf(models, "profile");
  const longest = Math.max(...models.flatMap((m) => Object.values(m.profile).map((p) => p.length))) - 1;
  const farthest = Math.max(longest, 1, ...(text ? text.lags : []));
  const lags = [...new Set([...Array(longest + 1).keys(), ...(text ? text.lags : [])])].sort((a, b) => a - b);
  let state = models[0].state in models[0].profile ? models[0].state : states[0];
  let logarithmic = farthest > 4 * Math.max(longest, 1);
  let x, y, yText, layer, marks;

  const stateOf = (m) => state in m.profile ? state : m.state in m.profile ? m.state : Object.keys(m.profile)[0];
  const nameOf = (m) => states.length > 1 ? `${m.name} ${stateOf(m)}` : m.name;
  const logOf = (v) => v > 0 ? Math.log10(v) : -Infinity;
  const readout = TT.readout();
  const ask = data.dataHorizon ? data.dataHorizon.steps : models[0].horizon[models[0].state]?.steps ?? 0;
  const cursor = TT.cursor(`Size of the gradient by lag: ${models.map((m) => m.name).join(", ")}. Arrow keys move along the lags.`, {
    count: () => lags.length,
    start: Math.max(0, lags.findIndex((lag) => lag >= Math.min(ask, farthest))),
    at: (px) => { const v = x.invert(px); return lags.reduce((best, lag, i) => Math.abs(lag - v) < Math.abs(lags[best] - v) ? i : best, 0); },
    show(i) {
      const lag = lags[i];
      const entries = models.map((m) => ({ index: m.index, key: nameOf(m), text: TT.text(m.profile[stateOf(m)][lag]) }));
      const j = text ? text.lags.indexOf(lag) : -1;
      if (text) entries.push({ key: "data", text: j < 0 ? "\u2014" : `${TT.text(text.bits[j])} ${text.unit}, chance ${TT.text(text.chance[j])}` });
      layer.replaceChildren(TT.svg("line", { x1: x(lag), x2: x(lag), y1: marks.top, y2: marks.bottom }));
      for (const m of models) {
        const v = logOf(m.profile[stateOf(m)][lag] ?? NaN);
        if (Number.isFinite(v) && v >= y.domain[0]) layer.append(TT.svg("path", { class: `mark ${TT.model(m.index)}`, d: TT.mark(m.index, x(lag), y(v), 4.5) }));
      }
      if (j >= 0 && text.bits[j] > 0) layer.append(TT.svg("path", { class: "mark ink", d: TT.mark(0, x(lag), yText(Math.max(logOf(text.bits[j]), yText.domain[0])), 3.5) }));
      return readout.set(`lag ${TT.count(lag)}`, entries);
    },
  });
  if (states.length > 1) tools.append(TT.choice("State", states.map((s) => [s, data.stateNames[s] ?? s]), state, (s) => { state = s; redraw(); }));
  tools.append(TT.choice("Lag axis", [[false, "linear"], [true, "logarithmic"]], logarithmic, (v) => { logarithmic = v; redraw(); }));
  stage.append(readout.node, cursor.plot);

  function profiles(svg, width, left, right, top, height) {
    const clip = TT.svg("clipPath", { id: "clip-lags" }, TT.svg("rect", { x: left - 8, y: top - 8, width: right - left + 16, height: height + 8 }));
    const line = y(Math.log10(data.fraction));
    svg.append(clip, TT.yAxis(y, left, right, TT.power, { except: line }));
    svg.append(TT.svg("line", { class: "floor", x1: left, x2: right, y1: line, y2: line }),
      TT.word(left - 8, line + 4, TT.share(), { class: "strong", "text-anchor": "end" }));
    const place = TT.placer();
    const ends = [];
    let troubled = 0;
    for (const m of models) {
      if (TT.number(m.bound) > 0) {
        const slope = Math.log10(TT.number(m.bound)), far = m.profile[stateOf(m)].length - 1;
        svg.append(TT.svg("g", { class: TT.model(m.index), "clip-path": "url(#clip-lags)" },
          TT.svg("path", { class: "short", "stroke-dasharray": "3 3", d: TT.line([...Array(far + 1).keys()].map((lag) => [x(lag), y(TT.clamp(lag * slope, y.domain[0] - 40, y.domain[1] + 40))])) })));
      }
      const curve = m.profile[stateOf(m)].map((v) => Number.isNaN(v) ? null : TT.clamp(logOf(v), y.domain[0] - 40, y.domain[1] + 1));
      const group = TT.svg("g", { class: TT.model(m.index) });
      group.append(TT.svg("path", { class: `curve ${TT.dash(m.index)}`, "clip-path": "url(#clip-lags)", d: TT.line(curve.map((v, lag) => [x(lag), v === null ? null : y(v)])) }));
      if (curve.length === 1 && curve[0] !== null) group.append(TT.svg("path", { class: "mark", d: TT.mark(m.index, x(0), y(TT.clamp(curve[0], ...y.domain)), 5) }));
      const lost = m.profile[stateOf(m)].findIndex((v) => !Number.isFinite(v));
      const last = curve.findLastIndex((v) => v !== null && v >= y.domain[0]);
      const name = TT.fit(nameOf(m), 180);
      if (lost >= 0) {
        troubled += 1;
        group.append(TT.trouble(m, x(lost), top - 10 + 17 * troubled, width, nameOf(m), `${TT.text(m.profile[stateOf(m)][lost])} from lag ${lost}`));
      } else if (last === curve.length - 1 && x(last) > right - 60) {
        ends.push({ y: y(curve[last]), name, m });
      } else {
        const at = x(Math.max(last, 0)) + 9;
        const end = at + TT.width(name, true) > width;
        const ty = place(at, last === curve.length - 1 ? y(curve[last]) + 4 : top + height - 8, name, end ? "end" : "start", top, top + height);
        group.append(TT.word(end ? at - 20 : at, ty, name, { class: "halo", "text-anchor": end ? "end" : "start" }));
      }
      svg.append(group);
    }
    TT.spread(ends, 15, top, top + height).forEach((e) =>
      svg.append(TT.word(right + 8, e.y + 4, TT.fit(e.name, width - right - 8), { class: `model halo ${TT.model(e.m.index)}` })));
    for (const m of models) {
      const horizon = m.horizon[stateOf(m)], v = horizon && m.profile[stateOf(m)][horizon.steps];
      if (!(v > 0) || !Number.isFinite(v)) continue;
      const px = x(horizon.steps), py = y(TT.clamp(Math.log10(v), ...y.domain)), words = TT.stepsOf(horizon);
      // Above, to the right; below, to the left where another curve runs through that place.
      const crossed = models.some((o) => o !== m && o.profile[stateOf(o)].some((u, lag) =>
        u > 0 && x(lag) > px && x(lag) < px + 9 + TT.width(words, true) && Math.abs(y(Math.log10(u)) - (py - 13)) < 10));
      const end = crossed || px + 10 + TT.width(words, true) > right;
      svg.append(TT.svg("g", { class: TT.model(m.index) },
        TT.svg("path", { class: "short", d: `M${px},${py}V${top + height}`, "stroke-dasharray": "1 3" }),
        TT.svg("path", { class: "mark", d: TT.mark(m.index, px, py, 5.5) }),
        TT.word(end ? px - 6 : px + 9, place(end ? px - 6 : px + 9, crossed ? py + 17 : py - 9, words, end ? "end" : "start", top, top + height), words, { class: "halo", "text-anchor": end ? "end" : "start" })));
    }
  }

  function dependence(svg, left, right, top, height) {
    svg.append(TT.yAxis(yText, left, right, TT.power, { gap: 26 }), TT.word(0, top - 12, `${text.what}, ${text.unit}`, { class: "title halo" }));
    const low = yText.domain[0], at = (v) => Number.isNaN(v) ? null : yText(TT.clamp(logOf(v), ...yText.domain));
    const chance = text.chance.map((v, i) => [x(text.lags[i]), at(v)]).filter(([, v]) => v !== null);
    if (chance.length) svg.append(TT.svg("path", { class: "chance", d: TT.line([[chance[0][0], yText(low)], ...chance, [chance[chance.length - 1][0], yText(low)]]) + "z" }));
    svg.append(TT.svg("path", { class: "curve ink", "stroke-width": 1.5, d: TT.line(text.bits.map((v, i) => [x(text.lags[i]), at(v)])) }));
    if (text.lags.length === 1) svg.append(TT.svg("path", { class: "mark ink", d: TT.mark(0, x(text.lags[0]), at(text.bits[0]) ?? 0, 4) }));
    const end = text.bits.length - 1;
    const labels = [{ y: at(text.bits[end]) ?? top, name: data.asks.replace(/^The /, "the "), kind: "strong" }, { y: Math.min((at(text.chance[end]) ?? yText(low)) + 9, yText(low)), name: "chance", kind: "" }];
    const edge = x(text.lags[end]);
    for (const label of TT.spread(labels, 14, top, top + height)) svg.append(TT.word(edge + 8, label.y + 4, label.name, { class: `${label.kind} halo` }));
  }

  function draw(width) {
    const narrow = width < 560;
    const left = 40, labels = Math.max(...models.map((m) => TT.width(nameOf(m), true)), 48);
    const right = width - TT.clamp(labels + 12, 56, narrow ? width * .24 : 180);
    const top = 50, height = narrow ? 250 : 330, topText = top + height + 58, heightText = text ? (narrow ? 90 : 110) : 0;
    const bottom = text ? topText + heightText : top + height;
    const logs = models.flatMap((m) => m.profile[stateOf(m)].map(logOf)).filter(Number.isFinite);
    const low = Math.min(TT.clamp(Math.floor(Math.min(...logs, 0)), -8, -2), Math.ceil(Math.log10(data.fraction)) - 1);
    x = (logarithmic ? TT.lag : TT.whole)([0, farthest], [left, right]);
    y = TT.exponents([low, Math.max(0, Math.ceil(Math.max(...logs, 0) - .1))], [top + height, top]);
    const svg = TT.canvasSvg(width, bottom + 46);
    svg.append(TT.word(0, 14, "size of the gradient, relative to lag 0", { class: "title" }));
    if (data.dataHorizon && data.dataHorizon.steps <= farthest) {
      const px = x(data.dataHorizon.steps), words = `${data.asks.replace(/^The /, "the ")} asks for ${TT.reach(data.dataHorizon)}`;
      const end = px + TT.width(words, true) > width;
      svg.append(TT.svg("line", { class: "asked", x1: px, x2: px, y1: top - 8, y2: bottom }),
        TT.word(px, top - 14, words, { class: "strong halo", "text-anchor": end ? "end" : px < 60 ? "start" : "middle" }));
    }
    if (text) {
      const bits = [...text.bits, ...text.chance].map(logOf).filter(Number.isFinite);
      const floor = TT.clamp(Math.floor(Math.min(...bits, 0)), -6, -1);
      yText = TT.exponents([floor, Math.max(floor + 1, Math.ceil(Math.max(...bits, floor) - .1))], [topText + heightText, topText]);
      dependence(svg, left, right, topText, heightText);
    }
    profiles(svg, width, left, right, top, height);
    if (text) svg.append(TT.svg("path", { class: "axis", d: `M${left},${top + height}H${right}` }));
    svg.append(TT.xAxis(x, bottom, "lag, steps", { gap: logarithmic ? 30 : 54 }));
    layer = TT.svg("g", { class: "cursor" });
    svg.append(layer);
    marks = { top, bottom };
    cursor.plot.replaceChildren(svg);
    cursor.refresh();
  }
  let width = 0;
  const redraw = () => draw(width);
  const csv = () => ["lag-profile.csv", [["lag", ...models.flatMap((m) => Object.keys(m.profile).map((s) => `${m.name} ${s}`)), ...(text ? [`data ${text.unit}`, `chance ${text.unit}`] : [])],
    ...lags.map((lag) => [lag, ...models.flatMap((m) => Object.values(m.profile).map((p) => p[lag])),
      ...(text ? [text.bits[text.lags.indexOf(lag)], text.chance[text.lags.indexOf(lag)]] : [])])]];
  return { draw: (w) => { width = w; draw(w); }, csv };
};
