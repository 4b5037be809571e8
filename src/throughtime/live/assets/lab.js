"use strict";
// The lab's network: sliders in, one question to the engine for each cell, figures out.
(() => {
  const LETTERS = ["a", "b"];
  const form = document.getElementById("controls"), told = LETTERS.map((l) => document.getElementById(`told-${l}`));
  const stage = { lags: document.getElementById("lags") };
  const found = [null, null];
  let state = "z", asked = 0, busy = false, waiting = false;

  const field = (name) => form.elements.namedItem(name);
  const settings = (index) => {
    const query = new URLSearchParams();
    for (const name of ["units", "steps", "matrix", "radius", "forget", "input", "loss", "rule", "seed"]) query.set(name, field(name).value);
    query.set("cell", field(`cell-${LETTERS[index]}`).value);
    return query;
  };
  const both = () => field("cell-b").value !== "";

  // One question at a time; while it is on its way the sliders may move, and the last place counts.
  async function ask() {
    if (busy) { waiting = true; return; }
    busy = true;
    const began = performance.now();
    try {
      for (const index of both() ? [0, 1] : [0]) {
        const reply = await fetch(`/lab/network?${settings(index)}`);
        found[index] = await reply.json();
      }
      if (!both()) found[1] = null;
      draw();
      document.documentElement.dataset.answered = String(++asked);
      document.documentElement.dataset.took = String(Math.round(performance.now() - began));
    } catch {
      told[0].textContent = "The server does not answer; start `throughtime lab` again.";
      told[0].classList.add("trouble");
    }
    busy = false;
    if (waiting) { waiting = false; ask(); }
  }

  const models = () => found.map((f, index) => f && { ...f, index }).filter(Boolean);
  const stateOf = (m) => m.flow && (m.flow[state] ? state : Object.keys(m.flow)[0]);

  function sentence(m) {
    if (m.error) return m.error;
    if (m.trouble) return m.trouble;
    const flow = m.flow[stateOf(m)];
    if (!flow) return "No gradient at any step.";
    const sizes = m.matrices.length ? ` Spectral radius ${TT.text(Math.max(...m.matrices.map((u) => u.spectral_radius)))}, \u03c3\u2081 ${TT.text(Math.max(...m.matrices.map((u) => u.sigma_1)))}.` : " No recurrent weights.";
    const half = flow.half_life === null ? "never halved" : `half-life ${TT.text(flow.half_life)} steps`;
    const last = flow.profile[flow.profile.length - 1], way = last > 10 ? "It grows" : flow.at_least ? "It reaches" : "It vanishes";
    return `${way}: ${flow.at_least ? "at least " : ""}${flow.horizon} steps at 1\u2009%, ${half}.${sizes}`;
  }

  function draw() {
    LETTERS.forEach((letter, index) => {
      const m = found[index], box = document.getElementById(`cell-box-${letter}`);
      box.hidden = !m;
      if (!m) return;
      told[index].textContent = sentence(m);
      told[index].classList.toggle("trouble", Boolean(m.error || m.trouble));
      if (m.error) return;
      document.getElementById(`name-${letter}`).textContent = m.cell;
      document.getElementById(`equations-${letter}`).textContent = m.equations;
      const heats = document.getElementById(`heats-${letter}`);
      heats.replaceChildren(...[
        m.flow?.[stateOf(m)] && map(m.flow[stateOf(m)].map, stateOf(m), letter),
        eigenvalues({ ...m, index }),
        ...Object.entries(m.gates).map(([name, picture]) => TT.sheet(picture, `gate ${name}: a row a unit, time to the right; ${TT.strong("dark", "light")} is open`, `gate-${name}-${letter}`)),
        ...Object.entries(m.states).map(([name, picture]) => TT.sheet(picture, `${name}: a row a unit, from ${TT.text(picture.low)} to ${TT.text(picture.high)}`, `state-${name}-${letter}`)),
      ].filter(Boolean));
    });
    drawLags();
    const forget = field("forget");
    forget.disabled = !models().some((m) => m.keeps?.length);
  }

  // The map [t, k]: all of it, or its last row as a strip where the loss is at the last step alone.
  function map(picture, of, letter) {
    const large = `${TT.strong("Dark", "Light")} is large, over ${-picture.low} powers of ten`;
    if (field("loss").value === "every") return TT.triangle(picture, `gradient of ${of}: row t, the loss; column k, the past. ${large}`, `map-${letter}`);
    const T = picture.columns, bytes = TT.bytes(picture);
    return TT.paint(T, 1, (x) => bytes[(T - 1) * T + x], 6, `gradient of ${of} at each step k of the past; the loss is at the right end. ${large}`, () => TT.mapRows(picture, `map-${letter}`, T - 1));
  }

  function eigenvalues(m) {
    const points = [...m.eigenvalues.U.map((p) => [...p, "U"]), ...(m.eigenvalues.J ?? []).map((p) => [...p, "J"])];
    if (!points.length) return null;
    const largest = Math.max(1.1, ...points.map(([re, im]) => Math.hypot(re, im))) * 1.08, side = 200;
    const at = (v) => side / 2 + v / largest * side / 2;
    const words = "eigenvalues: \u25cb of U, \u2022 of the state Jacobian at the last step; the circle is 1";
    const svg = TT.canvasSvg(side, side, words);
    svg.append(TT.svg("path", { class: "grid", d: `M0,${side / 2}H${side}M${side / 2},0V${side}` }),
      TT.svg("circle", { cx: side / 2, cy: side / 2, r: side / 2 / largest, class: "outline" }));
    for (const [re, im, of] of points) svg.append(TT.svg("circle", { class: `${TT.model(m.index)} ${of === "U" ? "open" : "mark"} small`, cx: at(re), cy: at(-im), r: of === "U" ? 4 : 2.6 }));
    const csv = () => [`eigenvalues-${LETTERS[m.index]}.csv`, [["of", "real part", "imaginary part"], ...points.map(([re, im, of]) => [of, re, im])]];
    return TT.html("figure", {}, TT.html("div", { class: "plot" }, svg), TT.html("figcaption", {}, words, " ", TT.saver("the eigenvalues", csv)));
  }

  function drawLags() {
    const shown = models().filter((m) => m.flow?.[stateOf(m)]);
    const width = Math.floor(stage.lags.clientWidth), left = 44, right = width - 12, top = 30 + 16 * shown.length, height = 260;
    if (!shown.length || width < 100) { stage.lags.replaceChildren(); return; }
    const curves = shown.map((m) => m.flow[stateOf(m)].profile.map((v) => v > 0 ? Math.log10(v) : null));
    const values = curves.flat().filter((v) => v !== null);
    const low = Math.max(-12, Math.min(-3, Math.floor(Math.min(...values)))), high = Math.max(0, Math.ceil(Math.max(...values) - .2));
    const x = TT.whole([0, Number(field("steps").value) - 1], [left, right]), y = TT.exponents([low, high], [top + height, top]);
    const svg = TT.canvasSvg(width, top + height + 44, shown.map((m) => `${m.cell}: ${sentence(m)}`).join(" "));
    svg.append(TT.word(0, 12, `size of the gradient of ${state}, relative to lag 0`, { class: "title" }), TT.yAxis(y, left, right, TT.power, { except: y(-2) }),
      TT.svg("line", { class: "floor", x1: left, x2: right, y1: y(-2), y2: y(-2) }), TT.word(left - 8, y(-2) + 4, "1\u2009%", { class: "strong", "text-anchor": "end" }));
    const clip = TT.svg("clipPath", { id: "clip-lab" }, TT.svg("rect", { x: left, y: top - 4, width: right - left, height: height + 4 }));
    svg.append(clip);
    shown.forEach((m, i) => {
      const group = TT.svg("g", { class: TT.model(m.index), "clip-path": "url(#clip-lab)" });
      if (m.bound) group.append(TT.svg("path", { class: "short", "stroke-dasharray": "3 3", d: TT.line([...Array(curves[i].length).keys()].map((d) => [x(d), y(TT.clamp(d * Math.log10(m.bound), low - 40, high + 40))])) }));
      group.append(TT.svg("path", { class: `curve ${TT.dash(m.index)}`, d: TT.line(curves[i].map((v, d) => [x(d), v === null ? null : y(TT.clamp(v, low - 40, high + 40))])) }));
      const flow = m.flow[stateOf(m)], v = curves[i][flow.horizon];
      if (v !== null && v !== undefined) group.append(TT.svg("path", { class: "mark", d: TT.mark(m.index, x(flow.horizon), y(v), 5) }));
      svg.append(group, TT.word(left, 28 + 16 * i, m.bound ? `${m.cell}; thin: the bound ${TT.text(m.bound)}\u1d48` : m.cell, { class: TT.model(m.index) }));
    });
    svg.append(TT.svg("path", { class: "axis", d: `M${left},${top + height}H${right}` }), TT.xAxis(x, top + height, "lag, steps", { gap: 54 }));
    stage.lags.replaceChildren(svg);
  }

  TT.saved(stage.lags, "the gradient by lag", () => {
    const shown = models().filter((m) => m.flow?.[stateOf(m)]), profiles = shown.map((m) => m.flow[stateOf(m)].profile);
    if (!shown.length) return null;
    return ["lags.csv", [["lag", ...shown.flatMap((m) => [`${m.cell}, gradient of ${stateOf(m)}`, ...(m.bound ? [`${m.cell}, bound`] : [])])],
      ...Array.from({ length: Math.max(...profiles.map((p) => p.length)) }, (_, d) => [d, ...shown.flatMap((m, i) => [profiles[i][d] ?? "", ...(m.bound ? [m.bound ** d] : [])])])]];
  });

  const show = (input) => { const out = form.querySelector(`output[for="${input.name}"]`); if (out) out.textContent = TT.minus(Number(input.value).toFixed(input.step.includes(".") ? 2 : 0)); };
  form.addEventListener("input", (event) => { if (event.target.type === "range") show(event.target); release(); ask(); });
  form.addEventListener("submit", (event) => event.preventDefault());
  form.querySelectorAll("input[type=range]").forEach(show);
  document.getElementById("draw-anew").addEventListener("click", () => { field("seed").value = (Number(field("seed").value) + 1) % 1000000; ask(); });
  document.getElementById("states").append(TT.choice("Gradient of", [["z", "net inputs z"], ["h", "hidden state h"], ["c", "memory cell c"]], state, (s) => { state = s; draw(); }));

  // Each statement sets the sliders to where it can be seen.
  const buttons = [...document.querySelectorAll("[data-set]")];
  const release = () => buttons.forEach((b) => b.setAttribute("aria-pressed", "false"));
  for (const button of buttons) button.addEventListener("click", () => {
    release();
    button.setAttribute("aria-pressed", "true");
    for (const [name, value] of Object.entries(JSON.parse(button.dataset.set))) { field(name).value = value; if (field(name).type === "range") show(field(name)); }
    ask();
    document.getElementById("network").scrollIntoView({ behavior: matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth" });
  });
  TT.redraws.push(draw);
  new ResizeObserver(drawLags).observe(stage.lags);
  ask();
})();
