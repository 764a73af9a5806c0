// Draws every strip of tokens anew with CircuitsVis. The strip itself holds the data: without JavaScript it is what is seen.
(() => {
  // ColoredTokens writes a token as raw HTML and repeats it in the tooltip as text. This is the text, and gives escaped HTML.
  const token = (span) => {
    const html = `<span class="${span.className}">${span.innerHTML.replaceAll("<br>", "")}</span>`;
    return Object.assign([span.textContent], {
      replace: () => html,
      match: () => [...span.querySelectorAll("br")],
      toString: () => html,
    });
  };

  // One value serves as colour and as tooltip. This counts as the place on the scale and reads as the norm.
  const value = (span) => Object.assign([span.title], { valueOf: () => Number(span.dataset.place) });

  const draw = (strip, index) => {
    const { high, sink } = strip.closest(".l2-tokens").dataset;
    const spans = [...strip.children];
    strip.id = `l2-strip-${index}`;
    CircuitsVis.render(strip.id, CircuitsVis.ColoredTokens, {
      tokens: spans.map(token),
      values: spans.map(value),
      minValue: -1,
      maxValue: 1,
      negativeColor: sink,
      positiveColor: high,
      paddingBottom: 0,
    });
  };

  addEventListener("DOMContentLoaded", () => {
    document.querySelectorAll(".l2-strip").forEach(draw);
    // In a notebook the page is a frame, which doesn't grow by itself.
    const frame = window.frameElement;
    if (frame?.srcdoc) {
      const fit = () => { frame.style.height = `${document.documentElement.offsetHeight}px`; };
      new ResizeObserver(fit).observe(document.documentElement);
    }
  });
})();
