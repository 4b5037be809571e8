"use strict";
// The (t,k) maps: log10 of ||dL_t / ds_k|| as colour, one scale for all models.
TT.ramp = (() => {
  // Lightness falls evenly from paper to ink (OKLCH, L 0.975 to 0.205), hue from straw over green and blue to violet.
  const stops = ["#f8f7f0", "#e7e9d4", "#d0ddbb", "#b5d2aa", "#97c6a0", "#75ba9b", "#4eae9a", "#249f9b", "#008f9b", "#007d9a", "#006a96", "#0a578f", "#28457c", "#293765", "#262a4e", "#1f1f38", "#171523"]
    .map((hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16)));
  return (share) => {
    const at = TT.clamp(TT.dark() ? 1 - share : share, 0, 1) * (stops.length - 1);
    const i = Math.min(Math.floor(at), stops.length - 2);
    return stops[i].map((c, j) => Math.round(c + (stops[i + 1][j] - c) * (at - i)));
  };
})();

// Codes back to values; 0, 1 and 2 are zero, NaN and infinity (see pack.py).
TT.unpack = (packed) => {
  const bytes = Uint8Array.from(atob(packed.codes), (c) => c.charCodeAt(0));
  const wide = packed.bits === 16;
  const view = new DataView(bytes.buffer);
  const unit = (packed.high - packed.low) / (2 ** packed.bits - 4);
  const logs = new Float64Array(wide ? bytes.length / 2 : bytes.length);
  for (let i = 0; i < logs.length; i++) {
    const code = wide ? view.getUint16(2 * i, true) : bytes[i];
    logs[i] = code > 2 ? packed.low + (code - 3) * unit : [-Infinity, NaN, Infinity][code];
  }
  return { ...packed, log: (row, column) => logs[row * (row + 1) / 2 + column], has: (test) => logs.some(test) };
};

