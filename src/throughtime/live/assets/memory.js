"use strict";
// One memory cell whose gates are set by hand, a step at a time.
(() => {
  const form = document.getElementById("memory-controls"), stage = document.getElementById("memory"), regime = document.getElementById("regime");
  const field = (name) => form.elements.namedItem(name);
  const MOST = 60;
  let gates = [[1, 0, 1], [0, 1, 1], [0, 1, 0], [0, 1, 0], [1, 1, 0], [0, 1, 1], [1, 0, 1], [0, 1, 1]], inputs = [.8, .1, -.4, .6, .5, -.2, -.7, .3];
  const MEANING = { erase: "emptied, nothing written, nothing shown", blank: "emptied, and shown as empty", hold: "kept, shut on both sides",
    "read-only": "kept and shown", overwrite: "written anew, not yet shown", refresh: "written anew and shown", store: "added to silently", accumulate: "added to and shown" };
  let found = null;

  async function ask() {
    const reply = await fetch(`/lab/memory?gates=${gates.map((g) => g.join(",")).join(";")}&inputs=${inputs.join(",")}`);
    found = await reply.json();
    draw();
  }

  function draw() {
    if (!found || found.error) return;
    const now = found.regime[found.regime.length - 1];
    regime.textContent = `${now}: ${MEANING[now]}`;
    const width = Math.floor(stage.clientWidth), left = 44, right = width - 60, top = 22, height = 170, row = 16;
    if (width < 100) return;
    const n = found.c.length, biggest = Math.max(1, ...found.c.map(Math.abs));
    const x = TT.whole([-.5, Math.max(n - .5, 12.5)], [left, right]), y = TT.linear([-biggest, biggest], [top + height, top]);
    const gateTop = top + height + 26, svg = TT.canvasSvg(width, gateTop + 4 * row + 50, `Memory cell over ${n} steps; now ${now}, c ${TT.text(found.c[n - 1])}, h ${TT.text(found.h[n - 1])}`);
    svg.append(TT.yAxis(y, left, right, TT.text, { gap: 40 }));
    const step = x(1) - x(0), ends = [found.c, found.h].map((values) => ({ y: y(values[n - 1]) }));
    TT.spread(ends, 14, top, top + height);
    [["c", 0, found.c], ["h", 1, found.h]].forEach(([name, index, values]) => svg.append(TT.svg("g", { class: TT.model(index) },
      TT.svg("path", { class: `curve ${TT.dash(index)}`, d: TT.line(values.flatMap((v, t) => [[x(t) - step / 2, y(v)], [x(t) + step / 2, y(v)]])) }),
      ...values.map((v, t) => TT.svg("path", { class: "mark small", d: TT.mark(index, x(t), y(v), 3) })),
      TT.word(x(n - 1) + step / 2 + 6, ends[index].y + 4, name, { class: "halo" }))));
    svg.append(TT.word(0, 12, "c, the memory; h, what it shows", { class: "title" }));
    ["i", "f", "o", "\u2202c"].forEach((name, k) => {
      svg.append(TT.word(left - 8, gateTop + k * row + 12, name, { "text-anchor": "end", class: "strong" }));
      gates.forEach((three, t) => svg.append(TT.svg("rect", { x: x(t) - step / 2 + 1, y: gateTop + k * row, width: Math.max(step - 2, 1), height: row - 3, class: "outline", style: `fill: rgb(${TT.ramp(three[k] ?? found.kept[t]).join()})` })));
    });
    svg.append(TT.xAxis(x, gateTop + 4 * row + 4, "step", { gap: 40 }));
    stage.replaceChildren(svg);
  }

  const show = (input) => { form.querySelector(`output[for="${input.name}"]`).textContent = TT.minus(Number(input.value).toFixed(2)); };
  form.querySelectorAll("input[type=range]").forEach((input) => { show(input); input.addEventListener("input", () => show(input)); });
  form.addEventListener("submit", (event) => event.preventDefault());
  const step = () => {
    gates = [...gates, ["i", "f", "o"].map((k) => Number(field(`gate-${k}`).value))].slice(-MOST);
    inputs = [...inputs, Number(field("gate-g").value)].slice(-MOST);
    ask();
  };
  document.getElementById("memory-step").addEventListener("click", step);
  document.getElementById("memory-empty").addEventListener("click", () => { gates = []; inputs = []; step(); });
  for (const button of document.querySelectorAll("[data-gates]")) button.addEventListener("click", () => {
    button.dataset.gates.split(",").forEach((v, k) => { const input = field(`gate-${"ifo"[k]}`); input.value = v; show(input); });
    step();
  });
  TT.saved(stage, "the memory cell", () => found && !found.error && ["memory.csv", [["step", "i", "f", "o", "g", "c", "h", "share of c_0 left", "regime"],
    ...found.c.map((c, t) => [t, ...gates[t], inputs[t], c, found.h[t], found.kept[t], found.regime[t]])]]);
  TT.redraws.push(draw);
  new ResizeObserver(draw).observe(stage);
  ask();
})();
