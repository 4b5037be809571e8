"use strict";
// The text as a model reads it: under the text before the chosen character, what its loss sends back, or what is held.
TT.figures.reading = (stage, tools) => {
  const models = TT.data.models.map((model, index) => ({ ...model, index })).filter((model) => model.reading)
    .map((model) => ({ ...model, map: TT.unpack(model.reading.map), kept: model.reading.kept && TT.unpack(model.reading.kept) }));
  const DECADES = 4;
  let m = models[0], held = false, place = Math.floor(m.reading.symbols.length * .6);
  const readout = TT.readout();
  const text = TT.html("div", { class: "reading", tabindex: 0, role: "slider", "aria-label": "The text, character by character; arrow keys move", "aria-valuemin": 1 });
  let spans = [];
  stage.append(readout.node, text);
  if (models.length > 1) tools.append(TT.choice("Model", models.map((model, i) => [i, model.name]), 0, (i) => { m = models[i]; write(); show(); }));
  if (models.some((model) => model.kept)) tools.append(TT.choice("Shade", [[false, "gradient"], [true, "held by the gates"]], held, (v) => { held = v; show(); }));

  function write() {
    text.className = `reading ${TT.model(m.index)}`;
    spans = m.reading.symbols.map((symbol, i) => TT.html("span", { "data-at": i, class: symbol === "\n" ? "end" : null }, symbol === "\n" ? "\u21b5\n" : symbol));
    text.replaceChildren(...spans);
    text.setAttribute("aria-valuemax", spans.length - 1);
    place = TT.clamp(place, 1, spans.length - 1);
  }

  // Shares of 1: of the gradient by its logarithm, of the memory as it is.
  function shares(t) {
    if (held && m.kept) return (k) => Math.min(1, 10 ** m.kept.log(t, k));
    let most = -Infinity;
    for (let k = 0; k <= t; k++) most = Math.max(most, m.map.log(t, k));
    return (k) => Math.max(0, 1 + (m.map.log(t, k) - most) / DECADES);
  }

  function show() {
    const t = place - 1, share = shares(t), { symbols, bits, gates } = m.reading;
    spans.forEach((span, i) => {
      const part = i <= t ? share(i) : 0;
      span.style.backgroundColor = part > 0 ? `color-mix(in srgb, var(--accent) ${Math.round(part * 62)}%, transparent)` : "";
      span.classList.toggle("now", i === place);
    });
    let far = t;
    for (let k = t; k >= 0; k--) if (m.map.log(t, k) >= Math.max(m.map.log(t, t), -300) - 2) far = k;
    const entries = [...(bits.length ? [{ key: "cost", text: `${TT.text(TT.number(bits[t]))} bits` }] : []), { key: "1\u2009% of its gradient reaches", text: `${t - far} back` },
      ...Object.entries(gates).map(([name, values]) => ({ key: `gate ${name}`, text: TT.text(values[t]) }))];
    text.setAttribute("aria-valuenow", place);
    text.setAttribute("aria-valuetext", readout.set(`character ${place}, \u201c${symbols[place] === "\n" ? "\u21b5" : symbols[place]}\u201d`, entries));
  }

  const go = (to) => { place = TT.clamp(to, 1, spans.length - 1); show(); };
  const point = (event) => { const at = event.target.dataset?.at; if (at !== undefined) go(Number(at)); };
  text.addEventListener("pointerover", point);
  text.addEventListener("pointerdown", point);
  text.addEventListener("keydown", (event) => {
    const far = event.shiftKey ? 10 : 1;
    const to = { ArrowLeft: place - far, ArrowRight: place + far, ArrowUp: place - 10, ArrowDown: place + 10, PageUp: place - 50, PageDown: place + 50, Home: 1, End: spans.length - 1 }[event.key];
    if (to === undefined || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    go(to);
  });
  write();
  const csv = () => { const t = place - 1, map = m.map; return ["reading.csv", [["step", "symbol", "gradient", "held"],
    ...m.reading.symbols.slice(0, t + 1).map((symbol, k) => [k, symbol, 10 ** map.log(t, k), m.kept ? 10 ** m.kept.log(t, k) : ""])]]; };
  return { draw: show, csv };
};
