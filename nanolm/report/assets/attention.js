// The attention weights of each head, and the mask of its layer.

const selected = { run: 0, text: 0, layer: 0, head: 0 };

function startAttention() {
  const byReason = new Map();
  for (const each of report.without_maps) byReason.set(each.reason, [...(byReason.get(each.reason) ?? []), shortOf(each.run)]);
  const reasons = [...byReason].map(([reason, names]) => `${names.join(", ")} (${reason})`);
  if (!report.maps.length && !reasons.length) return;
  byId("attention").hidden = false;
  byId("attention-note").textContent = reasons.length ? `No attention map: ${reasons.join("; ")}.` : "";
  if (!report.maps.length) {
    for (const id of ["attention-controls", "attention-text", "heads"]) byId(id).hidden = true;
    byId("weights").closest(".columns").hidden = true;
    return;
  }
  redraws.push(redrawAttention);
  chooseMap();
}

function chooseMap() {
  const maps = report.maps[selected.run];
  selected.text = Math.min(selected.text, maps.texts.length - 1);
  selected.layer = Math.min(selected.layer, maps.texts[selected.text].layers.length - 1);
  selected.head = Math.min(selected.head, layerMap().heads.length - 1);
  const change = (name) => (value) => { selected[name] = Number(value); chooseMap(); };
  const numbered = (found, label) => found.map((each, place) => [place, label(each, place)]);
  const layers = maps.texts[selected.text].layers;
  byId("attention-controls").replaceChildren(
    list("run", numbered(report.maps, (each) => shortOf(each.run)), selected.run, change("run")),
    list("text", numbered(maps.texts, (each) => shortened(each.text.replace(/\s+/g, " "), 30)), selected.text, change("text")),
    list("layer", numbered(layers, (each) => `${each.layer} (${each.mask})`), selected.layer, change("layer")));
  redrawAttention();
}

const textMap = () => report.maps[selected.run].texts[selected.text];
const layerMap = () => textMap().layers[selected.layer];

function redrawAttention() {
  const layer = layerMap();
  byId("heads").replaceChildren(...layer.heads.map((weights, head) => element("button", {
    type: "button", "aria-pressed": String(head === selected.head),
    onclick: () => { selected.head = head; redrawAttention(); },
  }, thumbnail(weights, layer.visible), `head ${head}`)));
  const text = textMap();
  byId("attention-text").textContent = `Checkpoint of step ${whole(text.step)}, the first ${text.tokens.length} tokens of the text` +
    `${text.n_left_out ? ` (${whole(text.n_left_out)} more are not shown)` : ""}. Rows are queries and columns are keys; the weights of each row sum to 1. ` +
    "␣ is a space, ⏎ a newline.";
  byId("weights-title").textContent = `Layer ${layer.layer}, head ${selected.head}: attention weights`;
  byId("mask-title").textContent = `Layer ${layer.layer}: mask ${layer.mask}`;
  const isVisible = (query, key) => layer.visible[query][key];
  const z = layer.heads[selected.head].map((row, query) => row.map((value, key) => isVisible(query, key) ? value / 1000 : null));
  grid("weights", z, 1, [[0, colour("low")], [1, colour("high")]], "%{z:.3f}", true);
  grid("mask", layer.visible, 1, [[0, colour("empty")], [0.5, colour("empty")], [0.5, colour("accent")], [1, colour("accent")]], "%{customdata}", false);
}

function grid(id, z, highest, colorscale, format, hasBar) {
  const tokens = textMap().tokens.map(spell);
  const places = tokens.map((_, place) => place);
  const fits = isNarrow() ? 20 : 32;
  const every = Math.ceil(tokens.length / fits);
  const at = places.filter((place) => place % every === 0);
  const isLong = tokens.some((token) => [...token].length > 2);
  const ticks = { tickvals: at, ticktext: at.map((place) => plain(shortened(tokens[place], 10))), showgrid: false, ticks: "", fixedrange: true,
    tickfont: { family: "ui-monospace, Menlo, Consolas, DejaVu Sans Mono, monospace", size: tokens.length > 24 ? 10.5 : 12, color: colour("soft") } };
  const customdata = z.map((row, query) => row.map((value, key) => (value ? "visible" : "masked")));
  const numbers = places.map((place) => `${plain(tokens[place])} (${place})`);
  draw(id, [{
    type: "heatmap", z, x: places, y: places, zmin: 0, zmax: highest, colorscale, showscale: hasBar && !isNarrow(), hoverongaps: false, customdata,
    text: places.map((query) => places.map((key) => `${numbers[query]} → ${numbers[key]}`)), hovertemplate: `%{text}<br>${format}<extra></extra>`,
    xgap: tokens.length > 24 ? 0.5 : 1, ygap: tokens.length > 24 ? 0.5 : 1,
    colorbar: { thickness: 10, outlinewidth: 0, tickvals: [0, 0.25, 0.5, 0.75, 1], tickfont: { size: 11, color: colour("soft") }, len: 1, x: 1.01 },
  }], {
    dragmode: false, plot_bgcolor: colour("empty"), margin: { l: 40, r: hasBar && !isNarrow() ? 44 : 12, t: 8, b: 40 },
    xaxis: axis("key", { ...ticks, tickangle: isLong ? -90 : 0, constrain: "domain" }),
    yaxis: axis("query", { ...ticks, autorange: "reversed", scaleanchor: "x", constrain: "domain" }),
  });
}

// A thumbnail of a head, one pixel per pair of tokens.
function thumbnail(weights, visible) {
  const size = weights.length;
  const canvas = element("canvas", { width: size, height: size, "aria-hidden": "true" });
  const picture = canvas.getContext("2d");
  const [low, high, empty] = [channels(colour("low")), channels(colour("high")), channels(colour("empty"))];
  const pixels = picture.createImageData(size, size);
  weights.flat().forEach((value, place) => {
    const isVisible = visible[Math.floor(place / size)][place % size];
    const shade = isVisible ? low.map((from, channel) => from + (high[channel] - from) * value / 1000) : empty;
    pixels.data.set([...shade, 255], 4 * place);
  });
  picture.putImageData(pixels, 0, 0);
  return canvas;
}
