"use strict";
// The parts that figures share: choices, readout, a cursor for pointer and keyboard, axes, labels that keep apart.
TT.choice = (label, options, current, pick) => {
  const press = (value) => buttons.forEach((button, i) => button.setAttribute("aria-pressed", String(options[i][0] === value)));
  const buttons = options.map(([value, text]) => TT.html("button", { type: "button", onclick: () => { press(value); pick(value); } }, text));
  press(current);
  return TT.html("span", { class: "choice", role: "group", "aria-label": label }, TT.html("span", {}, label), ...buttons);
};

TT.readout = () => {
  const node = TT.html("div", { class: "readout" });
  return {
    node,
    // `entries` are { index?, key, text }; returns the same as one sentence.
    set(where, entries) {
      node.replaceChildren(TT.html("span", { class: "where" }, where), ...entries.map(({ index, key, text }) =>
        TT.html("span", { class: index === undefined ? null : TT.model(index) },
          index === undefined ? null : TT.glyph(index), TT.html("span", { class: "key" }, key), "\u2002" + text)));
      return `${where}: ${entries.map(({ key, text }) => `${key} ${text}`).join(", ")}`;
    },
  };
};

// One-dimensional cursor: `count()` places, `at(x)` the place nearest to a pixel, `show(i, touched)` draws it and
// returns words; `touched` is false until somebody has moved it.
TT.cursor = (label, { count, at, show, start }) => {
  const plot = TT.html("div", { class: "plot", tabindex: 0, role: "slider", "aria-label": label, "aria-valuemin": 0, "aria-valuemax": 0, "aria-valuenow": 0 });
  let place = start;
  let touched = false;
  const go = (to) => {
    place = TT.clamp(to, 0, count() - 1);
    const words = show(place, touched);
    plot.setAttribute("aria-valuemax", count() - 1);
    plot.setAttribute("aria-valuenow", place);
    plot.setAttribute("aria-valuetext", words);
  };
  const point = (event) => {
    touched = true;
    const svg = plot.querySelector("svg");
    const box = svg.getBoundingClientRect();
    go(at((event.clientX - box.left) / box.width * svg.viewBox.baseVal.width));
  };
  plot.addEventListener("pointermove", point);
  plot.addEventListener("pointerdown", point);
  plot.addEventListener("keydown", (event) => {
    const far = event.shiftKey ? 10 : 1;
    const to = { ArrowLeft: place - far, ArrowDown: place - far, ArrowRight: place + far, ArrowUp: place + far,
      PageDown: place - 10, PageUp: place + 10, Home: 0, End: count() - 1 }[event.key];
    if (to === undefined || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    touched = true;
    go(to);
  });
  return { plot, refresh: () => go(place) };
};

TT.canvasSvg = (width, height, label) => TT.svg("svg", { viewBox: `0 0 ${width} ${height}`, width, height,
  ...(label ? { role: "img", "aria-label": label } : { "aria-hidden": "true" }) });

TT.word = (x, y, text, attributes = {}) => TT.svg("text", { x, y, ...attributes }, text);

// Horizontal axis at height y, with a title under its right end.
TT.xAxis = (scale, y, title, { gap = 46, format = TT.count } = {}) => {
  const [r0, r1] = scale.range;
  const ticks = scale.ticks(gap);
  return TT.svg("g", {},
    TT.svg("path", { class: "axis", d: `M${r0},${y}H${r1}` + ticks.map((v) => `M${scale(v)},${y}v5`).join("") }),
    ...ticks.map((v) => TT.word(scale(v), y + 19, format(v), { "text-anchor": "middle" })),
    TT.word(r1, y + 37, title, { "text-anchor": "end", class: "title" }));
};

// Horizontal hair lines across [x0, x1] with their values to the left; none near the height `except`, which has a label of its own.
TT.yAxis = (scale, x0, x1, format, { gap = 34, except = NaN } = {}) => TT.svg("g", {}, ...scale.ticks(gap).filter((v) => !(Math.abs(scale(v) - except) < 13)).flatMap((v) => [
  TT.svg("line", { class: "grid", x1: x0, x2: x1, y1: scale(v), y2: scale(v) }),
  TT.word(x0 - 8, scale(v) + 4, format(v), { "text-anchor": "end" })]));

// A line through points [x, y], broken where y is null.
TT.line = (points) => {
  let pen = false;
  let path = "";
  for (const [x, y] of points) {
    if (y === null) { pen = false; continue; }
    path += `${pen ? "L" : "M"}${x.toFixed(1)},${y.toFixed(1)}`;
    pen = true;
  }
  return path;
};

// Places labels so that none covers another: each is tried where it wants to be, then higher, then lower.
TT.placer = () => {
  const taken = [];
  const free = (box) => taken.every((t) => box.x1 < t.x0 || box.x0 > t.x1 || box.y1 < t.y0 || box.y0 > t.y1);
  return (x, y, text, anchor, low, high) => {
    const wide = TT.width(text, true) + 6;
    const x0 = anchor === "end" ? x - wide : anchor === "middle" ? x - wide / 2 : x;
    const box = (dy) => ({ x0, x1: x0 + wide, y0: y + dy - 12, y1: y + dy + 3 });
    const shifts = [0, -15, 15, -30, 30, -45, 45, -60, 60].filter((dy) => y + dy - 10 >= low && y + dy <= high);
    const shift = shifts.find((dy) => free(box(dy))) ?? 0;
    taken.push(box(shift));
    return y + shift;
  };
};

// What went wrong, from x on: a cross and words that keep inside the drawing, on the side with more room.
TT.trouble = (m, x, y, width, name, words) => {
  const end = x > width / 2, room = (end ? x : width - x) - 14;
  return TT.svg("g", { class: TT.model(m.index) }, TT.svg("path", { class: "bad", d: TT.cross(x, y) }),
    TT.word(end ? x - 10 : x + 10, y + 4, `${TT.fit(name, room - TT.width(`: ${words}`, true))}: ${words}`, { class: "halo", "text-anchor": end ? "end" : "start" }));
};

TT.cross = (x, y, r = 4) => `M${x - r},${y - r}l${2 * r},${2 * r}M${x - r},${y + r}l${2 * r},${-2 * r}`;
TT.statesOf = (models, field) => Object.keys(TT.data.stateNames).filter((state) => models.some((model) => state in model[field]));
