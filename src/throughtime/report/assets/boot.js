"use strict";
// Puts the figures on the page and keeps them right when its width or its colours change.
(() => {
  const drawn = [];
  document.documentElement.classList.add("js");
  for (const figure of document.querySelectorAll("[data-figure]")) {
    const stage = figure.querySelector(".stage"), kind = figure.dataset.figure;
    const part = TT.figures[kind](stage, figure.querySelector(".tools"));
    figure.querySelector("figcaption").append(" ", TT.html("button", { type: "button", class: "save",
      "aria-label": `Save the data of this figure, ${kind}, as CSV`, onclick: () => TT.save(...part.csv()) }, "Save data as CSV"));
    drawn.push({ ...part, stage, width: 0 });
  }
  const draw = (part, force) => {
    const width = Math.floor(part.stage.clientWidth);
    if (width > 0 && (force || width !== part.width)) part.draw(part.width = width);
  };
  const all = () => drawn.forEach((part) => draw(part, true));
  const watch = new ResizeObserver(() => drawn.forEach((part) => draw(part, false)));

  const button = document.getElementById("theme"), root = document.documentElement;
  const themes = ["", "light", "dark"], names = { "": "automatic", light: "light", dark: "dark" };
  const remember = { get() { try { return localStorage.getItem("throughtime-theme") ?? ""; } catch { return ""; } },
    set(v) { try { localStorage.setItem("throughtime-theme", v); } catch { /* a page opened from a file may have no storage */ } } };
  const apply = (theme) => {
    if (theme) root.dataset.theme = theme; else delete root.dataset.theme;
    button.textContent = `Colours: ${names[theme]}`;
  };
  apply(themes.includes(remember.get()) ? remember.get() : "");
  button.hidden = false;
  button.addEventListener("click", () => {
    const next = themes[(themes.indexOf(root.dataset.theme ?? "") + 1) % themes.length];
    remember.set(next);
    apply(next);
    all();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", all);
  // Only the canvas must be told: on paper it is light, whatever the screen is.
  addEventListener("beforeprint", () => { TT.printing = true; all(); });
  addEventListener("afterprint", () => { TT.printing = false; all(); });
  all();
  drawn.forEach((part) => watch.observe(part.stage));
})();
