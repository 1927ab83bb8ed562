// From top to bottom.

startTheme();
startResults();
startLegend();
startCurves();
startSettings();
startSamples();
startAttention();
startRepeat();
byId("contents").append(...[...document.querySelectorAll("main section:not([hidden])")].map((part) =>
  element("a", { href: `#${part.id}` }, part.querySelector("h2").textContent)));
