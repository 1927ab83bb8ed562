// A text of tokens: coloured by probability, with the alternatives of the token under the pointer or the focus.

// The shade of a probability: 0 for 1, 0.44 for a tenth, 0.68 for a hundredth.
const surprise = (probability) => 1 - Math.min(1, probability) ** 0.25;
const percent = (share) => share >= 0.9995 ? "100%" : share >= 0.0995 ? `${(100 * share).toFixed(1)}%` : share >= 0.0001 ? `${(100 * share).toFixed(2)}%` : "<0.01%";
const quoted = (piece) => shortened(spell(piece), 24);

let nBoxes = 0;

// Returns { box, clear, add, mark }. `choose` is called with the place of the token that is clicked or entered.
function textBox(label, choose) {
  const name = `text-${nBoxes++}`;
  const box = element("div", { class: "text", id: name, role: "listbox", tabindex: "0", "aria-label": label });
  const tokens = [], made = [];
  let active = -1;

  const activate = (place) => {
    made[active]?.classList.remove("active");
    active = Math.max(0, Math.min(made.length - 1, place));
    const span = made[active];
    if (!span) return;
    span.classList.add("active");
    box.setAttribute("aria-activedescendant", span.id);
    span.scrollIntoView({ block: "nearest" });
    showDetails(tokens[active], span);
  };
  const placeOf = (event) => {
    const span = event.target.closest?.(".token");
    return span ? Number(span.dataset.place) : -1;
  };
  const steps = {
    ArrowLeft: () => active - 1, ArrowRight: () => active + 1, Home: () => 0, End: () => made.length - 1,
    ArrowUp: () => onNextLine(made, active, -1), ArrowDown: () => onNextLine(made, active, 1),
  };
  box.addEventListener("keydown", (event) => {
    if (event.key in steps && made.length) { event.preventDefault(); activate(active < 0 ? 0 : steps[event.key]()); }
    if ((event.key === "Enter" || event.key === " ") && active >= 0) { event.preventDefault(); choose(active); }
    if (event.key === "Escape") hideDetails();
  });
  box.addEventListener("focus", () => {
    if (box.matches(":focus-visible") && made.length) activate(active < 0 ? firstNew(tokens) : active);
  });
  box.addEventListener("blur", () => { made[active]?.classList.remove("active"); hideDetails(); });
  box.addEventListener("pointerover", (event) => {
    if (event.pointerType !== "mouse") return;
    const place = placeOf(event);
    if (place >= 0) showDetails(tokens[place], made[place]); else hideDetails();
  });
  box.addEventListener("pointerleave", (event) => { if (event.pointerType === "mouse") hideDetails(); });
  box.addEventListener("click", (event) => {
    const place = placeOf(event);
    if (place < 0) return;
    activate(place);
    choose(place);
  });

  return {
    box, tokens,
    clear() {
      tokens.length = made.length = 0;
      active = -1;
      box.removeAttribute("aria-activedescendant");
      box.replaceChildren();
    },
    // Tokens that arrive together are laid out once.
    add(some) {
      if (!some.length) return;
      const wasAtEnd = box.scrollHeight - box.scrollTop - box.clientHeight < 40;
      for (const token of some) {
        const span = tokenSpan(token);
        span.id = `${name}-${made.length}`;
        span.dataset.place = made.length;
        span.setAttribute("aria-selected", "false");
        span.setAttribute("role", "option");
        tokens.push(token);
        made.push(span);
      }
      box.append(...made.slice(-some.length));
      if (wasAtEnd) box.scrollTop = box.scrollHeight;
    },
    mark(place) {
      made.forEach((span, each) => span.setAttribute("aria-selected", String(each === place)));
    },
  };
}

function tokenSpan(token) {
  const span = element("span", { class: "token" }, token.text);
  // A token that completes no character, and the start of an empty prompt.
  if (!token.text) span.classList.add("mark");
  if (/^\s*\n/.test(token.text)) span.classList.add("line-end");
  if (token.isPrompt) span.classList.add("prompt");
  else span.style.setProperty("--surprise", surprise(token.probability).toFixed(3));
  return span;
}

const firstNew = (tokens) => Math.max(0, tokens.findIndex((token) => !token.isPrompt));

// The token above or below, nearest to the middle of the active one.
function onNextLine(spans, active, direction) {
  const from = spans[active].getClientRects()[0];
  const middle = from.left + from.width / 2;
  let best = active, distance = Infinity, line = null;
  for (let place = active + direction; place >= 0 && place < spans.length; place += direction) {
    const box = spans[place].getClientRects()[0];
    if (!box || (box.top - from.top) * direction < 2) continue;
    line ??= box.top;
    if (Math.abs(box.top - line) > 2) break;
    const away = Math.abs(box.left + box.width / 2 - middle);
    if (away < distance) { best = place; distance = away; }
  }
  return best;
}

function showDetails(token, span) {
  const details = byId("details");
  const title = element("p", { class: "title" }, element("code", {}, quoted(token.piece)), element("span", {}, `token ${token.id}`));
  if (token.isPrompt) {
    details.replaceChildren(title, element("p", {}, "part of the prompt"));
  } else {
    const listed = token.alternatives.slice(0, isNarrow() ? 6 : token.alternatives.length);
    const largest = Math.max(...listed.map((each) => each.probability));
    const others = listed.map((each) => bar(each, largest, each.id === token.id));
    const isListed = listed.some((each) => each.id === token.id);
    if (!isListed) others.push(element("div", { class: "gap", "aria-hidden": "true" }, "⋮"), bar(token, largest, true));
    details.replaceChildren(title, element("p", {}, `probability ${percent(token.probability)}`), element("div", { class: "bars" }, ...others));
  }
  details.hidden = false;
  if (isNarrow()) { details.style.left = details.style.top = ""; return; }
  const around = [...span.getClientRects()].at(-1) ?? span.getBoundingClientRect();
  const left = Math.min(around.left, document.documentElement.clientWidth - details.offsetWidth - 10);
  const isBelow = around.bottom + details.offsetHeight + 10 < window.innerHeight || around.top < details.offsetHeight + 10;
  details.style.left = `${Math.max(10, left)}px`;
  details.style.top = `${isBelow ? around.bottom + 6 : around.top - details.offsetHeight - 6}px`;
}

function hideDetails() {
  byId("details").hidden = true;
}

// A probability, with a bar relative to the largest.
function bar(each, largest, isWritten) {
  const fill = element("i", {});
  fill.style.setProperty("--share", (each.probability / largest).toFixed(4));
  return element("div", { class: isWritten ? "bar written" : "bar" },
    element("code", {}, quoted(each.piece)), element("span", { class: "track" }, fill), element("span", {}, percent(each.probability)));
}

function startDetails() {
  document.addEventListener("pointerdown", (event) => {
    if (!event.target.closest?.(".token, #details")) hideDetails();
  });
  window.addEventListener("scroll", () => { if (!isNarrow()) hideDetails(); }, { passive: true });
}
