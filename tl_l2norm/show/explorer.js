// The explorer: one element for a page, one function for anywidget. The text that Python wrote into the element stays where this
// can't run; where it can, a shadow root takes its place, so that no style of the page reaches in and none of ours out.

const CSS = "{{ css }}";

function sheet() {
  const made = new CSSStyleSheet();
  made.replaceSync(CSS);
  return made;
}

// Light or dark, by the colour that is really behind an element: notebooks and sites have switches of their own. A canvas reads it,
// for it may be written in any of CSS' colour spaces.
function themeOf(element) {
  const context = Object.assign(document.createElement("canvas"), { width: 1, height: 1 }).getContext("2d", { willReadFrequently: true });
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

class Explorer {
  constructor(host, data, model = null) {
    Object.assign(this, { host, data, model, hover: -1, pin: -1, found: [], at: -1, filters: new Map(), stop: new AbortController() });
    this.quantity = data.quantity(data.start.quantity);
    this.layer = data.start.layer;
    this.root = make("div", "l2-tokens l2x");
    host.dataset.lmSuppressShortcuts = "true"; // JupyterLab would take the arrow keys
    const shadow = host.shadowRoot ?? host.attachShadow({ mode: "open" });
    shadow.adoptedStyleSheets = [sheet()];
    shadow.replaceChildren(this.root);
    this.#build();
    this.#listen();
    this.retheme();
    this.paint();
    if (model) {
      this.#fromModel();
      this.tell();
    }
  }

  get level() { return this.hover >= 0 ? this.over ?? this.layer : this.layer; }

  get token() { return this.hover >= 0 ? this.hover : this.pin; }

  isShown = (sequence) => [...this.filters].every(([name, value]) => !value || sequence.labels[name] === value);

  #build() {
    const { data, root } = this;
    this.bar = make("div", "l2x-bar");
    this.legend = make("p", "l2-caption");
    this.tip = make("div", "l2x-tip");
    this.tip.hidden = true;
    this.frame = make("div", "l2x-items");
    if (data.compact) this.frame.classList.add("l2-sequences");
    this.readout = make("p", "l2x-readout");
    this.readout.setAttribute("aria-live", "polite");
    if (!data.compact) {
      this.#controls();
      root.append(this.bar);
    }
    root.append(this.legend);
    if (!data.compact) this.#plots();
    root.append(this.readout, this.frame, this.tip);
    this.text = new Text(this.frame, data);
    this.shown = data.sequences[0];
  }

  #controls() {
    const { data } = this;
    this.chooser = this.#select("Colour", data.quantities.map(({ name, label }) => [name, label]), (name) => this.choose(name));
    this.chooser.value = this.quantity.name;
    this.slider = Object.assign(make("input"), { type: "range", min: 0, max: data.layers.length - 1, step: 1 });
    this.output = make("output", "l2x-layer");
    this.#select("Scale", [["", "linear"], ["log", "logarithmic"]], (kind) => { data.log = kind === "log"; this.paint(); });
    this.slider.addEventListener("input", () => this.goto(data.layers[this.slider.value]));
    this.#labelled("Layer", this.slider, this.output);
    this.search = Object.assign(make("input"), { type: "search", spellcheck: false });
    this.count = make("output", "l2x-count");
    this.search.addEventListener("input", () => this.find());
    this.search.addEventListener("keydown", (event) => {
      if (event.key === "Enter") this.next(event.shiftKey ? -1 : 1);
    });
    this.#labelled("Find", this.search, this.count);
    for (const name of new Set(data.sequences.flatMap(({ labels }) => Object.keys(labels)))) {
      const values = [...new Set(data.sequences.map(({ labels }) => labels[name] ?? ""))].filter(Boolean);
      if (values.length < 2 || values.length > 24) continue;
      values.sort((a, b) => a.localeCompare(b, "en", { numeric: true }));
      const pick = (value) => { this.filters.set(name, value); this.filter(); };
      this.#select(name[0].toUpperCase() + name.slice(1), [["", "all"], ...values.map((value) => [value, value])], pick).dataset.filter = name;
    }
    this.tally = make("output", "l2x-tally");
    this.bar.append(this.tally);
  }

  #labelled(name, ...nodes) {
    const label = make("label", "l2x-control");
    label.append(make("span", "", name), ...nodes);
    nodes[0].setAttribute("aria-label", name);
    this.bar.append(label);
  }

  #select(name, options, pick) {
    const select = make("select");
    for (const [value, label] of options) select.append(Object.assign(make("option", "", label), { value }));
    select.addEventListener("change", () => pick(select.value));
    this.#labelled(name, select);
    return select;
  }

  #plots() {
    const overview = make("div", "l2x-overview"), canvas = make("canvas", "l2x-heatmap"), curve = svg("svg", { class: "l2x-curve" });
    const [left, right] = [make("figure"), make("figure")];
    this.heatTitle = make("figcaption", "l2-label");
    this.curveTitle = make("figcaption", "l2-label");
    canvas.setAttribute("role", "img");
    curve.setAttribute("role", "img");
    curve.setAttribute("aria-label", "values of the token over all layers");
    left.append(this.heatTitle, canvas);
    right.append(this.curveTitle, curve);
    overview.append(left, right);
    overview.style.setProperty("--l2x-height", `${Math.min(230, Math.max(96, this.data.layers.length * 9)) + FOOT}px`);
    this.root.append(overview);
    this.heatmap = new Heatmap(canvas, this.data);
    this.curve = new Curve(curve, this.data);
    const under = (event) => this.heatmap.under(event.offsetX, event.offsetY);
    canvas.addEventListener("pointermove", (event) => this.look(under(event)?.token ?? -1, under(event)?.layer ?? null));
    canvas.addEventListener("pointerleave", () => this.look(-1));
    canvas.addEventListener("click", (event) => {
      const place = under(event);
      if (!place) return;
      this.goto(place.layer);
      this.hold(place.token);
      this.show(place.token);
    });
  }

  #listen() {
    const { signal } = this.stop, { frame } = this;
    const tokenOf = (event) => event.composedPath()[0].token ?? -1;
    frame.addEventListener("pointerover", (event) => this.look(tokenOf(event)));
    frame.addEventListener("pointerleave", () => this.look(-1));
    frame.addEventListener("click", (event) => { if (tokenOf(event) >= 0) this.hold(tokenOf(event) === this.pin ? -1 : tokenOf(event)); });
    frame.addEventListener("focusin", (event) => {
      const strip = event.target;
      if (strip.role !== "listbox" && strip.getAttribute("role") !== "listbox") return;
      if (!strip.matches(":focus-visible")) return;
      const inside = this.pin >= 0 && this.text.spans[this.pin]?.parentNode === strip;
      this.look(inside ? this.pin : strip.querySelector("span")?.token ?? -1);
    });
    frame.addEventListener("focusout", () => this.look(-1));
    frame.addEventListener("keydown", (event) => this.key(event));
    addEventListener("beforeprint", () => this.retheme("light"), { signal });
    addEventListener("afterprint", () => this.retheme(), { signal });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.retheme(), { signal });
    const page = new MutationObserver(() => this.retheme());
    for (const node of [document.documentElement, document.body]) page.observe(node, { attributes: true });
    const size = new ResizeObserver(() => this.plot());
    size.observe(this.root);
    signal.addEventListener("abort", () => { page.disconnect(); size.disconnect(); });
    this.model?.on("change:layer", this.#fromModel);
    this.model?.on("change:quantity", this.#fromModel);
    this.model?.on("change:position", this.#fromModel);
  }

  #fromModel = () => {
    const { data } = this, [layer, quantity, index, position] = ["layer", "quantity", "sequence", "position"].map((name) => this.model.get(name));
    const sequence = data.sequences[index];
    if (quantity) this.choose(quantity);
    if (data.layers.includes(layer)) this.goto(layer);
    if (!sequence || !(position < sequence.length)) return;
    const token = position < 0 ? -1 : sequence.start + position;
    if (token !== this.pin) this.hold(token);
  };

  tell() {
    if (!this.model) return;
    const { pin, data } = this;
    const chosen = {
      layer: this.layer, quantity: this.quantity.name,
      sequence: pin < 0 ? -1 : data.owner[pin], position: pin < 0 ? -1 : data.position(pin),
    };
    for (const [name, value] of Object.entries(chosen)) this.model.set(name, value);
    this.model.save_changes();
  }

  key(event) {
    const { data } = this, { layers } = data, now = this.token;
    const strip = event.target;
    if (now < 0 || strip.getAttribute("role") !== "listbox") return;
    const { start, length } = data.sequence(now), last = start + length - 1;
    const moves = { ArrowRight: now + 1, ArrowLeft: now - 1, Home: start, End: last };
    const levels = { ArrowUp: 1, ArrowDown: -1 };
    if (event.key in moves) this.step(Math.min(last, Math.max(start, moves[event.key])));
    else if (event.key in levels) {
      this.goto(layers[Math.min(layers.length - 1, Math.max(0, layers.indexOf(this.layer) + levels[event.key]))]);
    } else if (event.key === "Enter" || event.key === " ") this.hold(now === this.pin ? -1 : now);
    else if (event.key === "Escape") { this.hold(-1); this.look(-1); }
    else return;
    event.preventDefault();
  }

  // To a token by key: its segment has the focus.
  step(token) {
    const strip = this.text.reveal(token).parentNode;
    if (strip.getRootNode().activeElement !== strip) strip.focus({ preventScroll: true });
    this.look(token);
    this.show(token);
  }

  show(token) {
    const span = this.text.reveal(token), { frame } = this;
    const [outer, inner] = [frame.getBoundingClientRect(), span.getBoundingClientRect()];
    if (inner.top < outer.top || inner.bottom > outer.bottom) frame.scrollTop += inner.top - outer.top - outer.height / 3;
    if (token === this.token) this.place();
  }

  goto(layer) {
    if (layer === this.layer) return;
    this.layer = layer;
    this.paint();
    this.tell();
  }

  choose(name) {
    const quantity = this.data.quantity(name);
    if (quantity === this.quantity) return;
    this.quantity = quantity;
    if (quantity.layers.length && !quantity.layers.includes(this.layer)) this.layer = quantity.layers.at(-1);
    this.paint();
    this.tell();
  }

  hold(token) {
    this.pin = token;
    this.point();
    this.tell();
  }

  look(token, layer = null) { // a layer of its own only over the heatmap
    if (token === this.hover && layer === this.over) return;
    [this.hover, this.over] = [token, layer];
    this.point();
  }

  find() {
    this.found = this.text.find(this.search.value, this.isShown);
    this.at = -1;
    this.counted();
    this.point();
  }

  next(by) {
    const n = this.found.length;
    if (!n) return;
    this.at = this.at < 0 ? (by > 0 ? 0 : n - 1) : (this.at + by + n) % n;
    this.hold(this.found[this.at][0]);
    this.show(this.pin);
    this.counted();
  }

  counted() {
    const n = this.found.length;
    this.count.value = !this.search.value ? "" : !n ? "none" : this.at < 0 ? `${n}` : `${this.at + 1} of ${n}`;
  }

  filter() {
    const { sequences } = this.data, shown = sequences.filter(this.isShown);
    this.text.filter(this.isShown);
    this.tally.value = shown.length < sequences.length ? `${shown.length} of ${sequences.length} sequences` : "";
    if (this.pin >= 0 && !this.isShown(this.data.sequence(this.pin))) this.pin = -1;
    if (shown.length && !this.isShown(this.shown)) [this.shown] = shown;
    this.find();
    this.plot();
  }

  retheme(theme = themeOf(this.host)) {
    if (this.root.dataset.theme === theme) return;
    this.root.dataset.theme = theme;
    this.inks = new Inks(this.root);
    this.plot();
  }

  // Everything that hangs on quantity and layer.
  paint() {
    const { data, quantity, layer } = this;
    this.text.paint(quantity, layer);
    this.#legend();
    if (!data.compact) {
      this.chooser.value = quantity.name;
      this.slider.value = data.layers.indexOf(layer);
      this.slider.setAttribute("aria-valuetext", `layer ${layer}`);
      this.slider.disabled = data.layers.length < 2;
      this.output.value = layer;
    }
    this.plot();
  }

  #legend() {
    const { data, quantity, layer, legend } = this, scale = data.scale(quantity, layer);
    const where = quantity.layers.length ? (data.compact ? `after layer ${layer}` : `layer ${layer}`) : "";
    legend.replaceChildren(make("span", "", [quantity.label, where, data.model].filter(Boolean).join(", ")));
    const part = (className, text, ...nodes) => {
      const made = make("span", "l2-legend");
      made.append(...nodes, make("i", className), text);
      legend.append(made);
    };
    if (scale) {
      const shown = make("span", "l2-legend"), ramp = make("span", "l2-ramp");
      for (let i = 0; i < STEPS; i++) ramp.append(make("i", `l2-c${i}`));
      shown.append(`${digits(scale[0])} `, ramp, ` ${digits(scale[1])}`);
      legend.append(shown);
    } else legend.append(make("span", "", !quantity.row(layer) ? "not recorded at this layer" : "nothing to colour"));
    const sinks = data.sinksAt(layer).reduce((found, is, token) => (is ? [...found, token] : found), []);
    if (sinks.length) {
      const greatest = sinks.reduce((most, token) => Math.max(most, quantity.value(layer, token)), -Infinity);
      const norm = quantity.name === "norm" ? `, norm up to ${digits(greatest)}` : "";
      part("l2-sink", ` ${sinks.length === 1 ? "an attention sink" : `${sinks.length} attention sinks`}${norm}, off the scale`);
    }
    if (data.events.size) part("l2-event", " an intervention fired here");
  }

  // The plots, of the sequence that is looked at.
  plot() {
    if (!this.heatmap || !this.inks) return;
    const { data, shown, quantity } = this;
    this.heatmap.draw(shown, quantity, this.inks);
    const { pooled } = this.heatmap, of = shown.title ? ` of ${shown.title}` : "";
    const note = pooled > 1 ? `; greatest of ${pooled} tokens in a column` : "";
    this.heatTitle.textContent = `Layers and tokens${of}; each layer on its own scale${note}`;
    this.heatmap.canvas.setAttribute("aria-label", `${quantity.label}: ${data.layers.length} layers by ${shown.length} tokens${of}`);
    this.point();
  }

  // Everything that hangs on the token that is looked at.
  point() {
    const { token, data, text } = this;
    for (const [span, name] of this.marked ?? []) span.classList.remove(name), span.removeAttribute("id");
    this.marked = [];
    const mark = (which, name) => {
      const span = text.spans[which];
      if (span) { span.classList.add(name); this.marked.push([span, name]); }
      return span;
    };
    this.root.querySelector("[aria-activedescendant]")?.removeAttribute("aria-activedescendant");
    if (this.pin >= 0) mark(this.pin, "l2x-pin");
    if (token >= 0) {
      const span = mark(token, "l2x-at");
      data.counterparts(token).forEach((other) => mark(other, "l2x-same"));
      if (span) { span.id = "l2x-at"; span.parentNode.setAttribute("aria-activedescendant", "l2x-at"); }
      if (this.heatmap && data.sequence(token) !== this.shown) { this.shown = data.sequence(token); this.plot(); return; }
    }
    if (this.heatmap) {
      const layer = this.level;
      this.heatmap.point(layer, token);
      this.curve.draw(this.quantity, layer, token);
      const name = token < 0 ? "Median of each layer" : `“${data.text(token)}” over the layers`;
      this.curveTitle.textContent = this.quantity.layers.length ? name : "";
    }
    this.#say();
    this.place();
  }

  // The values of the token, beside it and in the line above the text.
  #say() {
    const { token, data } = this, layer = this.level;
    if (token < 0) {
      this.readout.textContent = data.compact ? "" : "Point at a token, or reach the text with Tab and move with the arrow keys.";
      this.tip.replaceChildren();
      return;
    }
    const { value, near, where, more } = this.notes(token, layer);
    const name = make("bdi", "l2x-token", data.text(token) || "part of a character");
    this.readout.replaceChildren(name, " ", [value, ...near, where, ...more].join(" · "));
    const lines = [make("b", "", [value, ...near].join(" · ")), make("span", "", where), ...more.map((note) => make("span", "", note))];
    this.tip.replaceChildren(make("bdi", "l2x-token", data.text(token) || "part of a character"), ...lines);
  }

  notes(token, layer) {
    const { data, quantity } = this, [norm, ratio] = data.quantities, of = (one) => digits(one.value(layer, token));
    const near = [`norm ${of(norm)}`], more = [];
    if (ratio?.name === "ratio") near.push(`${of(ratio)} × median`);
    if (!["norm", "ratio"].includes(quantity.name)) near.unshift(`${quantity.name.replaceAll("_", " ")} ${of(quantity)}`);
    if (data.sinksAt(layer)[token]) more.push("attention sink, off the scale");
    for (const other of data.counterparts(token)) {
      more.push(`${data.sequence(other).title || "the other"}: ${digits(quantity.value(layer, other))}`);
    }
    for (const { layer: at, name, decision, fired, before, after } of data.events.get(token) ?? []) {
      const moved = fired && before !== null && after !== null ? `, norm ${digits(before)} to ${digits(after)}` : "";
      more.push(`${name} at layer ${at}: ${decision}${moved}`);
    }
    const [value, ...rest] = near;
    return { value, near: rest, where: `layer ${layer}, position ${data.position(token)}, ${data.segment(token)}`, more };
  }

  // The box of values stands by its token, inside of the widget.
  place() {
    const { tip, root, frame, hover } = this, span = hover >= 0 ? this.text.spans[hover] : null;
    tip.hidden = !span;
    if (!span) return;
    const [outer, inner, view] = [root, span, frame].map((node) => node.getBoundingClientRect());
    if (inner.bottom < view.top || inner.top > view.bottom) { tip.hidden = true; return; }
    const left = Math.max(4, Math.min(inner.left - outer.left, outer.width - tip.offsetWidth - 4));
    const below = inner.bottom - outer.top + 6, above = inner.top - outer.top - tip.offsetHeight - 6;
    tip.style.left = `${left}px`;
    tip.style.top = `${above > 0 && inner.bottom + tip.offsetHeight + 10 > innerHeight ? above : below}px`;
  }

  destroy() {
    this.stop.abort();
    this.model?.off("change:layer", this.#fromModel);
    this.model?.off("change:quantity", this.#fromModel);
    this.model?.off("change:position", this.#fromModel);
  }
}

/** Draws packed bytes in an element. */
export async function mount(host, bytes, model = null) {
  const start = performance.now(), explorer = new Explorer(host, new Data(await inflate(bytes)), model);
  host.offsetHeight; // laid out
  performance.measure("l2-explorer", { start });
  return explorer;
}

if (!customElements.get("l2-explorer")) {
  customElements.define("l2-explorer", class extends HTMLElement {
    async connectedCallback() {
      const source = this.querySelector(":scope > script.l2-data");
      if (!source || this.explorer) return;
      this.explorer = true;
      try {
        this.explorer = await mount(this, bytesOf(source.textContent));
      } catch (error) { // the text that is there stays
        console.warn(`tl_l2norm: the tokens stay as text: ${error.message}`);
      }
    }
  });
}

export default {
  async render({ model, el }) {
    const data = model.get("data"), host = make("div");
    el.append(host);
    const explorer = await mount(host, new Uint8Array(data.buffer, data.byteOffset, data.byteLength), model);
    return () => explorer.destroy();
  },
};
