// The explorer: text, plots and controls, and what is chosen in them.

const MODEL_EVENTS = ["change:layer", "change:quantity", "change:position"];
const HINT = "Point at a token, or reach the text with Tab and move with the arrow keys.";

class Explorer {
  constructor(host, data, model = null) {
    Object.assign(this, { host, data, model, hover: -1, pin: -1, found: [], at: -1, filters: new Map() });
    this.quantity = data.quantity(data.start.quantity);
    this.layer = data.start.layer;
    this.root = make("div", "l2-tokens l2x");
    host.dataset.lmSuppressShortcuts = "true"; // JupyterLab would take the arrow keys
    const shadow = host.shadowRoot ?? host.attachShadow({ mode: "open" });
    shadow.adoptedStyleSheets = [sheet()];
    shadow.replaceChildren(this.root);
    this.#build();
    this.#listen();
    this.attach();
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
    this.readout = make("p", data.compact ? "l2x-unseen" : "l2x-readout"); // heard at least
    this.readout.setAttribute("aria-live", "polite");
    if (!data.compact) {
      this.#controls();
      root.append(this.bar);
    }
    root.append(this.legend);
    if (!data.compact) this.#plots();
    root.append(this.readout, this.frame, this.tip);
    this.text = new Text(this.frame, data);
    this.shown = data.opening(this.quantity, this.layer, data.sequences[0]);
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
      const options = [["", "all"], ...values.map((value) => [value, value])];
      this.#select(name[0].toUpperCase() + name.slice(1), options, pick).dataset.filter = name;
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
    const overview = make("div", "l2x-overview"), [left, right] = [make("figure"), make("figure")];
    const canvas = make("canvas", "l2x-heatmap"), curve = svg("svg", { class: "l2x-curve" });
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
    const { frame } = this;
    const tokenOf = (event) => event.composedPath()[0].token ?? -1;
    frame.addEventListener("pointerover", (event) => this.look(tokenOf(event)));
    frame.addEventListener("pointerleave", () => this.look(-1));
    frame.addEventListener("click", (event) => {
      const token = tokenOf(event);
      if (token >= 0) this.hold(token === this.pin ? -1 : token);
    });
    frame.addEventListener("focusin", (event) => {
      const strip = event.target;
      if (strip.getAttribute("role") !== "listbox" || !strip.matches(":focus-visible")) return;
      const inside = this.pin >= 0 && this.text.spans[this.pin]?.parentNode === strip;
      this.look(inside ? this.pin : strip.querySelector("span")?.token ?? -1);
    });
    frame.addEventListener("focusout", () => this.look(-1));
    frame.addEventListener("keydown", (event) => this.key(event));
  }

  // What is heard of the page, as long as the element is on it: notebooks take outputs out and put them back.
  attach() {
    this.detach();
    this.stop = new AbortController();
    const { signal } = this.stop;
    const page = new MutationObserver(() => this.retheme()), size = new ResizeObserver(() => this.plot());
    addEventListener("beforeprint", () => this.retheme("light"), { signal });
    addEventListener("afterprint", () => this.retheme(), { signal });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.retheme(), { signal });
    for (const node of [document.documentElement, document.body]) page.observe(node, { attributes: true });
    size.observe(this.root);
    for (const name of MODEL_EVENTS) this.model?.on(name, this.#fromModel);
    signal.addEventListener("abort", () => {
      page.disconnect();
      size.disconnect();
      for (const name of MODEL_EVENTS) this.model?.off(name, this.#fromModel);
    });
    this.retheme();
  }

  detach() { this.stop?.abort(); }

  #fromModel = () => {
    const { data, model } = this; // read at once: what is told below changes them
    const [layer, quantity, index, position] = ["layer", "quantity", "sequence", "position"].map((name) => model.get(name));
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
    if (now < 0 || event.target.getAttribute("role") !== "listbox") return;
    const { start, length } = data.sequence(now), last = start + length - 1;
    const moves = { ArrowRight: now + 1, ArrowLeft: now - 1, Home: start, End: last }, levels = { ArrowUp: 1, ArrowDown: -1 };
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
    const [outer, inner] = [frame, span].map((node) => node.getBoundingClientRect());
    if (inner.top < outer.top || inner.bottom > outer.bottom) frame.scrollTop += inner.top - outer.top - outer.height / 3;
    if (token === this.token) placeTip(this);
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
    [this.quantity, this.shown] = [quantity, this.data.opening(quantity, this.layer, this.shown)];
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
    fillLegend(this.legend, data, quantity, layer);
    if (!data.compact) {
      this.chooser.value = quantity.name;
      this.slider.value = data.layers.indexOf(layer);
      this.slider.setAttribute("aria-valuetext", `layer ${layer}`);
      this.slider.disabled = data.layers.length < 2;
      this.output.value = layer;
    }
    this.plot();
  }

  // The plots, of the sequence that is looked at.
  plot() {
    if (!this.heatmap || !this.inks) return;
    const { data, shown, quantity } = this;
    this.heatmap.draw(shown, quantity, this.inks);
    const { pooled } = this.heatmap, of = shown.title ? ` of ${shown.title}` : "";
    const note = pooled > 1 ? `; greatest of ${pooled} tokens in a column` : "";
    this.heatTitle.textContent = `Layers and tokens${of}; each layer on its own scale${note}`;
    const size = `${data.layers.length} layers by ${shown.length} tokens`;
    this.heatmap.canvas.setAttribute("aria-label", `${quantity.label}: ${size}${of}`);
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
      this.heatmap.point(this.level, token);
      this.curve.draw(this.quantity, this.level, token);
      const name = token < 0 ? "Median of each layer" : `“${data.text(token)}” over the layers`;
      this.curveTitle.textContent = this.quantity.layers.length ? name : "";
    }
    this.#say();
    placeTip(this);
  }

  // The values of the token, beside it and in the line above the text.
  #say() {
    const { token, data } = this, layer = this.level;
    if (token < 0) {
      this.readout.textContent = data.compact ? "" : HINT;
      return;
    }
    const { value, near, where, more } = notesOf(data, this.quantity, token, layer);
    const name = make("bdi", "l2x-token", data.text(token) || "part of a character");
    this.readout.replaceChildren(name, " ", [value, ...near, where, ...more].join(" · "));
    const rest = [where, ...more].map((note) => make("span", "", note));
    this.tip.replaceChildren(name.cloneNode(true), make("b", "", [value, ...near].join(" · ")), ...rest);
  }
}
