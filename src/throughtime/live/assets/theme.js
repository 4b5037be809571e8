"use strict";
// The switch for the colours, and what is to be drawn anew when they change.
TT.redraws = [];
(() => {
  const button = document.getElementById("theme"), root = document.documentElement;
  const themes = ["", "light", "dark"], names = { "": "automatic", light: "light", dark: "dark" };
  const again = () => TT.redraws.forEach((redraw) => redraw());
  const apply = (theme) => { if (theme) root.dataset.theme = theme; else delete root.dataset.theme; button.textContent = `Colours: ${names[theme]}`; };
  const kept = localStorage.getItem("throughtime-theme") ?? "";
  root.classList.add("js");
  apply(themes.includes(kept) ? kept : "");
  button.hidden = false;
  button.addEventListener("click", () => {
    const next = themes[(themes.indexOf(root.dataset.theme ?? "") + 1) % themes.length];
    localStorage.setItem("throughtime-theme", next);
    apply(next);
    again();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", again);
})();
