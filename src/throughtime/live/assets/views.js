"use strict";
// The lab's small views: each a form, a question to the engine, and the chart that it answers.
(() => {
  const LEFT = 52, HEIGHT = 250;
  const queue = [];  // one question at a time, whichever view it is of
  let busy = false;
  async function work() {
    if (busy) return;
    busy = true;
    while (queue.length) await queue.shift()();
    busy = false;
  }

  function view(section) {
    const form = section.querySelector("form"), stage = section.querySelector(".stage"), told = section.querySelector(".told");
    let found = null, waiting = false, keys = [], x = null, y = null, layer = null;
    const readout = TT.readout();

    const ask = () => {
      if (waiting) return;
      waiting = true;
      queue.push(async () => {
        waiting = false;
        const began = performance.now();
        try {
          const reply = await fetch(`/lab/view/${section.dataset.view}?${new URLSearchParams(new FormData(form))}`);
          found = await reply.json();
        } catch {
          found = { error: "The server does not answer; start `throughtime lab` again." };
        }
        draw();
        section.dataset.took = String(Math.round(performance.now() - began));
        section.dataset.answered = String(Number(section.dataset.answered ?? 0) + 1);
      });
      work();
    };

    const value = (v) => v === null || (found.log && !(v > 0)) ? null : found.log ? Math.log10(v) : v;
    const shown = (v) => v === null ? "\u2014" : TT.text(found.log ? 10 ** v : v);
    const curves = () => found.curves.map((c, index) => ({ ...c, index, v: c.y.map(value) }));

    const cursor = TT.cursor(`${section.querySelector("h2").textContent}. Arrow keys move along the axis.`, {
      count: () => Math.max(1, keys.length), start: 0,
      at: (px) => { const v = x.invert(px); return keys.reduce((best, k, i) => Math.abs(k - v) < Math.abs(keys[best] - v) ? i : best, 0); },
      show(i, touched) {
        const at = keys[i];
        if (at === undefined || !layer) return "";
        layer.replaceChildren(...(touched ? [TT.svg("line", { x1: x(at), x2: x(at), y1: y.range[1], y2: y.range[0] })] : []));
        const entries = curves().map((c) => ({ index: c.index, key: c.name, text: shown(c.v[c.x.indexOf(at)] ?? null) }));
        return readout.set(`${found.x.split(/[,/]/)[0]} ${keys.every(Number.isInteger) ? TT.count(at) : TT.text(at)}`, entries);
      },
    });
    stage.replaceChildren(readout.node, cursor.plot);

    function draw() {
      told.classList.toggle("trouble", Boolean(found.error));
      if (found.error) { told.textContent = found.error; return; }
      told.replaceChildren(...found.told.map((line) => TT.html("span", { class: "line" }, line)));
      const all = curves(), width = Math.floor(stage.clientWidth), right = width - 10, top = 24;
      const values = all.flatMap((c) => c.v).filter((v) => v !== null && Number.isFinite(v));
      if (width < 100) return;
      if (!values.length) { cursor.plot.replaceChildren(TT.html("p", { class: "note" }, "Nothing to draw at this setting.")); return; }
      let low = Math.min(...values, ...(found.log ? [-1] : [])), high = Math.max(...values, ...(found.log ? [0] : []));
      for (const [v] of found.levels) { const at = value(v); if (at !== null) { low = Math.min(low, at); high = Math.max(high, at); } }
      if (found.lowest !== null) low = Math.max(low, found.lowest);
      const room = (high - low) * .05 || 1;
      const xs = all.flatMap((c) => c.x), spread = Math.max(...xs) / Math.max(1, Math.min(...xs.filter((v) => v > 0)));
      const whole = xs.every(Number.isInteger), domain = [Math.min(...xs), Math.max(...xs)];
      x = !whole && spread > 20 ? TT.powers(domain, [LEFT, right]) : (whole ? TT.whole : TT.linear)(domain, [LEFT, right]);
      y = found.log ? TT.exponents([Math.floor(low), Math.ceil(high - .1)], [top + HEIGHT, top]) : TT.linear([low - room, high + room], [top + HEIGHT, top]);
      const svg = TT.canvasSvg(width, top + HEIGHT + 44), clip = `clip-${section.dataset.view}`;
      const levels = found.levels.map(([v, word]) => [y(value(v)), word]);
      svg.append(TT.word(0, 12, TT.fit(found.y, width, false), { class: "title" }), TT.yAxis(y, LEFT, right, found.log ? TT.power : TT.text),
        TT.svg("clipPath", { id: clip }, TT.svg("rect", { x: LEFT - 6, y: top - 4, width: right - LEFT + 12, height: HEIGHT + 8 })));
      for (const [px, word] of found.places) svg.append(TT.svg("line", { class: "asked", x1: x(px), x2: x(px), y1: top, y2: top + HEIGHT }),
        TT.word(x(px) + (x(px) > right - 60 ? -5 : 5), top + 10, word, { class: "strong halo", "text-anchor": x(px) > right - 60 ? "end" : "start" }));
      for (const c of all) {
        const points = c.x.map((px, i) => [x(px), c.v[i] === null || !Number.isFinite(c.v[i]) ? null : y(TT.clamp(c.v[i], y.domain[0] - 60, y.domain[1] + 60))]);
        const group = TT.svg("g", { class: TT.model(c.index), "clip-path": `url(#${clip})` });
        if (!c.dots) group.append(TT.svg("path", c.thin ? { class: "short", "stroke-dasharray": "3 3", d: TT.line(points) } : { class: `curve ${TT.dash(c.index)}`, d: TT.line(points) }));
        if (c.dots || points.length === 1) group.append(...points.filter(([, v]) => v !== null).map(([a, b]) => TT.svg("path", { class: "mark", d: TT.mark(c.index, a, b, 5) })));
        svg.append(group);
      }
      for (const [at, word] of levels) svg.append(TT.svg("line", { class: "floor", x1: LEFT, x2: right, y1: at, y2: at }),
        TT.word(right, at - 4, word, { class: "strong halo", "text-anchor": "end" }));
      layer = TT.svg("g", { class: "cursor" });
      svg.append(TT.xAxis(x, top + HEIGHT, found.x, { gap: 54, format: whole ? TT.count : TT.text }), layer);
      keys = [...new Set(xs)].sort((a, b) => a - b);
      cursor.plot.replaceChildren(svg);
      cursor.refresh();
    }

    const show = (input) => { form.querySelector(`output[for="${input.name}"]`).textContent = TT.minus(Number(input.value).toFixed(input.step.split(".")[1]?.length ?? 0)); };
    form.querySelectorAll("input[type=range]").forEach(show);
    form.addEventListener("input", (event) => { if (event.target.type === "range") show(event.target); ask(); });
    form.addEventListener("submit", (event) => event.preventDefault());
    section.querySelector(".save").addEventListener("click", () => {
      if (!found?.curves) return;
      const all = found.curves;
      TT.save(`${section.dataset.view}.csv`, [[found.x, ...all.map((c) => c.name)],
        ...keys.map((k) => [k, ...all.map((c) => c.y[c.x.indexOf(k)] ?? "")])]);
    });
    // A statement sets the sliders to where it can be seen.
    document.querySelectorAll(`[data-view-set="${section.dataset.view}"]`).forEach((link) => link.addEventListener("click", () => {
      for (const [name, v] of Object.entries(JSON.parse(link.dataset.values))) { const field = form.elements.namedItem(name); field.value = v; if (field.type === "range") show(field); }
      ask();
    }));
    TT.redraws.push(() => found && draw());
    new ResizeObserver(() => found && draw()).observe(stage);
    ask();
  }

  // From one value to another by their logarithm; ticks at 1, 2, 5.
  TT.powers = (domain, range) => TT.scale(Math.log10, (v) => 10 ** v, domain, range, ([low, high]) => {
    const out = [];
    for (let e = Math.floor(Math.log10(low)); 10 ** e <= high; e++) for (const m of [1, 2, 5]) if (m * 10 ** e >= low && m * 10 ** e <= high * 1.001) out.push(m * 10 ** e);
    return out;
  });
  document.querySelectorAll("[data-view]").forEach(view);
})();
