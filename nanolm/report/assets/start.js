// Build the page from top to bottom.

startTheme();
startSweep();
startResults();
startForest();
startLegend();
startCurves();
startSettings();
startSamples();
startLosses();
startAttention();
startReproduce();
byId("contents").append(...[...document.querySelectorAll("main section:not([hidden])")].map((part) =>
  element("a", { href: `#${part.id}` }, part.querySelector("h2").textContent)));
