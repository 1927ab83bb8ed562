// The results by setting: parallel coordinates of all settings, and a heat map of any two.

const plane = { across: null, up: null };
const MOST_NAMED = 10;

// The sorted values of a setting, and their places on an axis from 0 to 1.
function scaleOf(key) {
  const values = [...new Map(runs.map((run) => [formatValue(run.settings[key]), run.settings[key]])).values()];
  values.sort((one, other) => compare(one, other, false));
  const numbers = values.filter(isNumber);
  if (values.length <= MOST_NAMED || numbers.length < values.length) {
    const at = new Map(values.map((value, place) => [formatValue(value), values.length > 1 ? place / (values.length - 1) : 0.5]));
    const every = Math.ceil(values.length / 16);
    return { values, place: (value) => at.get(formatValue(value)), ticks: values.filter((_, place) => place % every === 0).map((value) => [at.get(formatValue(value)), formatValue(value)]) };
  }
  const isLog = numbers[0] > 0 && numbers[numbers.length - 1] / numbers[0] > 20;
  const scale = isLog ? Math.log : (value) => value;
  const inverse = isLog ? Math.exp : (value) => value;
  const [low, high] = [scale(numbers[0]), scale(numbers[numbers.length - 1])];
  const ticks = [0, 0.25, 0.5, 0.75, 1].map((at) => [at, Number(inverse(low + at * (high - low)).toPrecision(3)).toString()]);
  return { values, place: (value) => (scale(value) - low) / (high - low), ticks };
}

const measured = () => runs.filter((run) => isNumber(resultOf(run)));

function startSettings() {
  if (!keys.length || measured().length < 2) return;
  byId("settings").hidden = false;
  byId("settings-note").textContent = "Each line is a run: it passes through the values of its settings and ends at its result. Lower is better.";
  [plane.across, plane.up] = fullestPlane();
  if (plane.up !== null) {
    const options = keys.map((key) => [key, key]);
    byId("map-controls").append(
      list("x axis", options, plane.across, (key) => { plane.across = key; redrawMap(); }),
      list("y axis", options, plane.up, (key) => { plane.up = key; redrawMap(); }));
  } else {
    byId("map-controls").hidden = true;
  }
  redraws.push(redrawParallel, redrawMap);
  redrawParallel();
  redrawMap();
}

// The two settings with the most combinations, or the only one. The seed counts only if there is nothing else.
function fullestPlane() {
  const worth = keys.length > 2 ? keys.filter((key) => key !== "seed") : keys;
  let [best, most] = [[worth[0], worth[1] ?? null], 0];
  for (const [place, across] of worth.entries()) {
    for (const up of worth.slice(place + 1)) {
      const pairs = new Set(measured().map((run) => JSON.stringify([run.settings[across], run.settings[up]])));
      const [width, height] = [scaleOf(across).values.length, scaleOf(up).values.length];
      const filled = pairs.size * pairs.size / (width * height);
      if (filled > most) [best, most] = [width >= height ? [across, up] : [up, across], filled];
    }
  }
  return best;
}

function redrawParallel() {
  if (byId("settings").hidden) return;
  const found = measured();
  const results = found.map(resultOf);
  const [least, most] = [Math.min(...results), Math.max(...results)];
  const height = (value) => most > least ? (value - least) / (most - least) : 0.5;
  const axes = keys.map((key) => ({ title: report.keys[key], ...scaleOf(key) }));
  const last = axes.length;
  const ends = [0, 0.25, 0.5, 0.75, 1].map((at) => [at, exact(least + at * (most - least), most - least < 0.01 ? 5 : 3)]);
  const uprights = [...axes, { title: resultName, ticks: most > least ? ends : [[0.5, exact(least)]] }];
  const traces = found.filter((run) => !hidden.has(run)).toReversed().map((run) => ({
    type: "scatter", mode: "lines+markers", name: plain(run.short),
    x: uprights.map((_, place) => place),
    y: [...axes.map((each, place) => each.place(run.settings[keys[place]])), height(resultOf(run))],
    line: { color: runColour(run), dash: DASHES[run.dash], width: 2 },
    marker: { size: 6, color: runColour(run) },
    hovertemplate: `<b>${plain(run.label)}</b><br>` + keys.map((key) => `${plain(report.keys[key])} ${plain(formatValue(run.settings[key]))}`).join("<br>") + `<br>${resultName} ${exact(resultOf(run))}<extra></extra>`,
  }));
  const ticks = uprights.flatMap((each, place) => each.ticks.map(([at, text]) => ({
    x: place, y: at, xanchor: place === last ? "left" : "right", xshift: place === last ? 7 : -7, yanchor: "middle", showarrow: false,
    text: plain(shortened(text, 16)), hovertext: plain(text), font: { size: 11, color: colour("soft") }, bgcolor: colour("card"), opacity: 0.9,
  })));
  const titles = uprights.map((each, place) => ({
    x: place, y: 1, yref: "paper", yanchor: "bottom", yshift: 16, showarrow: false,
    text: plain(shortened(each.title, 18)), hovertext: plain(keys[place] ?? each.title), font: { size: 12.5 },
  }));
  const holder = byId("parallel");
  holder.style.minWidth = `${100 * uprights.length + 60}px`;
  draw("parallel", traces, {
    margin: { l: 12, r: 12, t: 40, b: 12 }, dragmode: false,
    xaxis: { visible: false, range: [-0.55, last + 0.45], fixedrange: true }, yaxis: { visible: false, range: [-0.07, 1.07], fixedrange: true },
    shapes: uprights.map((_, place) => ({ type: "line", x0: place, x1: place, y0: -0.03, y1: 1.03, layer: "below", line: { color: colour("line"), width: 1.5 } })),
    annotations: [...ticks, ...titles],
  });
}

