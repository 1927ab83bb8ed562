// Functions to build elements and to format values.

const byId = (id) => document.getElementById(id);

function shortened(text, longest) {
  if (text.length <= longest) return text;
  const end = Math.floor((longest - 1) * 0.6);
  return text.slice(0, longest - 1 - end) + "…" + text.slice(-end);
}

// An element. Strings become text nodes: names and samples of runs are never parsed as markup.
function element(kind, attributes = {}, ...children) {
  const made = document.createElement(kind);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value === true) made.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child !== null));
  return made;
}

// A choice between a few options, as buttons.
function choice(label, options, chosen, change) {
  const buttons = options.map(([value, text, disabledBecause]) =>
    element("button", {
      type: "button", value, disabled: Boolean(disabledBecause), title: disabledBecause, "aria-pressed": String(value === chosen),
      onclick: (event) => {
        for (const button of buttons) button.setAttribute("aria-pressed", String(button === event.currentTarget));
        change(value);
      },
    }, text));
  return element("div", { class: "field" }, label, element("div", { class: "switch", role: "group", "aria-label": label }, ...buttons));
}

// A choice between many options, as a dropdown.
function list(label, options, chosen, change) {
  const made = element("select", { "aria-label": label, onchange: (event) => change(event.target.value) },
    ...options.map(([value, text]) => element("option", { value, selected: String(value) === String(chosen) }, text)));
  return element("label", { class: "field" }, label, made);
}

function slider(label, from, to, step, value, format, change) {
  const text = element("span", {}, `${label}: ${format(value)}`);
  const made = element("input", {
    type: "range", min: from, max: to, step, value, "aria-label": label,
    oninput: (event) => {
      text.textContent = `${label}: ${format(Number(event.target.value))}`;
      change(Number(event.target.value));
    },
  });
  return element("label", { class: "field" }, text, made);
}

const isNumber = (value) => typeof value === "number" && Number.isFinite(value);
const whole = (value) => isNumber(value) ? Math.round(value).toLocaleString("en-US") : "–";
const exact = (value, digits = 4) => isNumber(value) ? value.toFixed(digits) : "–";

// A large count as 1.2 M or 3.4 T.
function brief(value) {
  if (!isNumber(value)) return "–";
  for (const [size, letter] of [[1e24, "Y"], [1e21, "Z"], [1e18, "E"], [1e15, "P"], [1e12, "T"], [1e9, "G"], [1e6, "M"], [1e4, "k"]]) {
    if (value >= size) return `${(value / (size === 1e4 ? 1e3 : size)).toPrecision(3)} ${letter}`;
  }
  return value.toLocaleString("en-US", { maximumFractionDigits: 1 });
}

function duration(seconds) {
  if (!isNumber(seconds)) return "–";
  if (seconds < 120) return `${seconds.toFixed(seconds < 10 ? 1 : 0)} s`;
  if (seconds < 7200) return `${(seconds / 60).toFixed(0)} min`;
  return `${(seconds / 3600).toFixed(1)} h`;
}

// The text of a token with visible spaces.
const SPACES = { " ": "␣", "\n": "⏎", "\t": "⇥", "\r": "↵" };
const spell = (token) => token.replace(/[ \n\t\r]/g, (letter) => SPACES[letter]) || "∅";

// The red, green and blue of a colour such as #08306b.
const channels = (hex) => [1, 3, 5].map((place) => parseInt(hex.slice(place, place + 2), 16));
