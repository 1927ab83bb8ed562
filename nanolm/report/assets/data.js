// The data of the page.

const report = JSON.parse(document.getElementById("data").textContent);
const runs = report.runs;
const keys = Object.keys(report.keys);

const COLOURS = 8;
const DASHES = ["solid", "dash", "dot", "dashdot"];

// Each run has the same colour and dash in every plot.
runs.forEach((run, place) => {
  run.place = place;
  run.colour = place % COLOURS;
  run.dash = Math.floor(place / COLOURS) % DASHES.length;
  run.short = shortened(run.label, report.max_label_length);
});

// The loss that runs are judged by, as in nanolm compare.
const resultName = report.judged;
const resultOf = (run) => run.figures[report.judged_metric];
const resultUnit = report.by_bits ? "bits per byte" : "nats per token";

// The label of the run with a name.
const shortOf = (name) => runs.find((run) => run.name === name).short;

// A piece of line in the run's colour and dash.
function swatch(run) {
  const space = "http://www.w3.org/2000/svg";
  const drawing = document.createElementNS(space, "svg");
  drawing.setAttribute("class", "swatch");
  drawing.setAttribute("viewBox", "0 0 26 10");
  drawing.setAttribute("aria-hidden", "true");
  const line = document.createElementNS(space, "line");
  const dashes = ["none", "7 3", "2.5 3", "7 3 2 3"];
  const looks = { x1: 0, y1: 5, x2: 26, y2: 5, "stroke-dasharray": dashes[run.dash] };
  for (const [name, value] of Object.entries(looks)) line.setAttribute(name, value);
  line.style.stroke = `var(--run-${run.colour})`;
  drawing.append(line);
  return drawing;
}

// A setting's value, as typed on the command line.
function formatValue(value) {
  if (value === null || value === undefined) return "–";
  return Array.isArray(value) || typeof value === "object" ? JSON.stringify(value) : String(value);
}
