"use strict";
// Asks every few seconds whether the run has something new, and shows it.
(() => {
  const byId = (id) => document.getElementById(id);
  const themes = ["auto", "light", "dark"];
  let theme = localStorage.getItem("resobj-theme") || "auto";
  const setTheme = (name) => {
    theme = themes.includes(name) ? name : "auto";
    if (theme === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
    byId("theme").textContent = `Theme: ${theme}`;
    localStorage.setItem("resobj-theme", theme);
  };
  setTheme(theme);
  byId("theme").addEventListener("click", () => setTheme(themes[(themes.indexOf(theme) + 1) % 3]));

  const folder = byId("state").textContent;
  let version = null;
  const look = async () => {
    try {
      const state = await (await fetch("state.json", { cache: "no-store" })).json();
      if (version !== null && state.version !== version) {
        const open = new Map([...document.querySelectorAll("details")].map((x) => [x.dataset.key, x.open]));
        const text = await (await fetch("content.html", { cache: "no-store" })).text();
        byId("content").innerHTML = text;
        for (const x of document.querySelectorAll("details"))
          if (open.has(x.dataset.key)) x.open = open.get(x.dataset.key);
      }
      version = state.version;
      byId("state").textContent = `${folder}, ${state.text}`;
    } catch {
      byId("state").textContent = `${folder}: the command that watches it has ended`;
    }
    setTimeout(look, 4000);
  };
  look();
})();
