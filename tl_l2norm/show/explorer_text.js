// The text: sequences of an item side by side, segment beside segment, long ones folded.

const FOLD_OVER = 500, FOLD_HEAD = 250, FOLD_TAIL = 100;

const make = (name, className = "", text = "") => {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (text) made.textContent = text;
  return made;
};

class Text {
  constructor(frame, data) {
    Object.assign(this, { frame, data, spans: new Array(data.total), folds: [], hits: new Set() });
    this.cells = data.sequences.map(() => []);
    this.items = [...this.#grouped().values()].map((members) => ({ members, node: this.#item(members) }));
    frame.append(...this.items.map(({ node }) => node));
  }

  #grouped() {
    const groups = new Map();
    for (const one of this.data.sequences) groups.set(one.item, [...(groups.get(one.item) ?? []), one]);
    return groups;
  }

  #item(members) {
    const node = make("div", "l2-sequences l2x-item");
    const rows = this.#rows(members);
    members.forEach((sequence, column) => {
      const cells = this.cells[sequence.index];
      const put = (cell, row) => {
        if (!this.data.compact && members.length > 1) cell.style.gridArea = `${row + 1} / ${column + 1}`;
        cells.push(cell);
        node.append(cell);
      };
      const title = make("p", "l2-title", sequence.title);
      put(title, 0);
      if (this.data.compact) { // no rows: a column of its own, which may wrap
        const section = make("section", "l2-sequence");
        cells.splice(0, cells.length, section);
        section.append(title, ...this.#runs(sequence), ...this.#hidden(sequence));
        node.append(section);
        return;
      }
      let row = 0;
      for (const run of this.#runs(sequence)) {
        row = rows.indexOf(run.dataset.segment, row) + 1;
        put(run, row);
      }
      if (sequence.hidden) put(this.#hidden(sequence)[0], rows.length + 1);
    });
    if (!this.data.compact) node.style.gridTemplateColumns = `repeat(${members.length}, minmax(0, 1fr))`;
    return node;
  }

  #hidden({ hidden }) {
    return hidden ? [make("p", "l2-label", `${hidden.toLocaleString("en-US")} more tokens are not shown`)] : [];
  }

  // Names of the segments in an order that holds every sequence's.
  #rows(members) {
    const rows = [];
    for (const { runs } of members) {
      let at = 0;
      for (const [name] of runs) {
        const found = rows.indexOf(name, at);
        if (found < 0) rows.splice(at, 0, name);
        at = (found < 0 ? at : found) + 1;
      }
    }
    return rows;
  }

  #runs(sequence) {
    let from = sequence.start;
    return sequence.runs.map(([name, n]) => {
      const run = make("div", `l2-run l2-${name}`), label = make("p", "l2-label"), strip = make("div", "l2-strip");
      run.dataset.segment = name;
      label.append(make("b", "", name), ` ${n.toLocaleString("en-US")}`);
      strip.setAttribute("role", "listbox");
      strip.setAttribute("aria-label", [sequence.title, name, `${n} tokens`].filter(Boolean).join(", "));
      strip.tabIndex = 0;
      const end = from + n;
      if (n > FOLD_OVER) {
        strip.append(this.#tokens(from, from + FOLD_HEAD, end));
        this.#fold(strip, from + FOLD_HEAD, end - FOLD_TAIL);
        strip.append(this.#tokens(end - FOLD_TAIL, end, end));
      } else {
        strip.append(this.#tokens(from, end, end));
      }
      from = end;
      run.append(label, strip);
      return run;
    });
  }

  #fold(strip, from, end) {
    const button = make("button", "l2x-fold", `⋯ ${(end - from).toLocaleString("en-US")} tokens folded`);
    button.type = "button";
    button.setAttribute("role", "option"); // the only kind of child that a listbox has
    const fold = { from, end, button };
    button.addEventListener("click", () => this.unfold(fold));
    this.folds.push(fold);
    strip.append(button);
  }

  unfold(fold) {
    fold.button.replaceWith(this.#tokens(fold.from, fold.end, Infinity));
    this.folds.splice(this.folds.indexOf(fold), 1);
    this.paint(this.quantity, this.layer, fold.from, fold.end);
  }

  // Makes sure that a token is drawn.
  reveal(token) {
    const fold = this.folds.find(({ from, end }) => from <= token && token < end);
    if (fold) this.unfold(fold);
    return this.spans[token];
  }

  #tokens(from, end, last) { // no empty line behind the last token of a run
    const drawn = document.createDocumentFragment(), { start, tokens, breaks } = this.data.sequence(from);
    for (let token = from; token < end; token++) {
      const span = document.createElement("span"), text = tokens[token - start];
      span.textContent = text;
      span.setAttribute("role", "option");
      if (!text) span.setAttribute("aria-label", "part of a character");
      for (let k = token + 1 < last ? breaks.get(token - start) ?? 0 : 0; k > 0; k--) span.append(document.createElement("br"));
      span.token = token;
      this.spans[token] = span;
      drawn.append(span);
    }
    return drawn;
  }

  paint(quantity, layer, from = 0, end = this.data.total) {
    Object.assign(this, { quantity, layer });
    const { data, spans } = this, steps = data.steps(quantity, layer);
    for (let token = from; token < end; token++) {
      const span = spans[token];
      if (!span) continue;
      const step = steps[token];
      const marks = [step === SINK ? "l2-sink" : step === NONE ? "" : `l2-c${step}`];
      if (!span.textContent) marks.push("l2-part");
      const fired = data.events.get(token)?.filter((event) => event.fired);
      if (fired?.length) marks.push(fired.some((event) => event.layer === layer) ? "l2-event" : "l2-event-else");
      if (this.hits.has(token)) marks.push("l2x-hit");
      span.className = marks.join(" ").trim();
    }
  }

  // The places of a text, as [first, last] tokens, in every sequence that is shown; they are marked.
  find(wanted, isShown) {
    const old = this.hits;
    const places = [];
    this.hits = new Set();
    const needle = wanted.toLowerCase();
    for (const sequence of needle ? this.data.sequences.filter(isShown) : []) {
      sequence.haystack ??= Text.#haystack(sequence.tokens);
      const { text, starts } = sequence.haystack;
      let token = 0;
      for (let at = text.indexOf(needle); at >= 0; at = text.indexOf(needle, at + needle.length)) {
        while (starts[token + 1] <= at) token++;
        let last = token;
        while (starts[last + 1] < at + needle.length) last++;
        places.push([sequence.start + token, sequence.start + last]);
        for (let k = token; k <= last; k++) this.hits.add(sequence.start + k);
      }
    }
    if (old.size || this.hits.size) this.paint(this.quantity, this.layer);
    return places;
  }

  static #haystack(tokens) {
    const lower = tokens.map((text) => (/^·+$/.test(text) ? " ".repeat(text.length) : text.toLowerCase()));
    const starts = [0];
    for (const text of lower) starts.push(starts.at(-1) + text.length);
    return { text: lower.join(""), starts };
  }

  filter(isShown) {
    this.data.sequences.forEach((one) => this.cells[one.index].forEach((cell) => { cell.hidden = !isShown(one); }));
    this.items.forEach(({ members, node }) => { node.hidden = !members.some(isShown); });
  }
}
