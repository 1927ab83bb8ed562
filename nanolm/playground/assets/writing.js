// Runs that write: the request, its events, and what they show.

async function ask(name, body) {
  const response = await fetch(name, request(body));
  if (!response.ok) throw new ShownError((await response.json()).errors);
  return response.json();
}

const request = (body, signal) =>
  ({ method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body), signal });

// Call `handle` with the events of a text that have arrived, as soon as they do.
async function readEvents(body, signal, handle) {
  const response = await fetch("generate", request(body, signal));
  if (!response.ok) throw new ShownError((await response.json()).errors);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) break;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    handle(lines.map((line) => JSON.parse(line)));
  }
}

const FINISHES = { length: "", eos: ", ended by the model", stop: ", ended by the template", stopped: ", stopped" };

// A card with the text of one run.
function writer(run) {
  const status = element("p", { class: "at", role: "status" });
  const state = { tokens: [], ids: [], first: 0 };
  const attention = run.has_attention ? attentionPanel(run, () => state) : null;
  const text = textBox(`text of ${run.name}`, (place) => { text.mark(place); attention?.show(place); });
  state.tokens = text.tokens;
  const facts = [
    run.model, run.parameters ? `${brief(run.parameters)} parameters` : null, `step ${whole(run.step)}`,
    `${run.tokenizer} tokenizer with vocab size ${whole(run.vocab_size)}`, `context length ${whole(run.context_length)}`,
    run.is_chat ? "responds to messages" : null,
  ];
  const card = element("section", { class: "writer", "aria-label": run.name },
    element("h2", { title: run.path }, element("i", { class: "dot", "aria-hidden": "true" }), element("span", {}, run.name)),
    element("p", { class: "at" }, facts.filter(Boolean).join(", ")), text.box, status, attention ? attention.panel : null);
  card.style.setProperty("--run", `var(--run-${run.number})`);

  const handlers = {
    start(event) {
      state.ids = event.ids;
      state.first = event.length - event.ids.length;
      const first = event.length - event.prompt.length;
      text.add(event.prompt.map((token, place) => ({ ...token, isPrompt: true, position: first + place })));
      state.length = event.length;
      status.textContent = event.note ?? "";
    },
    end(event) {
      const speed = `${whole(event.tokens)} tokens${FINISHES[event.finish]}, ${whole(event.tokens_per_second)} tokens/s`;
      status.textContent = event.tokens ? `${speed}, loss ${exact(event.loss, 2)} nats per token` : "stopped";
    },
    error(event) {
      status.replaceChildren(...event.errors.map(describedError));
    },
  };

  return {
    card,
    async write(prompt, settings, signal) {
      text.clear();
      attention?.clear();
      status.textContent = "";
      card.classList.add("busy");
      let hasEnded = false;
      try {
        await readEvents({ run: run.number, prompt, settings }, signal, (events) => {
          for (const event of events.filter((each) => each.type !== "token")) {
            hasEnded ||= event.type === "end" || event.type === "error";
            handlers[event.type](event);
          }
          const tokens = events.filter((each) => each.type === "token");
          state.ids.push(...tokens.map((token) => token.id));
          text.add(tokens.map((token) => ({ ...token, position: state.length++ })));
        });
        if (!hasEnded) throw new TypeError("incomplete");
      } catch (error) {
        if (signal.aborted) {
          status.textContent = `${whole(text.tokens.filter((token) => !token.isPrompt).length)} tokens, stopped`;
        } else if (error instanceof ShownError) {
          status.replaceChildren(...error.errors.map(describedError));
        } else {
          status.textContent = "the playground does not respond: start `nanolm playground` again";
        }
      } finally {
        card.classList.remove("busy");
      }
    },
  };
}
