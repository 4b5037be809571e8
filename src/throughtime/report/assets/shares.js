"use strict";
// The share of each parameter's gradient by lag, a row a parameter, a cell a lag.
TT.figures.shares = (stage) => {
  const models = TT.data.models.map((model, index) => ({ ...model, index })).filter((model) => Object.keys(model.shares).length);
  const plot = TT.html("div", { class: "plot" });
  stage.append(plot);
  // Lags are put together in growing runs: 0, 1, 2-3, 4-7, ...
  const runs = (n) => { const out = [[0, 1]]; for (let low = 1; low < n; low *= 2) out.push([low, Math.min(2 * low, n)]); return out; };
  function draw(width) {
    const rows = models.flatMap((m) => Object.entries(m.shares).map(([name, shares]) => ({ m, name, shares: TT.numbers(shares) })));
    const bins = runs(Math.max(...rows.map((r) => r.shares.length))), left = Math.min(150, width * .34), right = width - 4, top = 40, row = 26;
    const each = (right - left) / bins.length;
    const svg = TT.canvasSvg(width, top + row * rows.length + 8, rows.map((r) => `${r.m.name} ${r.name}: ${TT.text(100 * r.shares[0])} % from lag 0`).join("; "));
    svg.append(TT.word(0, 12, "share of the gradient, by lag in steps", { class: "title" }),
      ...bins.map(([a, b], i) => each > 34 || i % 2 === 0 ? TT.word(left + (i + .5) * each, 32, b - a === 1 ? a : `${a}\u2013${b - 1}`, { "text-anchor": "middle" }) : "").filter(Boolean));
    rows.forEach((r, k) => {
      svg.append(TT.word(0, top + k * row + 17, TT.fit(r.name, left - 8), { class: TT.model(r.m.index) }));
      bins.forEach(([a, b], i) => {
        const share = r.shares.slice(a, b).reduce((sum, v) => sum + v, 0), text = Math.abs(share) < .0005 ? "0" : TT.minus((100 * share).toFixed(Math.abs(share) < .1 ? 1 : 0));
        const [red, green, blue] = TT.ramp(Math.max(0, share)), bright = .299 * red + .587 * green + .114 * blue > 140;
        svg.append(TT.svg("rect", { x: left + i * each + 1, width: Math.max(each - 2, 1), y: top + k * row, height: row - 3, fill: `rgb(${red},${green},${blue})` }));
        if (each > 44) svg.append(TT.word(left + (i + .5) * each, top + k * row + 16, `${text}\u2009%`, { "text-anchor": "middle", class: bright ? "onlight" : "ondark" }));
      });
    });
    plot.replaceChildren(svg);
  }
  const csv = () => ["shares-by-lag.csv", [["model", "parameter", "lag", "share"],
    ...models.flatMap((m) => Object.entries(m.shares).flatMap(([name, shares]) => shares.map((share, lag) => [m.name, name, lag, share])))]];
  return { draw, csv };
};
