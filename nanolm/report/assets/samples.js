// Samples of the runs side by side, at a step chosen with a slider.

const FIRST_CARDS = 4;
let showsAll = false;

function startSamples() {
  const writers = runs.filter((run) => run.samples.length);
  if (!writers.length) return;
  byId("samples").hidden = false;
  const steps = [...new Set(writers.flatMap((run) => run.samples.map(([step]) => step)))].sort((one, other) => one - other);
  let at = steps.length - 1;
  const redraw = () => {
    const drawn = showsAll ? writers : writers.slice(0, FIRST_CARDS);
    byId("cards").replaceChildren(...drawn.map((run) => card(run, steps[at])));
  };
  if (steps.length > 1) {
    byId("sample-controls").append(slider("step", 0, steps.length - 1, 1, at, (place) => whole(steps[place]), (place) => { at = place; redraw(); }));
  }
  const more = byId("more-samples");
  more.hidden = writers.length <= FIRST_CARDS;
  more.textContent = `show all ${writers.length}`;
  more.addEventListener("click", () => {
    showsAll = !showsAll;
    more.textContent = showsAll ? "show the best only" : `show all ${writers.length}`;
    redraw();
  });
  redraw();
}

// The latest sample at or before the step.
function card(run, step) {
  const written = run.samples.filter(([each]) => each <= step).at(-1);
  const loss = written && lossAt(run, written[0]);
  return element("article", { class: "card" },
    element("header", { title: `${run.name}\n${run.path}` }, swatch(run), element("span", { class: "name" }, run.short)),
    element("p", { class: "at" }, written ? `step ${whole(written[0])}${loss ? `, val loss ${exact(loss)}` : ""}` : `no sample up to step ${whole(step)}`),
    element("pre", {}, written ? written[1] : ""));
}

function lossAt(run, step) {
  const place = run.curves.val.step?.indexOf(step) ?? -1;
  return place < 0 ? null : run.curves.val.y[place];
}
