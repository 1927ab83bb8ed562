// The legend of all plots; a click hides a run.

const hidden = new Set();
// More curves look alike, and a browser takes minutes to draw thousands.
const MOST_SHOWN = 100;
const FIRST_SHOWN = 20;
if (runs.length > MOST_SHOWN) runs.slice(FIRST_SHOWN).forEach((run) => hidden.add(run));
const shown = () => runs.filter((run) => !hidden.has(run));

function startLegend() {
  const chips = runs.map((run) => element("button", {
    type: "button", title: `${run.name}\n${run.path}`, "aria-pressed": String(!hidden.has(run)),
    onclick: () => { hidden.has(run) ? hidden.delete(run) : hidden.add(run); update(); },
  }, swatch(run), element("span", { class: "label" }, run.short)));
  const update = () => {
    chips.forEach((chip, place) => chip.setAttribute("aria-pressed", String(!hidden.has(runs[place]))));
    redrawCurves();
    redrawParallel();
  };
  const only = (wanted) => { hidden.clear(); runs.filter((run) => !wanted(run)).forEach((run) => hidden.add(run)); update(); };
  byId("legend").append(...chips);
  if (runs.length > 2) {
    byId("legend").append(
      element("button", { type: "button", class: "plain", onclick: () => only(() => true) }, "all"),
      element("button", { type: "button", class: "plain", onclick: () => only(() => false) }, "none"));
  }
  if (runs.length > 6) {
    byId("legend").append(element("button", { type: "button", class: "plain", onclick: () => only((run) => run.place < 5) }, "best 5"));
  }
}
