// Loss, learning rate and gradient norm over steps, tokens, FLOPs or seconds.

const PLACES = {
  step: "step",
  tokens: "training tokens",
  flops: "training FLOPs (by formula)",
  seconds: "training seconds",
};
const view = { x: "step", y: report.by_bits ? "bits_per_byte" : "loss", split: report.by_bits || runs.length > 4 ? "val" : "both", xScale: "linear", yScale: "linear", smoothing: 0, seeds: report.rows.some((row) => row.runs.length > 1) ? "mean" : "single" };

function along(run, curve, place) {
  return place === "flops" ? curve.tokens.map((tokens) => tokens * run.flops_per_token) : curve[place];
}

const has = (run, place) => place === "flops" ? run.flops_per_token !== null : Object.values(run.curves).some((curve) => curve[place]?.length);

function startCurves() {
  const places = Object.keys(PLACES).filter((place) => runs.some((run) => has(run, place)));
  const change = (name) => (value) => { view[name] = value; redrawCurves(); };
  const loss = report.by_bits ? "the nats per token of these runs are not comparable" : null;
  const text = choice("split", [["val", "validation"], ["train", "training"], ["both", "both"]], view.split, change("split"));
  const measure = (value) => {
    // Bits per byte are measured on the validation text only.
    for (const button of text.querySelectorAll("button")) button.disabled = value !== "loss" && button.value !== "val";
    change("y")(value);
  };
  byId("curve-controls").append(
    choice("x axis", places.map((place) => [place, place === "flops" ? "FLOPs" : place === "step" ? "steps" : place]), view.x, change("x")),
    choice("x scale", [["linear", "linear"], ["log", "log"]], view.xScale, change("xScale")),
    choice("y scale", [["linear", "linear"], ["log", "log"]], view.yScale, change("yScale")),
    choice("metric", [["loss", "nats/token", loss], ["bits_per_byte", "bits/byte"]], view.y, measure),
    text,
    ...(view.seeds === "mean" ? [choice("seeds", [["mean", "mean and range"], ["single", "single"]], view.seeds, change("seeds"))] : []),
    slider("smoothing (training)", 0, 0.99, 0.01, 0, (weight) => weight ? weight.toFixed(2) : "none", change("smoothing")));
  redraws.push(redrawCurves);
  measure(view.y);
}

// Exponential moving average with the bias correction of Adam (Kingma and Ba 2015).
function smoothed(values, weight) {
  let mean = 0, share = 0;
  return values.map((value) => {
    mean = weight * mean + (1 - weight) * value;
    share = weight * share + (1 - weight);
    return mean / share;
  });
}

function trace(run, curve, label, look = {}) {
  const x = along(run, curve, view.x) ?? [];
  const isShort = curve.y.length < 2;
  return {
    type: "scatter", mode: isShort ? "markers" : "lines", name: plain(run.short), x, y: look.y ?? curve.y,
    line: { color: runColour(run), dash: DASHES[run.dash], width: 2, ...look.line }, opacity: look.opacity ?? 1,
    marker: { color: runColour(run), size: 8 },
    hovertemplate: `<b>${plain(run.label)}</b><br>${label} %{y:.4~f}<br>${view.x === "flops" ? "FLOPs" : view.x} %{x:,.4~r}<extra></extra>`,
    hoverinfo: look.silent ? "skip" : undefined,
  };
}

// Rows of seeds as [the first run, its seeds], and the runs that stand alone; the best last, so that it is on top.
function groupsOfSeeds() {
  const groups = new Map();
  for (const run of shown()) {
    const key = view.seeds === "mean" ? run.row ?? run : run;
    groups.set(key, [...(groups.get(key) ?? []), run]);
  }
  return [...groups.values()].toReversed();
}

