"use strict";
// Scales from data to pixels, and the round numbers to mark on them.
TT.scale = (forward, inverse, [d0, d1], [r0, r1], ticks) => {
  const f0 = forward(d0), f1 = forward(d1), span = f1 - f0 || 1;
  const scale = (v) => r0 + (forward(v) - f0) / span * (r1 - r0);
  scale.invert = (p) => inverse(f0 + (p - r0) / (r1 - r0) * span);
  scale.domain = [d0, d1];
  scale.range = [r0, r1];
  scale.ticks = (gap) => TT.thin(ticks([d0, d1], Math.abs(r1 - r0) / gap), scale, gap);
  return scale;
};

// Keep the ticks that stand at least `gap` pixels from the one before; the first one stays.
TT.thin = (ticks, scale, gap) => ticks.reduce((kept, tick) =>
  !kept.length || Math.abs(scale(tick) - scale(kept[kept.length - 1])) >= gap ? [...kept, tick] : kept, []);

TT.linearTicks = ([low, high], count) => {
  const rough = (high - low) / Math.max(count, 1) || 1;
  const unit = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].find((m) => m * unit >= rough * .999) * unit;
  const out = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) out.push(+(i * step).toPrecision(12));
  return out;
};
TT.linear = (domain, range) => TT.scale((v) => v, (v) => v, domain, range, TT.linearTicks);

// Steps and lags are whole: no tick between two of them.
TT.whole = (domain, range) => TT.scale((v) => v, (v) => v, domain, range,
  (d, n) => TT.linearTicks(d, n).filter(Number.isInteger));

// Lags on a logarithmic scale that has room for lag 0: log(1 + lag).
TT.lagTicks = ([low, high]) => {
  const out = [0, 1, 2, 5];
  for (let unit = 10; unit <= high; unit *= 10) out.push(unit, 2 * unit, 5 * unit);
  return out.filter((v) => v >= low && v <= high);
};
TT.lag = (domain, range) => TT.scale((v) => Math.log1p(v), (v) => Math.expm1(v), domain, range, TT.lagTicks);

// Powers of ten; the domain is in exponents.
TT.exponents = (domain, range) => TT.scale((v) => v, (v) => v, domain, range, ([low, high], count) => {
  const step = Math.max(1, Math.ceil((high - low) / Math.max(count, 1)));
  const out = [];
  for (let e = Math.floor(high); e >= low - 1e-9; e--) if (e % step === 0) out.push(e);
  return out.reverse();
});

// Move positions apart to `gap`, in order, within [low, high].
TT.spread = (items, gap, low, high) => {
  const order = [...items].sort((a, b) => a.y - b.y);
  let at = low - gap;
  for (const item of order) at = item.y = Math.max(item.y, at + gap);
  at = high + gap;
  for (const item of order.reverse()) at = item.y = Math.min(item.y, at - gap);
  return items;
};
