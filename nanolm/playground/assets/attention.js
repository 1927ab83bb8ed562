// What the model attends to at a chosen token: a strip per layer and head, and the text shaded by one of them.

const MAX_STRIP = 48;
const N_LARGEST = 6;

// Weights of all heads have the same shades; small ones would be invisible on a linear scale.
const shade = Math.sqrt;

// Returns { panel, clear, show }. `context` gives the tokens and their numbers, as described in writing.js.
function attentionPanel(run, context) {
  const title = element("h3", {});
  const controls = element("div", { class: "controls" });
  const heads = element("div", { class: "heads", role: "group", "aria-label": "layers and heads" });
  const scroll = element("div", { class: "scroll" }, heads);
  const text = element("div", { class: "text attended", tabindex: "0", "aria-label": "attention by token" });
  const note = element("p", { class: "note" });
  const panel = element("div", { class: "attention", hidden: true }, title, controls, scroll, note, text);
  let chosen = null, found = null, mode = "predict", head = null, latest = 0;

  const mean = (each) => each[0].map((_, key) => each.reduce((sum, row) => sum + row[key], 0) / each.length);
  const weights = () => head === null ? mean(found.weights.flat()) : found.weights[head.layer][head.number];

  async function load() {
    const number = ++latest;
    const position = context().tokens[chosen].position;
    const isPredicted = mode === "predict" && position > 0;
    const length = position + (isPredicted ? 0 : 1);
    const { ids, first } = context();
    try {
      const answer = await ask("attention", { run: run.number, tokens: ids.slice(0, length - first), length });
      if (number !== latest) return;
      found = { ...answer, length };
      drawHeads();
      drawText();
    } catch (error) {
      if (number !== latest) return;
      note.replaceChildren(...(error.errors ?? [{ found: String(error) }]).map(describedError));
    }
  }

  function drawControls() {
    title.replaceChildren("Attention at ", element("code", {}, quoted(context().tokens[chosen].piece)));
    controls.replaceChildren(
      choice("query", [["predict", "to predict it"], ["read", "after reading it"]], mode, (value) => { mode = value; load(); }),
      element("button", { type: "button", class: "mean", "aria-pressed": String(head === null), onclick: () => { head = null; redraw(); } }, "mean of all heads"));
  }

  function drawHeads() {
    const nHeads = Math.max(...found.weights.map((layer) => layer.length));
    heads.style.setProperty("--heads", nHeads);
    const isChosen = (layer, number) => head !== null && head.layer === layer && head.number === number;
    const cells = found.weights.flatMap((rows, layer) => [
      element("span", { class: "label" }, `layer ${layer}`),
      ...Array.from({ length: nHeads }, (_, number) => number < rows.length ? element("button", {
        type: "button", "aria-pressed": String(isChosen(layer, number)), "aria-label": `layer ${layer}, head ${number}`,
        title: `layer ${layer}, head ${number}`, onclick: () => { head = { layer, number }; redraw(layer, number); },
      }, strip(rows[number])) : element("span", {})),
    ]);
    heads.replaceChildren(...cells);
  }

  function drawText() {
    const { tokens } = context();
    const row = weights().slice(-found.length);
    const shown = tokens.map((token, place) => ({ token, place })).filter(({ token }) => token.position >= found.start && token.position < found.length);
    const share = (token) => row[token.position - found.start] / 1000;
    text.replaceChildren(...shown.map(({ token }) => {
      const span = element("span", { class: "token", title: `${spell(token.piece)}: ${percent(share(token))}` }, token.text);
      if (!token.text) span.classList.add("mark");
      if (/^\s*\n/.test(token.text)) span.classList.add("line-end");
      if (token.position === found.length - 1) span.classList.add("query");
      span.style.setProperty("--weight", shade(share(token)).toFixed(3));
      return span;
    }));
    text.scrollTop = text.scrollHeight;
    const best = shown.map(({ token }) => token).sort((one, other) => share(other) - share(one)).slice(0, N_LARGEST).filter((token) => share(token) > 0);
    const where = head === null ? "Mean of all heads" : `Layer ${head.layer}, head ${head.number}`;
    note.replaceChildren(`${where}: `, ...best.flatMap((token, place) => [
      place ? ", " : "", element("code", {}, quoted(token.piece)), ` ${percent(share(token))}`]), ".");
  }

  function redraw(layer, number) {
    drawControls();
    drawHeads();
    drawText();
    if (layer !== undefined) heads.querySelector(`[aria-label="layer ${layer}, head ${number}"]`)?.focus();
  }

  redraws.push(() => { if (found) drawHeads(); });
  return {
    panel,
    clear() { latest++; found = chosen = null; panel.hidden = true; },
    show(place) {
      chosen = place;
      panel.hidden = false;
      drawControls();
      load();
    },
  };
}

// A row of attention weights, one pixel per token, or the largest of several.
function strip(row) {
  const size = Math.min(row.length, MAX_STRIP);
  const canvas = element("canvas", { width: size, height: 1, "aria-hidden": "true" });
  const picture = canvas.getContext("2d");
  const [low, high] = [channels(colour("low")), channels(colour("high"))];
  const pixels = picture.createImageData(size, 1);
  for (let place = 0; place < size; place++) {
    const part = row.slice(Math.floor(place * row.length / size), Math.max(1, Math.floor((place + 1) * row.length / size)));
    const value = shade(Math.max(...part) / 1000);
    pixels.data.set([...low.map((from, channel) => from + (high[channel] - from) * value), 255], 4 * place);
  }
  picture.putImageData(pixels, 0, 0);
  return canvas;
}
