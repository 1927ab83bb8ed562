// The commands, provenance and config files that reproduce each run.

function startReproduce() {
  byId("reproductions").append(...runs.map((run) => element("details", { open: runs.length === 1 },
    element("summary", {}, swatch(run), run.name, " ", element("span", { class: "path" }, run.path === run.name ? "" : run.path)),
    ...run.faults.map((fault) => element("p", { class: "notice" }, fault)),
    ...(run.command
      ? [element("p", { class: "note" }, "This command has exactly the settings of the run:"), code(run.command, true)]
      : [element("p", { class: "note" }, "No command is shown, because the settings need plugins or options that are not available here; config.yaml below has them all.")]),
    facts(run),
    element("p", { class: "note" }, "config.yaml:"),
    code(run.config, false))));
}

function facts(run) {
  const known = Object.entries(run.provenance).filter(([, value]) => value !== null && value !== undefined);
  const names = { corpus: "corpus sha256", tokenizer: "tokenizer sha256", identity: "settings sha256", ranks: "world size" };
  return element("dl", {}, ...known.flatMap(([name, value]) => [element("dt", {}, names[name] ?? name), element("dd", {}, formatValue(value))]));
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
    // Browsers may refuse a page opened from a file: select the text instead, to be copied by hand.
    const range = document.createRange();
    range.selectNodeContents(button.previousSibling);
    window.getSelection().removeAllRanges();
    window.getSelection().addRange(range);
    button.textContent = "selected";
  }
  setTimeout(() => { button.textContent = "copy"; }, 1500);
}
