"use strict";
// The loss of a single unit over its weight and bias, and gradient descent over it with and without a clip.
(() => {
  const form = document.getElementById("cliff-controls"), stage = document.getElementById("cliff"), told = document.getElementById("cliff-told");
  const field = (name) => form.elements.namedItem(name);
  let found = null, w = 6, b = -2.2, busy = false, waiting = false;

  async function ask() {
    if (busy) { waiting = true; return; }
    busy = true;
    const reply = await fetch(`/lab/cliff?${new URLSearchParams({ w, b, lr: field("lr").value, clip: field("clip").value })}`);
    found = await reply.json();
    draw();
    busy = false;
    if (waiting) { waiting = false; ask(); }
  }

  function draw() {
    if (!found) return;
    if (found.error) { told.textContent = found.error; return; }
    const width = Math.floor(stage.clientWidth), left = 44, top = 24, right = Math.min(width - 12, 640), height = 320;
    if (width < 100) return;
    const x = TT.linear([found.w[0], found.w[found.w.length - 1]], [left, right]), y = TT.linear([found.b[0], found.b[found.b.length - 1]], [top + height, top]);
    const rows = found.loss.length, columns = found.loss[0].length, most = Math.max(...found.loss.flat());
    const sheet = document.createElement("canvas");
    sheet.width = columns; sheet.height = rows;
    const context = sheet.getContext("2d"), image = context.createImageData(columns, rows);
    found.loss.forEach((line, i) => line.forEach((v, j) => image.data.set([...TT.ramp(Math.sqrt(v / most)), 255], 4 * ((rows - 1 - i) * columns + j))));
    context.putImageData(image, 0, 0);
    const svg = TT.canvasSvg(width, top + height + 44, told.textContent);
    svg.append(TT.svg("image", { href: sheet.toDataURL(), x: left, y: top, width: right - left, height, preserveAspectRatio: "none", style: "image-rendering: pixelated" }),
      TT.svg("clipPath", { id: "clip-cliff" }, TT.svg("rect", { x: left, y: top, width: right - left, height })),
      TT.word(0, 12, `loss over the weight w and the bias b; ${TT.strong("dark", "light")} is high`, { class: "title" }));
    [["plain", 1], ["clipped", 2]].forEach(([name, index]) => {
      const way = found[name];
      svg.append(TT.svg("g", { class: TT.model(index), "clip-path": "url(#clip-cliff)" },
        TT.svg("path", { class: `curve halo`, style: "stroke: var(--paper); stroke-width: 5px; opacity: .8", d: TT.line(way.map((p) => [x(p.w), y(p.b)])) }),
        TT.svg("path", { class: `curve ${TT.dash(index)}`, d: TT.line(way.map((p) => [x(p.w), y(p.b)])) }),
        ...way.map((p) => TT.svg("path", { class: "mark small", d: TT.mark(index, x(p.w), y(p.b), 3.2) }))));
    });
    svg.append(TT.svg("path", { class: "open", d: TT.mark(0, x(w), y(b), 7), style: "stroke: var(--ink)" }), TT.yAxis(y, left, left, TT.text, { gap: 44 }), TT.xAxis(x, top + height, "w", { gap: 60, format: TT.text }));
    stage.replaceChildren(svg);
    const last = (way) => way[way.length - 1], jump = Math.max(...found.plain.slice(1).map((p, i) => Math.hypot(p.w - found.plain[i].w, p.b - found.plain[i].b)));
    told.textContent = `Plain: loss ${TT.text(last(found.plain).loss)} after ${found.plain.length - 1} steps, longest step ${TT.text(jump)}, largest gradient ${TT.text(Math.max(...found.plain.map((p) => p.norm)))}. Clipped: loss ${TT.text(last(found.clipped).loss)}.`;
    stage.onpointerdown = (event) => {
      const box = svg.getBoundingClientRect(), zoom = width / box.width;
      w = TT.clamp(x.invert((event.clientX - box.left) * zoom), found.w[0], found.w[columns - 1]).toFixed(3);
      b = TT.clamp(y.invert((event.clientY - box.top) * zoom), found.b[0], found.b[rows - 1]).toFixed(3);
      ask();
    };
  }
  const show = (input) => { form.querySelector(`output[for="${input.name}"]`).textContent = TT.text(Number(input.value)); };
  form.querySelectorAll("input[type=range]").forEach(show);
  form.addEventListener("input", (event) => { show(event.target); ask(); });
  form.addEventListener("submit", (event) => event.preventDefault());
  TT.saved(stage, "the cliff", () => found && !found.error && ["cliff.csv", [["what", "step", "w", "b", "loss", "norm of the gradient"],
    ...["plain", "clipped"].flatMap((name) => found[name].map((p, n) => [name, n, p.w, p.b, p.loss, p.norm])),
    ...found.loss.flatMap((line, i) => line.map((v, j) => ["surface", "", found.w[j], found.b[i], v, ""]))]]);
  TT.redraws.push(draw);
  new ResizeObserver(draw).observe(stage);
  ask();
})();
