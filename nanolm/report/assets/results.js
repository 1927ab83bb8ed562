// The table of settings that differ and of results, best run first.

const sorting = { column: null, descending: false };

function columns() {
  const known = (name) => runs.some((run) => isNumber(run.figures[name]));
  const figure = (name, title, format, help) => known(name) ? [{
    title, help, of: (run) => run.figures[name], format,
    // An estimate over a part of the validation split (trainer.val_tokens).
    signOf: (run) => run.estimated.includes(name) ? "\u2248" : "",
  }] : [];
  const loss = figure("best_val_loss", "best val loss", exact, "nats per token, every validation token scored once; \u2248 estimate over a part of them (trainer.val_tokens)");
  const bits = figure("bits_per_byte", "bits/byte", exact, "at the best validation loss");
  return [
    { title: "run", of: (run) => run.label, isText: true },
    ...(report.by_bits ? bits : loss),
    ...keys.map((key) => ({
      title: report.keys[key], help: key, of: (run) => run.settings[key], format: (value) => shortened(formatValue(value), 28),
      full: formatValue, isText: runs.some((run) => !isNumber(run.settings[key]) && run.settings[key] !== null),
    })),
    ...(report.by_bits ? [] : bits),
    ...(!report.by_bits && runs.some((run) => run.figures.final_val_loss !== run.figures.best_val_loss) ? figure("final_val_loss", "final val loss", exact, "nats per token") : []),
    ...figure("best_step", "best at step", whole),
    ...figure("parameters", "parameters", whole),
    ...figure("trained_parameters", "trained", whole, "parameters of low-rank adapters"),
    ...figure("tokens", "tokens", brief, "seen in training, with repetitions"),
    ...figure("flops", "FLOPs", brief, "training FLOPs, by formula"),
    ...figure("seconds", "time", duration),
    ...figure("tokens_per_second", "tokens/s", whole),
    { title: "status", of: (run) => run.status, isText: true, format: formatValue, isBad: (run) => !["completed", "stopped_early", "running", "pruned"].includes(run.status) },
  ];
}

function startResults() {
  const table = byId("table");
  const all = columns();
  const best = runs.length > 1 && isNumber(resultOf(runs[0])) && runs[0].compares ? runs[0] : null;
  const redraw = () => {
    const rows = [...runs];
    const column = sorting.column;
    if (column) rows.sort((one, other) => compare(column.of(one), column.of(other), sorting.descending));
    const heads = all.map((each) => element("th", {
      scope: "col", class: each.isText ? "text" : null, title: each.help,
      "aria-sort": each === column ? (sorting.descending ? "descending" : "ascending") : null,
    }, element("button", {
      type: "button",
      onclick: () => { sorting.descending = column === each && !sorting.descending; sorting.column = each; redraw(); },
    }, each.title)));
    table.replaceChildren(
      element("thead", {}, element("tr", {}, ...heads)),
      element("tbody", {}, ...rows.map((run) => element("tr", { class: run === best ? "best" : null }, ...all.map((each) => cell(run, each))))));
  };
  redraw();
  const many = runs.length > 1;
  byId("results-note").textContent = [
    many && best ? `Best first, by ${resultName}.` : "",
    many && !keys.length ? "The runs do not differ in any setting that affects the results." : "",
    runs.some((run) => !run.compares) ? "† not comparable with the others." : "",
    runs.some((run) => run.estimated.length) ? "\u2248 estimate over a part of the validation split (trainer.val_tokens), like the validation curve before its last point." : "",
    "Click a heading to sort.",
  ].filter(Boolean).join(" ");
  const counted = runs.length === 1 ? `One run: ${runs[0].label}` : `${runs.length} runs`;
  byId("summary").textContent = isNumber(resultOf(runs[0]))
    ? runs.length > 1 && !best ? `${counted}. None is the best: they are not comparable.` : `${counted}. ${runs.length > 1 ? `The best is ${runs[0].label} with` : "Its best result is"} ${exact(resultOf(runs[0]))} ${report.by_bits ? "bits per byte" : "nats per token"} on the validation text.`
    : `${counted}, without a validation loss yet.`;
  byId("notes").hidden = !report.notes.length;
  byId("notes").append(...report.notes.map((note) => element("p", {}, note)));
  document.title = runs.length === 1 ? `nanolm report: ${runs[0].name}` : `nanolm report: ${runs.length} runs`;
  byId("made").textContent = `Made by ${report.made}, from the run directories. This file makes no network requests.`;
}

function cell(run, column) {
  const value = column.of(run);
  if (column.title === "run") {
    return element("td", { title: `${run.name}\n${run.path}` }, swatch(run), element("span", { class: "name" }, run.short), run.compares ? "" : " †");
  }
  const kinds = [column.isText ? "text" : "", column.isBad?.(run) ? "bad" : "", value === null || value === undefined ? "none" : ""];
  return element("td", { class: kinds.filter(Boolean).join(" ") || null, title: column.full ? column.full(value) : run.faults.join("; ") || null }, (column.signOf?.(run) ?? "") + column.format(value));
}

// Numbers before strings; missing values last in both directions.
function compare(one, other, descending) {
  const isNone = (value) => value === null || value === undefined;
  if (isNone(one) || isNone(other)) return isNone(one) - isNone(other);
  const order = isNumber(one) && isNumber(other) ? one - other : formatValue(one).localeCompare(formatValue(other), "en", { numeric: true });
  return descending ? -order : order;
}
