// The style sheet, and the theme of the page around.

const CSS = "{{ css }}";

function sheet() {
  const made = new CSSStyleSheet();
  made.replaceSync(CSS);
  return made;
}

// Light or dark, by the colour that is really behind an element: notebooks and sites have switches of their own. A canvas reads
// it, for it may be written in any of CSS' colour spaces.
function themeOf(element) {
  const canvas = Object.assign(document.createElement("canvas"), { width: 1, height: 1 });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  for (let node = element; node; node = node.parentElement ?? node.getRootNode().host) {
    context.clearRect(0, 0, 1, 1);
    context.fillStyle = "transparent";
    context.fillStyle = getComputedStyle(node).backgroundColor;
    context.fillRect(0, 0, 1, 1);
    const [r, g, b, alpha] = context.getImageData(0, 0, 1, 1).data;
    if (alpha > 127) return 0.299 * r + 0.587 * g + 0.114 * b < 128 ? "dark" : "light";
  }
  return matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
}

// Colours of the theme at hand, as the canvas needs them.
class Inks {
  constructor(root) {
    const style = getComputedStyle(root), read = (name) => style.getPropertyValue(name).trim();
    this.steps = Array.from({ length: STEPS }, (_, i) => Inks.rgb(read(`--l2-c${i}`)));
    this.sink = Inks.rgb(read("--l2-sink"));
    [this.text, this.soft, this.line, this.accent] = ["text", "soft", "line", "accent"].map((name) => read(`--l2-${name}`));
  }

  static rgb(hex) { return [...[1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16)), 255]; }

  of(step) { return step === SINK ? this.sink : this.steps[step]; }
}
