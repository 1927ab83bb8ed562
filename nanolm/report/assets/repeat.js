// What a reader needs to make each run again.

function startRepeat() {
  byId("repeats").append(...runs.map((run) => element("details", { open: runs.length === 1 },
    element("summary", {}, swatch(run), run.name, " ", element("span", { class: "path" }, run.path === run.name ? "" : run.path)),
    ...run.faults.map((fault) => element("p", { class: "notice" }, fault)),
    ...(run.command
      ? [element("p", { class: "note" }, "This line composes to the very settings of the run:"), code(run.command, true)]
      : [element("p", { class: "note" }, "No line was found that composes to these settings without the modules of its plugins; config.yaml below has them all.")]),
    facts(run),
    element("p", { class: "note" }, "config.yaml, as it was saved:"),
    code(run.config, false))));
}

function facts(run) {
  const known = Object.entries(run.provenance).filter(([, value]) => value !== null && value !== undefined);
  const names = { corpus: "corpus sha256", tokenizer: "tokenizer sha256", identity: "settings sha256", ranks: "processes" };
  return element("dl", {}, ...known.flatMap(([name, value]) => [element("dt", {}, names[name] ?? name), element("dd", {}, worded(value))]));
}

function code(text, wraps) {
  const button = element("button", { type: "button", onclick: () => copy(text, button) }, "copy");
  return element("div", { class: wraps ? "code wrap" : "code" }, element("pre", {}, text), button);
}

async function copy(text, button) {
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "copied";
  } catch {
    // A page opened from a file may be refused: then the text is marked, to be copied by hand.
    const range = document.createRange();
    range.selectNodeContents(button.previousSibling);
    window.getSelection().removeAllRanges();
    window.getSelection().addRange(range);
    button.textContent = "marked";
  }
  setTimeout(() => { button.textContent = "copy"; }, 1500);
}
