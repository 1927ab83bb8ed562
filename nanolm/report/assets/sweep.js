// The status of the sweeps that the runs are jobs of, when the page was made.

function startSweep() {
  byId("sweep").hidden = !report.sweeps.length;
  byId("sweeps").append(...report.sweeps.flatMap((sweep) => [
    element("h3", {}, sweep.folder),
    element("p", {}, `${sweep.progress}.`),
    sweep.best && element("p", {}, `Best so far: ${exact(sweep.best.value)} ${sweep.best.metric === "bits_per_byte" ? "bits per byte" : "nats per token"}, ${sweep.best.run}.`),
    jobTable(sweep.running, {
      running: (job) => job.run,
      step: (job) => job.max_steps ? `${whole(job.step)} of ${whole(job.max_steps)}` : whole(job.step),
      for: (job) => duration(job.seconds),
      left: (job) => duration(job.seconds_left),
      where: (job) => [job.host, job.process && `process ${job.process}`, job.gpu && `GPU ${job.gpu}`].filter(Boolean).join(", "),
    }),
    jobTable(sweep.failed, { "failed or diverged": (job) => job.run, reason: (job) => job.error.split("\n")[0] }),
  ].filter(Boolean)));
}

// A table of jobs, or null if there are none. The columns are functions of a job, by title.
function jobTable(jobs, columns) {
  if (!jobs.length) return null;
  const isText = (title) => !["step", "for", "left"].includes(title);
  const row = (kind, textOf) => element("tr", {}, ...Object.entries(columns).map(([title, of]) =>
    element(kind, { class: isText(title) ? "text" : null }, textOf(title, of))));
  return element("div", { class: "scroll", tabindex: "0" }, element("table", {},
    element("thead", {}, row("th", (title) => title)),
    element("tbody", {}, ...jobs.map((job) => row("td", (title, of) => of(job))))));
}
