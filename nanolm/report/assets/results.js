// The table of settings that differ and of results, best run first.

const sorting = { column: null, descending: false };

function columns() {
  const known = (name) => runs.some((run) => isNumber(run.figures[name]));
  const figure = (name, title, format, help) => known(name) ? [{
    title, help, of: (run) => run.figures[name], format,
    // An estimate over a part of the validation split (trainer.val_tokens).
    signOf: (run) => run.estimated.includes(name) ? "\u2248" : "",
  }] : [];
  const estimates = "\u2248 estimate over a part of the split (trainer.val_tokens)";
  const judged = figure(report.judged_metric, resultName, exact, `${resultUnit}, every token of the split scored once; ${estimates}`);
  // The best and the final validation loss are shown where they differ from the one at the shared step.
  const differs = (name) => runs.some((run) => run.figures[name] !== run.figures.val_loss);
  const other = (name, title) => figure(name, title, exact, `nats per token; ${estimates}`);
  return [
    { title: "run", of: (run) => run.label, isText: true },
    ...judged,
    ...keys.map((key) => ({
      title: report.keys[key], help: key, of: (run) => run.settings[key], format: (value) => shortened(formatValue(value), 28),
      full: formatValue, isText: runs.some((run) => !isNumber(run.settings[key]) && run.settings[key] !== null),
    })),
    ...(report.by_bits ? [] : figure(report.is_tested ? "test_bits_per_byte" : "bits_per_byte", "bits/byte", exact, "of the same loss")),
    ...(report.by_bits ? [] : [
      ...(report.is_tested ? other("val_loss", "val loss") : other("test_loss", "test loss")),
      ...(differs("best_val_loss") ? other("best_val_loss", "best val loss") : []),
      ...(differs("final_val_loss") ? other("final_val_loss", "final val loss") : []),
    ]),
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
  byId("summary").textContent = headline(best);
  byId("notes").hidden = !report.notes.length;
  byId("notes").append(...report.notes.map((note) => element("p", {}, note)));
  document.title = runs.length === 1 ? `nanolm report: ${runs[0].name}` : `nanolm report: ${runs.length} runs`;
  byId("made").textContent = `Made by ${report.made}, from the run directories. This file makes no network requests.`;
}

// The best row of seeds, as nanolm compare ranks rows; where no row has several seeds, the best run.
function headline(best) {
  const counted = runs.length === 1 ? `One run: ${runs[0].label}` : `${runs.length} runs`;
  const text = `${resultUnit} on the ${report.is_tested ? "test" : "validation"} text (${resultName})`;
  if (!isNumber(resultOf(runs[0]))) {
    return `${counted}, ${runs.some((run) => isNumber(run.figures.best_val_loss)) ? "none of which is judged: they did not finish" : "without a validation loss yet"}.`;
  }
  if (runs.length === 1) return `${counted}. Its result is ${exact(resultOf(runs[0]))} ${text}.`;
  const row = report.rows.find((each) => each.verdict === "best");
  if (report.rows.some((each) => each.runs.length > 1) && row) {
    const spread = isNumber(row.interval) ? ` ± ${exact(row.interval)}` : "";
    const seeds = row.runs.length > 1 ? `, the mean of ${row.runs.length} runs` : "";
    return report.rows.length === 1
      ? `${counted}. Their mean is ${exact(row.mean)}${spread} ${text}.`
      : `${counted}. The best setting is ${row.label} with ${exact(row.mean)}${spread} ${text}${seeds}.`;
  }
  return best ? `${counted}. The best is ${best.label} with ${exact(resultOf(best))} ${text}.` : `${counted}. None is the best: they are not comparable.`;
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
