// The losses of two runs on every token of the same text, coloured where they differ most.

// The strongest colour is that of the 95th percentile of the differences.
const STRONGEST = 0.95;

function startLosses() {
  const losses = report.losses;
  byId("losses").hidden = !losses;
  if (!losses) return;
  if (losses.problem) {
    byId("losses-note").textContent = `Not shown: ${losses.problem}.`;
    return;
  }
  const options = losses.runs.map((each, place) => [place, shortOf(each.run)]);
  const chosen = [0, 1];
  const redraw = () => drawLosses(losses, ...chosen.map((place) => losses.runs[place]));
  byId("losses-controls").append(
    list("first run", options, chosen[0], (place) => { chosen[0] = Number(place); redraw(); }),
    list("second run", options, chosen[1], (place) => { chosen[1] = Number(place); redraw(); }));
  redraw();
}

function drawLosses(losses, first, second) {
  const differences = losses.tokens.map((_, place) => first.losses[place] - second.losses[place]);
  const sizes = differences.map(Math.abs).sort((one, other) => one - other);
  const strongest = sizes[Math.floor(STRONGEST * (sizes.length - 1))] || 1;
  const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
  // Runs have their colours of the other plots; two of one colour are distinguished here.
  const found = [first, second].map((each) => runs.find((run) => run.name === each.run).colour);
  const colours = found[0] === found[1] ? [found[0], (found[0] + 1) % COLOURS] : found;
  const names = [shortOf(first.run), shortOf(second.run)];
  const lower = differences.filter((value) => value < 0).length;
  byId("losses-note").replaceChildren(
    `The first ${whole(losses.tokens.length)} tokens of the validation text. `,
    element("span", { class: "key", style: shade(colours[0], 1) }, `${names[0]} has the lower loss`), " ",
    element("span", { class: "key", style: shade(colours[1], 1) }, `${names[1]} has the lower loss`),
    ` (strongest from a difference of ${exact(strongest, 2)} nats). Mean loss ${exact(mean(first.losses))} (step ${whole(first.step)}) and ${exact(mean(second.losses))} (step ${whole(second.step)}); the first is lower on ${whole(lower)} tokens. Hover over a token for its losses.`);
  byId("tokens").replaceChildren(...losses.tokens.map((token, place) => {
    const difference = differences[place];
    return element("span", {
      title: `${spell(token)}: ${names[0]} ${exact(first.losses[place], 3)}, ${names[1]} ${exact(second.losses[place], 3)} nats`,
      style: shade(colours[difference < 0 ? 0 : 1], Math.min(1, Math.abs(difference) / strongest)),
    }, token.replaceAll("\n", "⏎\n") || "·");
  }));
}

const shade = (colour, strength) => `background: color-mix(in srgb, var(--run-${colour}) ${Math.round(60 * strength)}%, transparent)`;
