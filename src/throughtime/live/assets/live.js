"use strict";
// Training runs as they go: told by the server's stream of events, drawn as they come.
(() => {
  const COLOURS = 6, MOST = 4000;
  const runs = new Map();  // by id: what the server told of it, its points, and the model's index that gives its colour
  const part = (id) => document.getElementById(id);
  let due = 0;
  const number = (v) => typeof v === "number" ? v : null;
  const shown = () => [...runs.values()].filter((run) => run.shown);

  const events = new EventSource("/runs/events");
  events.onopen = () => { part("link").textContent = ""; part("link").classList.remove("trouble"); };
  events.onerror = () => { part("link").textContent = "The server does not answer; trying again. Start `throughtime serve` if it was stopped."; part("link").classList.add("trouble"); };
  events.onmessage = (event) => {
    const told = JSON.parse(event.data);
    if (told.began) for (const id of [...runs.keys()]) if (!told.runs.some((r) => r.id === id)) runs.delete(id);
    told.gone.forEach((id) => runs.delete(id));
    told.runs.forEach(take);
    part("empty").hidden = runs.size > 0;
    document.documentElement.dataset.runs = String(runs.size);
    table();
    later();
  };

  function take({ anew, points, watched_anew, horizons, ...info }) {
    let run = runs.get(info.id);
    if (!run) {
      const taken = new Set([...runs.values()].map((r) => r.index));
      let index = 0;
      while (taken.has(index)) index++;
      runs.set(info.id, run = { index, shown: index < COLOURS, points: [], horizons: [], checkpoints: [], measured: null, flow: null });
    }
    if (anew) run.points = [];
    if (watched_anew) run.horizons = [];
    Object.assign(run, info);
    run.points.push(...points);
    run.horizons.push(...horizons);
    while (run.points.length > MOST) run.points = run.points.filter((p, i) => i % 2 === 0 || p[3] !== null);
    if (run.checkpoint && run.checkpoint !== run.measured && run.shown) measure(run);
  }

  // The gradient of the newest checkpoint; asked for once each, one at a time.
  let measuring = Promise.resolve();
  function measure(run) {
    run.measured = run.checkpoint;
    measuring = measuring.then(async () => {
      try {
        const found = await (await fetch(`/runs/flow?run=${run.id}`)).json();
        if (found.error) run.problem = found.error;
        else { run.flow = found.flow; run.checkpoints = found.horizons; run.problem = null; }
        document.documentElement.dataset.flows = String(shown().filter((r) => r.flow).length);
      } catch { run.measured = null; }
      table();
      later();
    });
  }

  // Of a watched run what the watch measured as it went; of others what was measured of their checkpoints.
  const reaches = (run) => run.horizons.length ? run.horizons : run.checkpoints;

  function table() {
    const last = (run, k) => { for (let i = run.points.length - 1; i >= 0; i--) if (run.points[i][k] !== null) return run.points[i][k]; return null; };
    const say = (v) => typeof v === "string" ? v : TT.text(v);
    part("runs").replaceChildren(...[...runs.values()].map((run) => {
      const box = TT.html("input", { type: "checkbox", "aria-label": `Show ${run.name}` });
      box.checked = run.shown;
      box.addEventListener("change", () => { run.shown = box.checked; if (run.shown && run.checkpoint && run.checkpoint !== run.measured) measure(run); later(); });
      const reach = reaches(run).at(-1) ?? null;
      const cells = [run.state, run.steps ? `${TT.count(run.step)} of ${TT.count(run.steps)}` : TT.count(run.step), say(last(run, 1)), say(last(run, 3)), reach ? `${reach[2] ? "\u2265\u2009" : ""}${reach[1]}` : "\u2014"];
      return TT.html("tr", { class: TT.model(run.index) }, TT.html("th", { scope: "row" }, TT.html("label", {}, box, TT.glyph(run.index), " ", run.name)), ...cells.map((text) => TT.html("td", {}, String(text))));
    }));
    const alarms = [...runs.values()].flatMap((run) => run.alarms.map((text) => [run, text]));
    part("alarms-part").hidden = !alarms.length;
    part("alarms").replaceChildren(...alarms.slice(-30).map(([run, text]) => TT.html("li", { class: TT.model(run.index) }, TT.html("span", { class: "name" }, run.name), ` ${text}`)));
  }

  // Many lines may come at once: one drawing for all of them.
  const later = () => { if (!due) due = requestAnimationFrame(() => { due = 0; draw(); }); };
  function draw() {
    curves("loss", 1, { marks: 3, log: false });
    curves("norm", 2, { log: true });
    horizons();
    maps();
  }

  function frame(id, xs, ys, { log = false, counted = false, title = "step" } = {}) {
    const stage = part(id), width = Math.floor(stage.clientWidth), left = 52, right = width - 12, top = 14, height = 230;
    if (!xs.length || !ys.length || width < 100) { stage.replaceChildren(TT.html("p", { class: "note" }, "Nothing yet.")); return null; }
    const low = counted ? 0 : ys.reduce((a, b) => Math.min(a, b)), high = ys.reduce((a, b) => Math.max(a, b)), room = (high - low) * .05 || 1;
    const x = TT.whole([0, Math.max(1, xs.reduce((a, b) => Math.max(a, b)))], [left, right]);
    const y = log ? TT.exponents([Math.floor(low), Math.ceil(high + 1e-9)], [top + height, top]) : counted ? TT.whole([0, high + room], [top + height, top]) : TT.linear([low - room, high + room], [top + height, top]);
    const svg = TT.canvasSvg(width, top + height + 44, `${id} over training, of ${shown().map((r) => r.name).join(", ")}`);
    svg.append(TT.yAxis(y, left, right, log ? TT.power : counted ? TT.count : TT.text));
    return { svg, x, y, done: () => { svg.append(TT.svg("path", { class: "axis", d: `M${left},${top + height}H${right}` }), TT.xAxis(x, top + height, title, { gap: 60 })); stage.replaceChildren(svg); } };
  }

  function curves(id, k, { marks = 0, log = false }) {
    const value = (v) => { const n = number(v); return n === null || (log && n <= 0) ? null : log ? Math.log10(n) : n; };
    const all = shown().filter((run) => run.points.length);
    const ys = all.flatMap((run) => run.points.flatMap((p) => [value(p[k]), marks ? value(p[marks]) : null])).filter((v) => v !== null);
    const f = frame(id, all.flatMap((run) => run.points.map((p) => p[0])), ys, { log });
    if (!f) return;
    for (const run of all) f.svg.append(TT.svg("g", { class: TT.model(run.index) },
      TT.svg("path", { class: `curve ${marks ? "faint " : ""}${TT.dash(run.index)}`, d: TT.line(run.points.map((p) => { const v = value(p[k]); return [f.x(p[0]), v === null ? null : f.y(v)]; })) }),
      ...run.points.filter((p) => marks && value(p[marks]) !== null).map((p) => TT.svg("path", { class: "mark", d: TT.mark(run.index, f.x(p[0]), f.y(value(p[marks])), 4) }))));
    f.done();
  }

  function horizons() {
    const lines = shown().flatMap((run) => [...new Set(reaches(run).map((h) => h[3] ?? ""))].map((place) => ({ run, place, points: reaches(run).filter((h) => (h[3] ?? "") === place && number(h[1]) !== null) })));
    const f = frame("horizon", lines.flatMap((l) => l.points.map((h) => h[0])), lines.flatMap((l) => l.points.map((h) => h[1])), { counted: true });
    if (!f) return;
    for (const { run, points } of lines) f.svg.append(TT.svg("g", { class: TT.model(run.index) },
      TT.svg("path", { class: `curve ${TT.dash(run.index)}`, d: TT.line(points.map((h) => [f.x(h[0]), f.y(h[1])])) }),
      ...points.map((h) => TT.svg("path", { class: h[2] ? "open" : "mark", d: TT.mark(run.index, f.x(h[0]), f.y(h[1]), 4) }))));
    f.done();
  }

  function maps() {
    part("maps").replaceChildren(...shown().filter((run) => run.flow || run.problem).map((run) => {
      const name = run.flow && (run.flow.z ? "z" : Object.keys(run.flow)[0]), flow = name && run.flow[name];
      return TT.html("article", { class: TT.model(run.index) }, TT.html("h3", {}, run.name),
        flow ? TT.triangle(flow.map, `${run.measured}: gradient of ${name}; ${TT.strong("dark", "light")} is large, over ${-flow.map.low} powers of ten`, `map-${run.index}`) : TT.html("p", { class: "told trouble" }, run.problem));
    }));
  }

  // One row a run and step: runs that are longer or measured at other steps do not share an axis.
  const lines = (name, heads, rows) => () => {
    const all = shown().flatMap((run) => rows(run).map((row) => [run.name, ...row]));
    return all.length ? [`${name}.csv`, [["run", "step", ...heads], ...all]] : null;
  };
  TT.saved(part("loss"), "the loss", lines("loss", ["loss", "validation loss"], (run) => run.points.map((p) => [p[0], p[1], p[3]])));
  TT.saved(part("norm"), "the gradient norm", lines("gradient-norm", ["gradient norm"], (run) => run.points.map((p) => [p[0], p[2]])));
  TT.saved(part("horizon"), "the gradient horizon", lines("gradient-horizon", ["horizon, steps", "at least", "recurrence"],
    (run) => reaches(run).map((h) => [h[0], h[1], h[2] ? "yes" : "no", h[3] ?? ""])));
  TT.redraws.push(draw);
  new ResizeObserver(later).observe(part("loss"));
})();