TT.figures.map = (stage, tools) => {
  const { data } = TT;
  const models = data.models.map((model, index) => ({ ...model, index,
    maps: Object.fromEntries(Object.entries(model.maps).map(([s, m]) => [s, TT.unpack(m)])) }))
    .filter((model) => Object.keys(model.maps).length);
  const states = TT.statesOf(models, "maps");
  const { low, high } = data.colour;
  let state = models[0].state in models[0].maps ? models[0].state : states[0];
  const stateOf = (m) => state in m.maps ? state : m.state in m.maps ? m.state : Object.keys(m.maps)[0];
  const mapOf = (m) => m.maps[stateOf(m)];
  const every = models.flatMap((m) => Object.values(m.maps));
  const stepOf = (map, i) => map.first + i * map.stride;
  const biggest = Math.max(...every.map((m) => stepOf(m, m.size - 1)));
  const smallest = every.reduce((a, b) => a.size <= b.size ? a : b);
  let t = stepOf(smallest, smallest.size - 1);
  let k = stepOf(smallest, Math.max(0, smallest.size - 1 - Math.round((models[0].horizon[models[0].state]?.steps ?? smallest.size / 4) / smallest.stride)));

  const bad = { nan: [150, 150, 150], inf: [214, 24, 84] };
  const valueText = (v) => v === undefined ? "\u2014" : v === -Infinity ? "0" : Number.isFinite(v) ? TT.text(10 ** v) : TT.text(v);

  const readout = TT.readout();
  const scaleBox = TT.html("div", { class: "scale" });
  const panels = TT.html("div", { class: `panels${models.length === 1 ? " single" : models.length % 3 ? " pairs" : ""}` });
  const parts = models.map((m) => {
    const canvas = TT.html("canvas", { "aria-hidden": "true" });
    const plot = TT.html("div", { class: "plot heat", tabindex: 0, role: "application", "aria-roledescription": "map" }, canvas);
    const part = { m, canvas, plot, frame: null, cursor: null };
    const point = (event) => {
      const svg = plot.querySelector("svg"), box = svg.getBoundingClientRect(), zoom = svg.viewBox.baseVal.width / box.width;
      const { left, top, side } = part.frame, map = mapOf(m);
      const cellOf = (p) => TT.clamp(Math.floor(p / side * map.size), 0, map.size - 1);
      const row = cellOf((event.clientY - box.top) * zoom - top);
      go(stepOf(map, row), stepOf(map, Math.min(row, cellOf((event.clientX - box.left) * zoom - left))));
    };
    plot.addEventListener("pointermove", point);
    plot.addEventListener("pointerdown", point);
    plot.addEventListener("keydown", (event) => {
      const far = mapOf(m).stride * (event.shiftKey ? 10 : 1);
      const to = { ArrowLeft: [t, k - far], ArrowRight: [t, k + far], ArrowUp: [t - far, k], ArrowDown: [t + far, k], Home: [t, 0], End: [t, t] }[event.key];
      if (!to || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      go(...to);
    });
    panels.append(TT.html("div", { class: "panel" }, plot));
    return part;
  });
  if (states.length > 1) tools.append(TT.choice("State", states.map((s) => [s, data.stateNames[s] ?? s]), state, (s) => { state = s; redraw(); }));
  const live = TT.html("div", { class: "hidden", "aria-live": "polite" });
  stage.append(scaleBox, readout.node, live, panels);

  // The cell of a map that holds steps (t, k), or null.
  const cell = (map) => {
    const row = Math.round((t - map.first) / map.stride), column = Math.round((k - map.first) / map.stride);
    return row >= 0 && row < map.size && column >= 0 && column <= row ? [row, column] : null;
  };
  function go(nextT, nextK) {
    const first = Math.min(...models.map((m) => mapOf(m).first));
    t = TT.clamp(nextT, first, biggest);
    k = TT.clamp(nextK, first, t);
    const words = readout.set(`t\u2009=\u2009${t}, k\u2009=\u2009${k}, lag ${t - k}`, models.map((m) => {
      const at = cell(mapOf(m));
      return { index: m.index, key: `${m.name} ${stateOf(m)}`, text: valueText(at ? mapOf(m).log(...at) : undefined) };
    }));
    if (parts.some(({ plot }) => plot === document.activeElement)) live.textContent = words;
    for (const { m, frame, cursor } of parts) {
      const at = cell(mapOf(m));
      cursor.replaceChildren();
      if (!at) continue;
      const size = frame.side / mapOf(m).size, box = Math.max(size, 5);
      const cx = frame.left + (at[1] + .5) * size, cy = frame.top + (at[0] + .5) * size;
      const rect = { x: cx - box / 2, y: cy - box / 2, width: box, height: box };
      cursor.append(TT.svg("path", { class: "axis", d: `M${frame.left},${cy}H${cx - box / 2}M${cx},${cy + box / 2}V${frame.top + frame.side}` }),
        TT.svg("rect", { class: "cellhalo", ...rect }), TT.svg("rect", { class: "cell", ...rect }));
    }
  }

  function paint(canvas, map, pixels) {
    const sheet = document.createElement("canvas");
    sheet.width = sheet.height = map.size;
    const context = sheet.getContext("2d"), image = context.createImageData(map.size, map.size);
    // The colours are worked out once: a map has a million cells.
    const LAST = 1023, shades = Array.from({ length: LAST + 1 }, (_, i) => TT.ramp(i / LAST)), pixel = image.data;
    for (let row = 0; row < map.size; row++) for (let column = 0, at = 4 * row * map.size; column <= row; column++, at += 4) {
      const v = map.log(row, column);
      const [r, g, b] = Number.isNaN(v) ? bad.nan : v === Infinity ? bad.inf : shades[Math.round(TT.clamp((v - low) / (high - low), 0, 1) * LAST)];
      pixel[at] = r; pixel[at + 1] = g; pixel[at + 2] = b; pixel[at + 3] = 255;
    }
    context.putImageData(image, 0, 0);
    // Each cell a whole number of pixels wide; the browser smooths only the last, small reduction.
    canvas.width = canvas.height = map.size * Math.ceil(pixels / map.size);
    const target = canvas.getContext("2d");
    target.imageSmoothingEnabled = false;
    target.drawImage(sheet, 0, 0, canvas.width, canvas.height);
  }

  function drawScale(width) {
    const wide = Math.min(width, 384), left = 16, right = wide - 16;
    const x = TT.exponents([low, high], [left, right]);
    const svg = TT.canvasSvg(wide, 54, `Colour scale from 10 to the power ${low.toFixed(1)} to 10 to the power ${high.toFixed(1)}`);
    svg.setAttribute("class", "ramp");
    svg.append(TT.word(0, 12, "size of the gradient, ‖∂Lₜ/∂sₖ‖", { class: "title" }));
    for (let i = 0; i < 64; i++) svg.append(TT.svg("rect", { x: left + (right - left) * i / 64, y: 20, width: (right - left) / 64 + .6, height: 10, fill: `rgb(${TT.ramp(i / 63).join()})` }));
    svg.append(TT.svg("rect", { class: "outline", x: left, y: 20, width: right - left, height: 10 }));
    x.ticks(34).forEach((e) => svg.append(TT.svg("path", { class: "axis", d: `M${x(e)},30v4` }), TT.word(x(e), 48, TT.power(e), { "text-anchor": "middle" })));
    const swatch = (text, rgb) => {
      const canvas = TT.html("canvas", { width: 1, height: 1, "aria-hidden": "true" });
      const context = canvas.getContext("2d");
      context.fillStyle = `rgb(${rgb.join()})`;
      context.fillRect(0, 0, 1, 1);
      return TT.html("span", {}, canvas, text);
    };
    const has = (test) => every.some((map) => map.has(test));
    const swatches = TT.html("span", { class: "swatches" });
    if (has((v) => v < low - 1e-9)) swatches.append(swatch("smaller, or 0", TT.ramp(0)));
    if (has((v) => v > high + 1e-9 && v < Infinity)) swatches.append(swatch("larger", TT.ramp(1)));
    if (has((v) => v === Infinity)) swatches.append(swatch("∞", bad.inf));
    if (has((v) => Number.isNaN(v))) swatches.append(swatch("NaN", bad.nan));
    scaleBox.replaceChildren(svg, swatches);
  }

  function drawPanel(part, width) {
    const { m, plot, canvas } = part, map = mapOf(m), horizon = m.horizon[stateOf(m)];
    const left = 34, top = 22, side = width - left - 2, last = stepOf(map, map.size - 1);
    part.frame = { left, top, side };
    const svg = TT.canvasSvg(width, top + side + 44);
    const whole = map.size * map.stride, from = map.first - (map.stride - 1);
    const axis = TT.whole([from, from + whole], [0, side]), middle = side / map.size / 2 * (2 - 1 / map.stride);
    const ticks = map.size === 1 ? [last] : axis.ticks(44).filter((v) => v <= last);
    svg.append(TT.svg("path", { class: "outline", d: `M${left},${top}V${top + side}H${left + side}` }));
    for (const v of ticks) svg.append(
      TT.word(left + axis(v) + middle, top + side + 17, TT.count(v), { "text-anchor": "middle" }),
      TT.word(left - 7, top + axis(v) + middle + 4, TT.count(v), { "text-anchor": "end" }));
    svg.append(TT.word(left + side, top + side + 36, "k, step of the past", { class: "title", "text-anchor": "end" }));
    svg.append(TT.word(0, 10, "t, step of the loss", { class: "title" }));
    // The name stands in the empty half; a map of a few steps has no room there.
    const lift = map.size < 8 ? 26 : 0;
    const name = TT.word(left + side, top + 14 - lift, TT.fit(m.name, side * .62), { class: `model ${TT.model(m.index)}`, "text-anchor": "end" });
    const owned = state in m.maps;
    svg.append(name);
    if (!lift || !owned) svg.append(TT.word(left + side, top + 31, owned ? data.stateNames[stateOf(m)] ?? stateOf(m) : `has no ${state}; shown: ${stateOf(m)}`, { class: "halo", "text-anchor": "end" }));
    if (horizon && !horizon.atLeast && horizon.steps > 0 && horizon.steps < whole) {
      const d = horizon.steps / whole * side, path = `M${left},${top + d}L${left + side - d},${top + side}`;
      const group = TT.svg("g", { class: TT.model(m.index) }, TT.svg("path", { class: "under", d: path }), TT.svg("path", { class: "diagonal", d: path, "stroke-dasharray": "5 3" }));
      const words = `lag ${TT.reach(horizon)}`;
      if (side - d > TT.width(words, true) + 22) group.append(TT.word(left + side - d - 18, top + side - 9, words, { class: "halo", "text-anchor": "end" }));
      svg.append(group);
    }
    part.cursor = TT.svg("g", { class: "cursor" });
    svg.append(part.cursor);
    plot.setAttribute("aria-label", `${m.name}, ${data.stateNames[stateOf(m)] ?? stateOf(m)}: gradient from each loss step t to each earlier step k. Arrow keys move.`);
    for (const [edge, share] of [["left", left / width], ["width", side / width]]) canvas.style[edge] = `${share * 100}%`;
    canvas.style.top = `${top / (top + side + 44) * 100}%`;
    canvas.style.height = `${side / (top + side + 44) * 100}%`;
    paint(canvas, map, Math.round(side * Math.min(devicePixelRatio || 1, 2) * (TT.printing ? 2 : 1)));
    plot.replaceChildren(canvas, svg);
  }

  function draw(width) {
    drawScale(width);
    parts.forEach((part) => drawPanel(part, Math.max(part.plot.clientWidth, 120)));
    go(t, k);
  }
  let width = 0;
  const redraw = () => draw(width);
  const csv = () => {
    const columns = models.flatMap((m) => Object.entries(m.maps).map(([s, map]) => [`${m.name} ${s}`, map]));
    const rows = [["t", "k", "lag", ...columns.map(([name]) => name)]];
    const tall = columns.reduce((a, b) => a[1].size >= b[1].size ? a : b)[1];
    for (let i = 0; i < tall.size; i++) for (let j = 0; j <= i; j++)
      rows.push([stepOf(tall, i), stepOf(tall, j), (i - j) * tall.stride, ...columns.map(([, map]) => i < map.size ? +(10 ** map.log(i, j)).toPrecision(5) : "")]);
    return ["gradient-map.csv", rows];
  };
  return { draw: (w) => { width = w; draw(w); }, csv };
};
