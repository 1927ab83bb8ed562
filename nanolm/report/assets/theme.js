// Light and dark themes.

const isNarrow = () => window.innerWidth <= 760;
const prefersDark = window.matchMedia("(prefers-color-scheme: dark)");
const redraws = [];

function setTheme(name) {
  document.documentElement.dataset.theme = name;
  byId("theme").textContent = name === "dark" ? "☀" : "☾";
  byId("theme").title = name === "dark" ? "switch to the light theme" : "switch to the dark theme";
}

function startTheme() {
  setTheme(prefersDark.matches ? "dark" : "light");
  prefersDark.addEventListener("change", () => { setTheme(prefersDark.matches ? "dark" : "light"); redrawAll(); });
  byId("theme").addEventListener("click", () => {
    setTheme(document.documentElement.dataset.theme === "dark" ? "light" : "dark");
    redrawAll();
  });
  let wasNarrow = isNarrow();
  window.addEventListener("resize", () => {
    if (wasNarrow !== isNarrow()) { wasNarrow = isNarrow(); redrawAll(); }
  });
}

function redrawAll() {
  for (const redraw of redraws) redraw();
}

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
