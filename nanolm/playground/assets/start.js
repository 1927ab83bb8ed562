// Build the page, and connect its buttons with the runs.

async function start() {
  startTheme();
  startDetails();
  const response = await fetch("runs");
  const runs = (await response.json()).runs.map((run, number) => ({ ...run, number }));
  const writers = runs.map(writer);
  byId("writers").append(...writers.map((each) => each.card));
  byId("help").textContent = "Point at a token for the alternatives that the model saw, before any sampler" +
    (runs.some((run) => run.has_attention) ? "; choose one for its attention." : ".");
  let current = null;

  async function write() {
    let chosen;
    try {
      chosen = currentSettings();
    } catch (error) {
      showProblem(error);
      return;
    }
    showProblem(null);
    hideDetails();
    current?.abort();
    const mine = current = new AbortController();
    showIsWriting(true);
    const prompt = byId("prompt").value;
    await Promise.all(writers.map((each) => each.write(prompt, chosen, mine.signal)));
    if (current === mine) showIsWriting(false);
  }

  startControls(runs, write, () => current?.abort());
  byId("prompt").placeholder = runs.some((run) => run.is_chat) ? "a message, or a text to continue" : "a text to continue; empty: the model begins";
}

start().catch((error) => showProblem(new ShownError([{ found: `the page did not start: ${error.message}`, hint: "reload it" }])));