// The mean, lowest and highest of the curves of some seeds, at the steps that all of them have.
function overSeeds(curves) {
  const [first, ...others] = curves.map((curve) => new Map(curve.step.map((step, at) => [step, at])));
  const steps = [...first.keys()].filter((step) => others.every((places) => places.has(step)));
  const values = steps.map((step) => curves.map((curve) => curve.y[curve.step.indexOf(step)]));
  const pick = (name) => curves[0][name] && steps.map((step) => curves[0][name][first.get(step)]);
  return {
    step: steps, tokens: pick("tokens"), seconds: pick("seconds"),
    y: values.map((some) => some.reduce((sum, value) => sum + value, 0) / some.length),
    low: values.map((some) => Math.min(...some)), high: values.map((some) => Math.max(...some)),
  };
}

// The band of some seeds and their mean; null if their curves share too few steps.
function seedTraces(seeds, name, label) {
  const curves = seeds.map((run) => run.curves[name]);
  if (!curves.every((curve) => curve.step && curve.y.length)) return null;
  const mean = overSeeds(curves);
  if (name === "train" && view.smoothing) {
    for (const each of ["y", "low", "high"]) mean[each] = smoothed(mean[each], view.smoothing);
  }
  if (mean.step.length < Math.min(2, curves[0].y.length)) return null;
  const [run] = seeds;
  const width = { width: 0 };
  const edge = (y, more) => ({ ...trace(run, mean, "", { y, line: width }), hoverinfo: "skip", hovertemplate: null, mode: "lines", ...more });
  const [red, green, blue] = channels(runColour(run));
  return [
    edge(mean.low, {}), edge(mean.high, { fill: "tonexty", fillcolor: `rgba(${red},${green},${blue},0.2)` }),
    { ...trace(run, mean, `${label}, mean of ${seeds.length} seeds,`), name: plain(report.rows[run.row].label) },
  ];
}

function lossTraces() {
  const traces = [];
  for (const seeds of groupsOfSeeds()) {
    const bands = seeds.length > 1 ? bandTraces(seeds) : null;
    traces.push(...(bands ?? seeds.toReversed().flatMap(runTraces)));
  }
  return traces;
}

function bandTraces(seeds) {
  if (view.x === "flops" && seeds.some((run) => run.flops_per_token === null)) return [];
  const ofVal = view.split !== "train" || view.y !== "loss" ? seedTraces(seeds, view.y === "loss" ? "val" : "bits_per_byte", view.y === "loss" ? "val loss" : "bits per byte") : [];
  const ofTrain = view.y === "loss" && view.split !== "val" ? seedTraces(seeds, "train", "train loss") : [];
  return ofVal && ofTrain && [...ofTrain, ...ofVal];
}

function runTraces(run) {
  if (view.x === "flops" && run.flops_per_token === null) return [];
  const traces = [];
  const validation = run.curves[view.y === "loss" ? "val" : "bits_per_byte"];
  const training = run.curves.train;
  const withTraining = view.y === "loss" && view.split !== "val" && training.y.length;
  if (withTraining) {
    const faint = view.split === "both";
    if (view.smoothing) {
      if (shown().length <= 6) traces.push({ ...trace(run, training, "", { line: { width: 1 }, opacity: 0.22 }), hoverinfo: "skip", hovertemplate: null });
      traces.push(trace(run, training, "train loss, smoothed,", { y: smoothed(training.y, view.smoothing), line: { width: faint ? 1.3 : 2 }, opacity: faint ? 0.65 : 1 }));
    } else {
      traces.push(trace(run, training, "train loss", { line: { width: faint ? 1 : 1.5 }, opacity: faint ? 0.45 : 0.9 }));
    }
  }
  if ((view.split !== "train" || view.y !== "loss") && validation.y.length) {
    traces.push(trace(run, validation, view.y === "loss" ? "val loss" : "bits per byte"));
  }
  return traces;
}

function scaled(kind, more = {}) {
  return kind === "log" ? { type: "log", ...more } : { type: "linear", rangemode: "nonnegative", ...more };
}

function xAxis() {
  const digits = view.x === "flops" ? { exponentformat: "power" } : { exponentformat: "SI", separatethousands: true };
  return axis(PLACES[view.x], scaled(view.xScale, { ...digits, nticks: isNarrow() ? 5 : 10 }));
}

