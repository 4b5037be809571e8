"use strict";
// The horizons of the text and of each model on one axis of lags.
TT.figures.horizons = (stage) => {
  const { data } = TT;
  const rows = [];
  if (data.dataHorizon) rows.push({ name: data.asks, horizon: data.dataHorizon, tail: "asked for" });
  data.models.forEach((model, index) => {
    const horizon = model.state === null ? null : model.horizon[model.state];
    if (horizon) rows.push({ index, name: model.name, horizon, half: TT.number(model.halfLife[model.state] ?? null), use: model.use });
  });
  const far = Math.max(data.window, ...rows.flatMap((row) => [row.horizon.steps, row.use ? row.use.steps : 0]));
  const words = rows.map((row) => `${row.name}: ${TT.stepsOf(row.horizon)}`).join("; ") + `; training window: ${data.window} steps`;
  const plot = TT.html("div", { class: "plot" });
  stage.append(plot);

  function draw(width) {
    const narrow = width < 560;
    const left = narrow ? 2 : TT.clamp(Math.max(...rows.map((row) => TT.width(row.name, true))) + 24, 80, 190);
    const top = 34, pitch = narrow ? 58 : 52, bottom = top + rows.length * pitch + (narrow ? 10 : 0);
    const x = TT.lag([0, far * 1.12 + 1], [left, width - 4]);
    const svg = TT.canvasSvg(width, bottom + 46, words);
    const ask = data.dataHorizon && x(data.dataHorizon.steps);
    svg.append(TT.svg("line", { class: "window", x1: x(data.window), x2: x(data.window), y1: top - 12, y2: bottom }));
    svg.append(TT.word(TT.clamp(x(data.window), 0, width - 4), top - 18, `training window T\u2009=\u2009${data.window}`, { "text-anchor": "end" }));
    if (ask) svg.append(TT.svg("line", { class: "asked", x1: ask, x2: ask, y1: top + pitch * .5, y2: bottom }));
    rows.forEach((row, i) => {
      const y = top + (i + (narrow ? .62 : .5)) * pitch;
      const model = row.index !== undefined;
      const end = x(row.horizon.steps);
      const group = TT.svg("g", { class: model ? TT.model(row.index) : "ink" });
      group.append(narrow
        ? TT.word(left, y - 15, TT.fit(row.name, width * .6), { class: model ? "halo" : "strong halo" })
        : TT.word(0, y + 4, TT.fit(row.name, left - 14), { class: model ? null : "strong" }));
      if (model && ask && end < ask - 12) group.append(TT.svg("path", { class: "short", d: `M${end},${y}H${ask}`, "stroke-dasharray": "1 4" }));
      group.append(TT.svg("path", { class: `span ${model ? TT.dash(row.index) : ""}`, d: `M${left},${y}H${end}` }));
      const halved = row.half !== undefined && row.half !== null && row.half > 0 && row.half < row.horizon.steps;
      const close = row.use && Math.abs(x(row.use.steps) - x(row.half ?? 0)) < 90, together = narrow && close && halved;  // on a phone the name stands above
      if (halved) {
        group.append(TT.svg("path", { class: "curve", d: `M${x(row.half)},${y - 7}v14` }));
        group.append(TT.word(x(row.half), y + 20, `half-life ${TT.text(row.half)}${together ? `, in use ${TT.reach(row.use)}` : ""}`, { class: "light halo", "text-anchor": x(row.half) - left < (together ? 75 : 40) ? "start" : "middle" }));
      }
      if (row.use) group.append(TT.svg("path", { class: "open", d: TT.mark(0, x(row.use.steps), y, 5) }),
        together ? "" : TT.word(x(row.use.steps), close ? y - 11 : y + 20, `in use ${TT.reach(row.use)}`, { class: "light halo", "text-anchor": x(row.use.steps) - left < 24 ? "start" : "middle" }));
      if (row.horizon.atLeast) group.append(TT.svg("path", { class: "curve", d: `M${end + 9},${y - 5}l6,5l-6,5` }));
      group.append(TT.svg("path", { class: "mark", d: model ? TT.mark(row.index, end, y, 6) : `M${end - 2},${y - 9}h4v18h-4z` }));
      const text = TT.stepsOf(row.horizon) + (row.tail ? ` ${row.tail}` : "");
      const room = width - end - 22 > TT.width(text, true) && (end > x(data.window) || end + 18 + TT.width(text, true) < x(data.window));
      group.append(TT.word(room ? end + (row.horizon.atLeast ? 22 : 13) : end - 2, room ? y + 4 : y - 12, text,
        { class: model ? "halo" : "strong halo", "text-anchor": room ? "start" : "end" }));
      svg.append(group);
    });
    svg.append(TT.xAxis(x, bottom, "lag, steps back from the loss", { gap: 30 }));
    plot.replaceChildren(svg);
  }

  const csv = () => ["horizons.csv", [["what", "state", "horizon_steps", "at_least", "half_life_steps", "use_steps"],
    ...(data.dataHorizon ? [["data", "", data.dataHorizon.steps, data.dataHorizon.atLeast, "", ""]] : []),
    ...data.models.flatMap((model) => Object.entries(model.horizon).filter(([, h]) => h).map(([state, h]) =>
      [model.name, state, h.steps, h.atLeast, TT.number(model.halfLife[state] ?? null), model.use ? model.use.steps : ""])),
    ["training window", "", data.window, false, "", ""]]];
  return { draw, csv };
};
