// The prompt, the settings, and the buttons.

const LARGEST_SEED = Number.MAX_SAFE_INTEGER;
const COUNTS = [10, 20, 50, 100, 200, 300, 500, 1000, 2000, 5000];
const TOP_K = [1, 2, 3, 5, 10, 20, 50, 100, 200, 500, 1000, null];

const settings = { temperature: 1, top_k: null, top_p: 1, min_p: 0, repetition_penalty: 1, max_new_tokens: 200 };

function startControls(runs, write, stop) {
  const set = (name) => (value) => { settings[name] = value; };
  const largest = Math.max(...runs.map((run) => run.vocab_size));
  const topK = TOP_K.filter((value) => value === null || value < largest);
  const places = (label, values, name, format) => slider(
    label, 0, values.length - 1, 1, values.indexOf(settings[name]), (place) => format(values[place]), (place) => { settings[name] = values[place]; });
  byId("sliders").append(
    slider("temperature", 0, 2, 0.05, settings.temperature, (value) => value ? exact(value, 2) : "0 (greedy)", set("temperature")),
    places("top-k", topK, "top_k", (value) => value ?? "all"),
    slider("top-p", 0.01, 1, 0.01, settings.top_p, (value) => value < 1 ? exact(value, 2) : "all", set("top_p")),
    slider("min-p", 0, 0.5, 0.01, settings.min_p, (value) => value ? exact(value, 2) : "off", set("min_p")),
    slider("repetition penalty", 1, 2, 0.05, settings.repetition_penalty, (value) => value > 1 ? exact(value, 2) : "off", set("repetition_penalty")),
    places("tokens", COUNTS, "max_new_tokens", whole),
    seedField(write));
  byId("prompt").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); write(); }
  });
  byId("write").addEventListener("click", write);
  byId("stop").addEventListener("click", stop);
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && byId("details").hidden) stop();
  });
  const canType = window.matchMedia("(hover: hover)").matches;
  byId("shortcut").textContent = canType ? "Ctrl+Enter writes, Esc stops" : "";
}

function seedField(write) {
  const field = element("input", { type: "text", id: "seed", inputmode: "numeric", value: "0", autocomplete: "off", "aria-label": "seed" });
  const next = element("button", {
    type: "button", title: "write with another seed", "aria-label": "new seed",
    onclick: () => { field.value = String(Math.floor(Math.random() * 1e6)); write(); },
  }, "new");
  return element("div", { class: "field seed" }, element("label", { for: "seed" }, "seed"), element("div", {}, field, next));
}

// The settings of a request; the seed is checked here, because numbers of JavaScript would round it.
function currentSettings() {
  const text = byId("seed").value.trim();
  if (!/^\d+$/.test(text) || Number(text) > LARGEST_SEED) {
    throw new ShownError([{ found: `seed is ${JSON.stringify(shortened(text, 40))}`, hint: `a whole number from 0 to ${LARGEST_SEED}` }]);
  }
  return { ...settings, seed: Number(text) };
}

// Errors as the server describes them.
class ShownError extends Error {
  constructor(errors) {
    super(errors.map((each) => each.found).join("; "));
    this.errors = errors;
  }
}

function showProblem(error) {
  byId("problem").hidden = error === null;
  byId("problem").replaceChildren(...(error?.errors ?? []).map(describedError));
}

const describedError = (error) =>
  element("p", {}, element("strong", {}, error.found), error.hint ? ` (${error.hint})` : "");

function showIsWriting(isWriting) {
  byId("stop").disabled = !isWriting;
  document.body.classList.toggle("writing", isWriting);
}
