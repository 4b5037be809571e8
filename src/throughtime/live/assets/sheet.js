"use strict";
// Matrices that come as one byte a value, painted as pictures with a line that says how to read them.
TT.bytes = (picture) => Uint8Array.from(atob(picture.data), (c) => c.charCodeAt(0));

// The colours run from the page's own to its opposite: the word for the strong end depends on the page.
TT.strong = (onLight, onDark) => TT.dark() ? onDark : onLight;

// A button that saves a figure's data; `csv` gives the file's name and its rows, or null while there are none.
TT.saver = (what, csv, text = "Save data as CSV") => TT.html("button", { type: "button", class: "save", "aria-label": `Save the data of ${what} as CSV`,
  onclick: () => { const found = csv(); if (found) TT.save(...found); } }, text);
// Puts one behind the line that says how to read the figure in `stage`.
TT.saved = (stage, what, csv) => stage.parentElement.querySelector(`#${stage.id} ~ .caption`).append(" ", TT.saver(what, csv));

// A picture of bytes, 0..255; where `value` gives null there is nothing. With `csv` it can be saved.
TT.paint = (width, height, value, aspect, words, csv) => {
  const canvas = TT.html("canvas", { class: "sheet", width, height, role: "img", "aria-label": words });
  const context = canvas.getContext("2d"), image = context.createImageData(width, height), pixel = image.data;
  const shades = Array.from({ length: 256 }, (_, v) => TT.ramp(v / 255));
  for (let y = 0, at = 0; y < height; y++) for (let x = 0; x < width; x++, at += 4) {
    const v = value(x, y);
    if (v === null) continue;
    const [r, g, b] = shades[v];
    pixel[at] = r; pixel[at + 1] = g; pixel[at + 2] = b; pixel[at + 3] = 255;
  }
  context.putImageData(image, 0, 0);
  canvas.style.aspectRatio = String(aspect);
  return TT.html("figure", {}, canvas, TT.html("figcaption", {}, words, ...(csv ? [" ", TT.saver(words.split(/[:,]/)[0], csv)] : [])));
};

// A map [t, k], of which the half k <= t is there.
TT.triangle = (picture, words, name = "map") => {
  const T = picture.columns, bytes = TT.bytes(picture);
  return TT.paint(T, T, (x, y) => x > y ? null : bytes[y * T + x], 1, words, () => TT.mapRows(picture, name, 0));
};

// A map as it is drawn, from the row `first` on: a byte is a step of a twentieth of a power of ten, 0 what is smaller still.
TT.mapRows = (picture, name, first) => {
  const bytes = TT.bytes(picture), rows = [["t", "k", "lag", "gradient relative to the largest, within 6 %"]];
  for (let t = first; t < picture.rows; t++) for (let k = 0; k <= t; k++) {
    const v = bytes[t * picture.columns + k];
    rows.push([t, k, t - k, v ? +(10 ** (picture.low + v / 255 * (picture.high - picture.low))).toPrecision(3) : 0]);
  }
  return [`${name}.csv`, rows];
};

// What comes as [time, unit] is shown with time to the right; it is saved with a row a step.
TT.sheet = (picture, words, name = "values") => {
  const bytes = TT.bytes(picture), units = picture.columns, step = (picture.high - picture.low) / 255;
  const csv = () => [`${name}.csv`, [["step", ...Array.from({ length: units }, (_, u) => `unit ${u}`)], ...Array.from({ length: picture.rows }, (_, t) =>
    [t, ...Array.from({ length: units }, (_, u) => +(picture.low + bytes[t * units + u] * step).toFixed(4))])]];
  return TT.paint(picture.rows, units, (x, y) => bytes[x * units + y], TT.clamp(picture.rows / units, 1, 3), words, csv);
};
