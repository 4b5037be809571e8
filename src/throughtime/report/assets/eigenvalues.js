"use strict";
// Eigenvalues of the recurrent matrix and of the state Jacobian in the complex plane.
TT.figures.eigenvalues = (stage) => {
  const models = TT.data.models.map((model, index) => ({ ...model, index })).filter((model) => Object.keys(model.eigenvalues).length);
  const panels = TT.html("div", { class: "panels" });
  stage.append(panels);
  const size = ([re, im]) => Math.hypot(re, im);
  function panel(m) {
    const points = Object.entries(m.eigenvalues).flatMap(([of, list]) => list.map((p) => [of, TT.numbers(p)])).filter(([, p]) => p.every(Number.isFinite));
    const side = 280, largest = points.reduce((most, [, p]) => Math.max(most, size(p)), 1.05) * 1.08, at = (v) => side / 2 + v / largest * side / 2;
    const radius = (of) => TT.text(points.filter(([name]) => name === of).reduce((most, [, p]) => Math.max(most, size(p)), 0));
    const words = Object.keys(m.eigenvalues).map((of) => `largest of ${of}: ${radius(of)}`).join(", ");
    const svg = TT.canvasSvg(side, side, `${m.name}, eigenvalues; ${words}`);
    svg.append(TT.svg("path", { class: "grid", d: `M0,${side / 2}H${side}M${side / 2},0V${side}` }), TT.svg("circle", { class: "axis", cx: side / 2, cy: side / 2, r: side / 2 / largest }),
      ...points.map(([of, [re, im]]) => TT.svg("g", { class: TT.model(m.index) }, TT.svg("circle", { class: `${of === "U" ? "open" : "mark"} small`, cx: at(re), cy: at(-im), r: of === "U" ? 4.5 : 2.6 }))));
    return TT.html("div", { class: "panel plot" }, TT.html("h3", { class: TT.model(m.index) }, TT.html("span", { class: "name" }, m.name)), svg, TT.html("p", { class: "readout" }, words));
  }
  const draw = () => panels.replaceChildren(...models.map(panel));
  const csv = () => ["eigenvalues.csv", [["model", "of", "real", "imaginary"],
    ...models.flatMap((m) => Object.entries(m.eigenvalues).flatMap(([of, list]) => list.map(([re, im]) => [m.name, of, re, im])))]];
  return { draw, csv };
};
