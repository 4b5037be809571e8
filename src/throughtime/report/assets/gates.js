"use strict";
// The gates of each recurrence: how often which value, and the regimes that each unit spends its time in.
TT.figures.gates = (stage) => {
  const models = TT.data.models.map((model, index) => ({ ...model, index })).filter((model) => model.gates);
  const panels = TT.html("div", { class: "panels" });
  stage.append(panels);

  function histogram(m, name, shares) {
    const width = 260, left = 48, right = width - 8, top = 22, height = 84, most = Math.max(...shares, 1e-9);
    const y = TT.linear([0, most], [top + height, top]), bar = (right - left) / shares.length;
    const svg = TT.canvasSvg(width, top + height + 24, `${m.name}, gate ${name}: ${TT.text(100 * shares[0])} % of its values in the lowest bin, ${TT.text(100 * shares[shares.length - 1])} % in the highest`);
    svg.append(TT.word(0, 12, `gate ${name}`, { class: "strong" }), TT.word(left - 6, y(most) + 4, `${TT.text(100 * most)}\u2009%`, { "text-anchor": "end" }),
      ...shares.map((share, i) => TT.svg("rect", { class: `column ${TT.model(m.index)}`, x: left + i * bar + .5, width: Math.max(bar - 1, .5), y: y(share), height: top + height - y(share) })),
      TT.svg("path", { class: "axis", d: `M${left},${top + height}H${right}` }),
      ...[["0 shut", left, "start"], ["1 open", right, "end"]].map(([text, x, anchor]) => TT.word(x, top + height + 16, text, { "text-anchor": anchor })));
    return svg;
  }

  // A column is a unit, in order of the regime it is in most; where there are many, some neighbours together.
  function regimes(m, room) {
    const units = m.gates.units, names = m.gates.regimes;
    const main = (row) => row.indexOf(Math.max(...row)), mean = (rows, k) => rows.reduce((sum, row) => sum + row[k], 0) / rows.length;
    const order = [...units].sort((a, b) => main(a) - main(b) || b[main(b)] - a[main(a)]);
    const together = Math.ceil(order.length / 96), columns = [];
    for (let i = 0; i < order.length; i += together) columns.push(order.slice(i, i + together));
    const width = TT.clamp(room, 280, 540), left = 104, row = 17, top = 22, each = (width - left - 44) / columns.length;
    const svg = TT.canvasSvg(width, top + row * names.length + 22, `${m.name}: regimes of ${order.length} units; ` + names.map((name, k) => `${name} ${TT.text(100 * mean(units, k))} %`).join(", "));
    svg.append(TT.word(0, 12, "regime and its gates i, f, o; all units side by side", { class: "strong" }),
      ...columns.flatMap((rows, i) => names.map((_, k) => TT.svg("rect", { x: left + i * each, width: each + .3, y: top + k * row, height: row, fill: `rgb(${TT.ramp(mean(rows, k)).join()})` }))),
      TT.svg("rect", { class: "outline", x: left, y: top, width: width - left - 44, height: row * names.length }),
      ...names.flatMap((name, k) => [TT.word(left - 8, top + k * row + 13, name, { "text-anchor": "end" }),
        TT.word(width, top + k * row + 13, `${TT.text(100 * mean(units, k))}\u2009%`, { "text-anchor": "end" })]));
    return svg;
  }

  const draw = (room) => panels.replaceChildren(...models.flatMap((m) => [
    TT.html("div", { class: "panel wide-panel" }, TT.html("h3", { class: TT.model(m.index) }, TT.html("span", { class: "name" }, m.name))),
    ...Object.entries(m.gates.histograms).map(([name, shares]) => TT.html("div", { class: "panel plot" }, histogram(m, name, TT.numbers(shares)))),
    m.gates.units.length ? TT.html("div", { class: "panel wide-panel plot" }, regimes(m, room)) : null,
  ].filter(Boolean)));
  const csv = () => ["gates.csv", [["model", "what", "name", "bin_or_unit", "share"],
    ...models.flatMap((m) => [...Object.entries(m.gates.histograms).flatMap(([name, shares]) => shares.map((share, i) => [m.name, "gate value", name, i, share])),
      ...m.gates.units.flatMap((row, u) => row.map((share, k) => [m.name, "regime", m.gates.regimes[k], u, share]))])]];
  return { draw, csv };
};
