"use strict";
// Matrices that come as one byte a value, painted as pictures with a line that says how to read them.
TT.bytes = (picture) => Uint8Array.from(atob(picture.data), (c) => c.charCodeAt(0));

// The colours run from the page's own to its opposite: the word for the strong end depends on the page.
TT.strong = (onLight, onDark) => TT.dark() ? onDark : onLight;

// A picture of bytes, 0..255; where `value` gives null there is nothing.
TT.paint = (width, height, value, aspect, words) => {
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
  return TT.html("figure", {}, canvas, TT.html("figcaption", {}, words));
};

// A map [t, k], of which the half k <= t is there.
TT.triangle = (picture, words) => {
  const T = picture.columns, bytes = TT.bytes(picture);
  return TT.paint(T, T, (x, y) => x > y ? null : bytes[y * T + x], 1, words);
};

// What comes as [time, unit] is shown with time to the right.
TT.sheet = (picture, words) => {
  const bytes = TT.bytes(picture), units = picture.columns;
  return TT.paint(picture.rows, units, (x, y) => bytes[x * units + y], TT.clamp(picture.rows / units, 1, 3), words);
};