function redrawMap() {
  if (plane.up === null) return redrawScatter();
  byId("map-title").textContent = `${resultName[0].toUpperCase()}${resultName.slice(1)}, by two settings`;
  const [across, up] = [scaleOf(plane.across).values, scaleOf(plane.up).values];
  const cells = up.map((row) => across.map((column) => measured().filter((run) =>
    formatValue(run.settings[plane.up]) === formatValue(row) && formatValue(run.settings[plane.across]) === formatValue(column))));
  const mean = (found) => found.length ? found.reduce((sum, run) => sum + resultOf(run), 0) / found.length : null;
  const z = cells.map((row) => row.map(mean));
  const isDense = across.length * up.length <= (isNarrow() ? 24 : 80) && across.length <= (isNarrow() ? 5 : 12);
  const names = (found) => found.slice(0, 6).map((run) => plain(run.short)).join("<br>") + (found.length > 6 ? `<br>and ${found.length - 6} more` : "");
  byId("map").style.height = `${Math.min(440, 110 + 80 * up.length)}px`;
  draw("map", [{
    type: "heatmap", z, x: across.map((_, place) => place), y: up.map((_, place) => place), xgap: 2, ygap: 2,
    colorscale: "Cividis", reversescale: true, hoverongaps: false,
    text: z.map((row) => row.map((value) => value === null ? "" : exact(value, 3))), texttemplate: isDense ? "%{text}" : undefined,
    customdata: cells.map((row) => row.map((found) => `${found.length > 1 ? `mean of ${found.length} runs<br>` : ""}${names(found)}`)),
    hovertemplate: `${resultName} %{z:.4f}<br>%{customdata}<extra></extra>`,
    colorbar: { thickness: 12, outlinewidth: 0, tickfont: { size: 11.5, color: colour("soft") }, nticks: 6, len: 1 },
  }], {
    dragmode: false,
    xaxis: named(plane.across, across), yaxis: named(plane.up, up), plot_bgcolor: colour("empty"),
  });
  const several = Math.max(...cells.flat().map((found) => found.length));
  const empty = cells.flat().some((found) => !found.length);
  byId("map-note").textContent = [
    several > 1 ? `Each cell is the mean of up to ${several} runs, over their other settings.` : "",
    empty ? "Cells without a run are empty." : "",
  ].filter(Boolean).join(" ");
}

function named(key, values) {
  const every = Math.ceil(values.length / 14);
  const at = values.map((_, place) => place).filter((place) => place % every === 0);
  return axis(key, { tickvals: at, ticktext: at.map((place) => plain(shortened(formatValue(values[place]), isNarrow() ? 12 : 20))), showgrid: false, fixedrange: true });
}

// The results by the only setting that differs.
function redrawScatter() {
  const key = plane.across;
  byId("map-title").textContent = `${resultName[0].toUpperCase()}${resultName.slice(1)} by ${key}`;
  const { values } = scaleOf(key);
  const numbers = values.filter(isNumber);
  const isScale = numbers.length === values.length && values.length > 2;
  const isLog = isScale && numbers[0] > 0 && numbers[numbers.length - 1] / numbers[0] > 20;
  const x = (run) => isScale ? run.settings[key] : values.findIndex((value) => formatValue(value) === formatValue(run.settings[key]));
  draw("map", measured().map((run) => ({
    type: "scatter", mode: "markers", name: plain(run.short), x: [x(run)], y: [resultOf(run)],
    marker: { size: 11, color: runColour(run), line: { color: colour("card"), width: 1 } },
    hovertemplate: `<b>${plain(run.label)}</b><br>${plain(key)} ${plain(formatValue(run.settings[key]))}<br>${resultName} %{y:.4f}<extra></extra>`,
  })), {
    xaxis: isScale ? axis(key, { type: isLog ? "log" : "linear", exponentformat: "power" }) : { ...named(key, values), range: [-0.5, values.length - 0.5] },
    yaxis: axis(resultName, { nticks: 7 }),
  });
}
