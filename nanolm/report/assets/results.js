// The table: what differs between the runs and what came of it, the best first.

const sorting = { column: null, falling: false };

function columns() {
  const known = (name) => runs.some((run) => isNumber(run.figures[name]));
  const figure = (name, title, words, why) => known(name) ? [{ title, why, of: (run) => run.figures[name], words }] : [];
  const loss = figure("best_val_loss", "best val loss", exact, "nats per token, every validation token scored once");
  const bits = figure("bits_per_byte", "bits/byte", exact, "at the best val loss");
  return [
    { title: "run", of: (run) => run.label, isWords: true },
    ...(report.by_bits ? bits : loss),
    ...keys.map((key) => ({
      title: report.keys[key], why: key, of: (run) => run.settings[key], words: (value) => shortened(worded(value), 28),
      full: worded, isWords: runs.some((run) => !isNumber(run.settings[key]) && run.settings[key] !== null),
    })),
    ...(report.by_bits ? [] : bits),
    ...(!report.by_bits && runs.some((run) => run.figures.final_val_loss !== run.figures.best_val_loss) ? figure("final_val_loss", "final val loss", exact, "nats per token") : []),
    ...figure("best_step", "best at step", whole),
    ...figure("parameters", "parameters", whole),
    ...figure("tokens", "tokens", brief, "trained on, repeated ones counted again"),
    ...figure("flops", "FLOPs", brief, "of training, by formula"),
    ...figure("seconds", "time", duration),
    ...figure("tokens_per_second", "tokens/s", whole),
    { title: "state", of: (run) => run.status, isWords: true, words: worded, isBad: (run) => !["completed", "running", "pruned"].includes(run.status) },
  ];
}

function startResults() {
  const table = byId("table");
  const all = columns();
  const best = runs.length > 1 && isNumber(resultOf(runs[0])) && runs[0].compares ? runs[0] : null;
  const redraw = () => {
    const rows = [...runs];
    const column = sorting.column;
    if (column) rows.sort((one, other) => compare(column.of(one), column.of(other), sorting.falling));
    const heads = all.map((each) => element("th", {
      scope: "col", class: each.isWords ? "words" : null, title: each.why,
      "aria-sort": each === column ? (sorting.falling ? "descending" : "ascending") : null,
    }, element("button", {
      type: "button",
      onclick: () => { sorting.falling = column === each && !sorting.falling; sorting.column = each; redraw(); },
    }, each.title)));
    table.replaceChildren(
      element("thead", {}, element("tr", {}, ...heads)),
      element("tbody", {}, ...rows.map((run) => element("tr", { class: run === best ? "best" : null }, ...all.map((each) => cell(run, each))))));
  };
  redraw();
  const many = runs.length > 1;
  byId("results-note").textContent = [
    many && best ? `Best first, by ${resultName}.` : "",
    many && !keys.length ? "No setting that changes the numbers differs between these runs." : "",
    runs.some((run) => !run.compares) ? "† does not compare with the others." : "",
    "A tap on a heading sorts by it.",
  ].filter(Boolean).join(" ");
  const counted = runs.length === 1 ? `One run: ${runs[0].label}` : `${runs.length} runs`;
  byId("summary").textContent = isNumber(resultOf(runs[0]))
    ? runs.length > 1 && !best ? `${counted}, none of which is the best: they do not compare.` : `${counted}. ${runs.length > 1 ? `The best is ${runs[0].label}, at` : "Its best is"} ${exact(resultOf(runs[0]))} ${report.by_bits ? "bits per byte" : "nats per token"} on validation text.`
    : `${counted}. None has a validation loss yet.`;
  byId("notes").hidden = !report.notes.length;
  byId("notes").append(...report.notes.map((note) => element("p", {}, note)));
  document.title = runs.length === 1 ? `nanolm report: ${runs[0].name}` : `nanolm report: ${runs.length} runs`;
  byId("made").textContent = `Made by ${report.made}, from the run directories alone. This file asks for nothing from any network.`;
}

function cell(run, column) {
  const value = column.of(run);
  if (column.title === "run") {
    return element("td", { title: `${run.name}\n${run.path}` }, swatch(run), element("span", { class: "name" }, run.short), run.compares ? "" : " †");
  }
  const kinds = [column.isWords ? "words" : "", column.isBad?.(run) ? "bad" : "", value === null || value === undefined ? "none" : ""];
  return element("td", { class: kinds.filter(Boolean).join(" ") || null, title: column.full ? column.full(value) : run.faults.join("; ") || null }, column.words(value));
}

// Numbers before words, and what is not known last, whichever way it is sorted.
function compare(one, other, falling) {
  const isNone = (value) => value === null || value === undefined;
  if (isNone(one) || isNone(other)) return isNone(one) - isNone(other);
  const order = isNumber(one) && isNumber(other) ? one - other : worded(one).localeCompare(worded(other), "en", { numeric: true });
  return falling ? -order : order;
}
