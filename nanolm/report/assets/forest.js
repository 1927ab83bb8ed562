// The differences of rows of seeds to the best row, with the intervals and tests of nanolm compare.

function startForest() {
  const tested = report.rows.filter((row) => row.difference);
  byId("differences").hidden = !tested.length;
  if (!tested.length) return;
  const best = report.rows.find((row) => row.verdict === "best");
  byId("forest").style.height = `${90 + 26 * tested.length}px`;
  byId("forest-note").textContent = `Mean difference of ${report.judged} to ${best.label}, with its 95% confidence interval; filled: different (corrected p < 0.05).`;
  byId("tests").append(...report.tests.map((text) => element("p", { class: "note" }, text)));
  redraws.push(() => drawForest(tested));
  drawForest(tested);
}

function drawForest(tested) {
  const names = tested.map((row) => plain(shortened(row.label, report.max_label_length)));
  draw("forest", [{
    type: "scatter", mode: "markers", x: tested.map((row) => row.difference.effect), y: names,
    error_x: { type: "data", array: tested.map((row) => row.difference.interval), color: colour("soft"), thickness: 1.5, width: 4 },
    marker: { size: 9, color: tested.map((row) => row.verdict === "different" ? colour("accent") : colour("card")), line: { width: 2, color: colour("accent") } },
    text: tested.map((row) => `${plain(row.label)}<br>${exact(row.difference.effect)} ± ${exact(row.difference.interval)}<br>p = ${row.p_value.toPrecision(2)}, ${row.difference.n_seeds} seeds`),
    hovertemplate: "%{text}<extra></extra>",
  }], {
    xaxis: axis("difference to the best row", { zeroline: true, zerolinecolor: colour("soft"), rangemode: "tozero" }),
    yaxis: axis("", { type: "category", autorange: "reversed" }),
  });
}