function redrawCurves() {
  const isLoss = view.y === "loss";
  const unit = isLoss ? "nats per token" : "bits per byte";
  const traces = lossTraces();
  const lines = report.baselines.map((line) => ({ name: line.name, y: isLoss ? line.loss : line.bits_per_byte })).filter((line) => isNumber(line.y));
  const splits = isLoss ? { val: "Validation loss", train: "Training loss", both: "Validation loss, with training loss (faint)" }[view.split] : "Bits per byte on the validation text";
  byId("loss-title").textContent = splits;
  draw("loss", traces, {
    xaxis: xAxis(), yaxis: axis(unit, scaled(view.yScale, { nticks: 8 })),
    shapes: lines.map((line) => ({ type: "line", xref: "paper", x0: 0, x1: 1, y0: line.y, y1: line.y, layer: "below", line: { color: colour("reference"), width: 1.2, dash: "4px,4px" } })),
  }).then(() => labelReferences(lines));
  draw("lr", shown().toReversed().filter(drawable).map((run) => trace(run, run.curves.lr, "lr")),
    { xaxis: xAxis(), yaxis: axis("lr", scaled(view.yScale, { nticks: 6, exponentformat: "power" })) });
  draw("grad-norm", shown().toReversed().filter(drawable).map((run) => trace(run, run.curves.grad_norm, "gradient norm",
    { y: view.smoothing ? smoothed(run.curves.grad_norm.y, view.smoothing) : undefined, line: { width: 1.3 } })),
    { xaxis: xAxis(), yaxis: axis("norm before clipping", scaled(view.yScale, { nticks: 6 })) });
  byId("loss-note").textContent = curveNotes(lines, unit).join(" ");
}

const drawable = (run) => view.x !== "flops" || run.flops_per_token !== null;

// Label the baselines at the left end, where they hide less of the curves. The labels of close lines are joined above the highest of them.
function labelReferences(lines) {
  const full = byId("loss")._fullLayout;
  const [low, high] = full.yaxis.range;
  const height = full._size.h;
  const place = (y) => (view.yScale === "log" ? Math.log10(y) : y);
  const inPixels = (line) => (place(line.y) - low) / (high - low) * height;
  const groups = [];
  for (const line of [...lines].sort((one, other) => one.y - other.y)) {
    const at = inPixels(line);
    if (at < -1 || at > height - 12) continue;
    const last = groups.at(-1);
    if (last && at - last.at < 15) Object.assign(last, { at, y: line.y, names: [line.name, ...last.names] });
    else groups.push({ at, y: line.y, names: [line.name] });
  }
  const annotations = groups.map((group) => ({
    xref: "paper", x: 0, xanchor: "left", y: place(group.y), yanchor: "bottom", yshift: -1, showarrow: false,
    text: plain(group.names.join(", ")), font: { size: 11.5, color: colour("reference") },
  }));
  return Plotly.relayout("loss", { annotations });
}

function curveNotes(lines, unit) {
  const notes = [];
  if (lines.length) notes.push(`Dashed lines: baselines of n-gram counts and compressors on the same validation text, in ${unit}: ${lines.map((line) => `${line.name} ${exact(line.y)}`).join(", ")}.`);
  if (view.y !== "loss") notes.push("The training loss is not shown: it is not measured in bits per byte.");
  if (view.x === "flops") {
    const without = shown().filter((run) => !drawable(run));
    if (without.length) notes.push(`No formula for the FLOPs of ${without.map((run) => run.short).join(", ")}.`);
  }
  if (view.seeds === "mean") notes.push("Runs that differ only in their seed are drawn as their mean, with a band from the lowest to the highest of them.");
  if (runs.some((run) => run.is_thinned)) {
    notes.push(`Curves are thinned to ${whole(report.max_points)} points, keeping local minima and maxima.`);
  }
  if (runs.length > COLOURS) notes.push(`There are ${COLOURS} colour-blind safe colours; further runs differ in their dashes.`);
  return notes;
}
