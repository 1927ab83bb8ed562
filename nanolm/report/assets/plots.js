// The common layout of all plots.

const canHover = window.matchMedia("(hover: hover)");
const runColour = (run) => colour(`run-${run.colour}`);

function axis(title, more = {}) {
  return {
    title: { text: title, standoff: 10, font: { size: 13, color: colour("soft") } },
    gridcolor: colour("grid"), linecolor: colour("line"), zerolinecolor: colour("grid"), zeroline: false,
    tickfont: { size: 11.5, color: colour("soft") }, automargin: true, ...more,
  };
}

function layout(more) {
  return {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: getComputedStyle(document.body).fontFamily, size: 12.5, color: colour("ink") },
    margin: { l: 48, r: 12, t: 12, b: 44 },
    hovermode: "closest",
    hoverlabel: { bgcolor: colour("card"), bordercolor: colour("line"), font: { color: colour("ink"), size: 12.5 }, align: "left", namelength: -1 },
    showlegend: false,
    modebar: { bgcolor: "rgba(0,0,0,0)", color: colour("soft"), activecolor: colour("accent") },
    // Dragging a plot on a touch screen scrolls the page.
    dragmode: isNarrow() ? false : "zoom",
    ...more,
  };
}

function draw(id, traces, look) {
  return Plotly.react(id, traces, layout(look), {
    responsive: true, displaylogo: false, displayModeBar: canHover.matches && look.dragmode !== false ? "hover" : false,
    modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]],
    toImageButtonOptions: { format: "svg", filename: id },
  });
}

// Escape a text for plotly, which interprets markup in labels.
const plain = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
