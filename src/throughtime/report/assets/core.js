"use strict";
// What every figure needs: the data, elements, numbers as text, files to save.
const TT = { figures: {}, data: JSON.parse(document.getElementById("report-data").textContent) };

// Non-finite numbers travel as words, because JSON has none.
TT.number = (v) => v === null || typeof v === "number" ? v : { inf: Infinity, "-inf": -Infinity }[v] ?? NaN;
TT.numbers = (list) => list.map(TT.number);

TT.element = (create) => (tag, attributes = {}, ...children) => {
  const node = create(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null));
  return node;
};
TT.html = TT.element((tag) => document.createElement(tag));
TT.svg = TT.element((tag) => document.createElementNS("http://www.w3.org/2000/svg", tag));

TT.minus = (text) => String(text).replace(/-/g, "\u2212");
TT.superscript = (n) => String(n).replace(/[-0-9]/g, (c) => c === "-" ? "\u207b" : "\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079"[c]);
TT.power = (e) => e === 0 ? "1" : "10" + TT.superscript(e);
// Three significant digits; NaN and infinity by name.
TT.text = (v) => {
  if (v === null || v === undefined) return "\u2014";
  if (Number.isNaN(v)) return "NaN";
  if (!Number.isFinite(v)) return v > 0 ? "\u221e" : "\u2212\u221e";
  const size = Math.abs(v);
  if (size !== 0 && (size < 1e-3 || size >= 1e6)) {
    const [mantissa, exponent] = v.toExponential(1).split("e");
    return `${TT.minus(mantissa)}\u2009\u00d7\u200910${TT.superscript(Number(exponent))}`;
  }
  if (size >= 100 || size === 0) return TT.minus(Math.round(v));
  return TT.minus(v.toPrecision(3));
};
TT.count = (v) => TT.minus(Math.round(v)).replace(/\B(?=(\d{3})+$)/g, "\u202f");
TT.reach = (horizon) => (horizon.atLeast ? "\u2265\u2009" : "") + horizon.steps;
TT.stepsOf = (horizon) => `${TT.reach(horizon)} ${horizon.steps === 1 ? "step" : "steps"}`;
TT.share = () => `${TT.minus(+(TT.data.fraction * 100).toPrecision(3))}\u2009%`;
TT.clamp = (v, low, high) => Math.max(low, Math.min(high, v));

// Width of a text as the figures set it, in pixels.
TT.width = (() => {
  const context = document.createElement("canvas").getContext("2d");
  return (text, bold = false) => {
    context.font = `${bold ? "600 " : ""}12px ${getComputedStyle(document.documentElement).getPropertyValue("--sans")}`;
    return context.measureText(text).width;
  };
})();
TT.fit = (text, room, bold = true) => {
  if (TT.width(text, bold) <= room) return text;
  const letters = Array.from(text);
  while (letters.length > 1 && TT.width(letters.join("") + "\u2026", bold) > room) letters.pop();
  return letters.join("") + "\u2026";
};

// A model is told apart by colour, by dash and by mark.
TT.model = (index) => `model m${index % 6}`;
TT.dash = (index) => `d${index % 4}`;
TT.mark = (index, x, y, r = 5) => [
  `M${x - r},${y}a${r},${r} 0 1 0 ${2 * r},0a${r},${r} 0 1 0 ${-2 * r},0z`,
  `M${x - r * .9},${y - r * .9}h${r * 1.8}v${r * 1.8}h${-r * 1.8}z`,
  `M${x},${y - r * 1.15}l${r * 1.1},${r * 2}h${-r * 2.2}z`,
  `M${x},${y - r * 1.3}l${r * 1.3},${r * 1.3}l${-r * 1.3},${r * 1.3}l${-r * 1.3},${-r * 1.3}z`,
][index % 4];
TT.glyph = (index) => TT.svg("svg", { class: `glyph ${TT.model(index)}`, width: 26, height: 12, viewBox: "0 0 26 12", "aria-hidden": "true" },
  TT.svg("path", { class: `curve ${TT.dash(index)}`, d: "M0,6H26" }),
  TT.svg("path", { class: "mark", d: TT.mark(index, 13, 6, 4.5) }));

TT.dark = () => {
  if (TT.printing) return false;
  const theme = document.documentElement.dataset.theme;
  return theme ? theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
};

// A spreadsheet must not take a model's name for a formula.
TT.csvCell = (value) => {
  if (typeof value !== "string") return value === null || value === undefined ? "" : String(value);
  const safe = /^[=+\-@\t\r]/.test(value) ? "'" + value : value;
  return /[",\n\r]/.test(safe) ? `"${safe.replace(/"/g, '""')}"` : safe;
};
TT.save = (name, rows) => {
  const text = rows.map((row) => row.map(TT.csvCell).join(",")).join("\r\n") + "\r\n";
  const link = TT.html("a", { href: URL.createObjectURL(new Blob([text], { type: "text/csv" })), download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
};
