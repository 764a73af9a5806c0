// Reads what Python packed (packing.py, payload.py): tokens, labels, events and values, all sequences one after the other.

const FORMAT = 1, STEPS = 32, MANTISSAS = 10000, INFINITE = 0xfffe, MISSING = 0xffff, SIGN = 0x8000;
const NONE = -1, SINK = -2; // instead of a step of the scale

const bytesOf = (base64) => Uint8Array.from(atob(base64.trim()), (letter) => letter.charCodeAt(0));

async function inflate(bytes) {
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

// Four digits, as Python shows them: 231.4, 25,090.
function digits(value) {
  if (Number.isNaN(value)) return "not measured";
  const rounded = Number(value.toPrecision(4));
  return Math.abs(rounded) >= 1000 ? rounded.toLocaleString("en-US", { maximumFractionDigits: 0 }) : String(rounded);
}

// Codes of one quantity, [row, token]; `value` undoes `pack`.
class Values {
  constructor({ name, label, layers, tops, signed }, high, low, total) {
    Object.assign(this, { name, label, layers, high, low, total, signed });
    this.lowest = tops.map((top) => top - (signed ? 2 : 5) - 3);
  }

  row(layer) { return this.layers.length ? this.layers.indexOf(layer) : 0; }

  value(layer, token) {
    const row = this.row(layer);
    if (row < 0) return NaN;
    const at = row * this.total + token;
    let code = (this.high[at] << 8) | this.low[at];
    if (code === MISSING) return NaN;
    if (code === INFINITE) return Infinity;
    const sign = this.signed && code & SIGN ? -1 : 1;
    if (this.signed) code &= ~SIGN;
    return sign * (code % MANTISSAS) * 10 ** (Math.floor(code / MANTISSAS) + this.lowest[row]);
  }
}

class Data {
  constructor(bytes) {
    const size = new DataView(bytes.buffer, bytes.byteOffset).getUint32(0, true);
    Object.assign(this, JSON.parse(new TextDecoder().decode(bytes.subarray(4, 4 + size))));
    if (this.format !== FORMAT) throw new Error(`format ${this.format}, this module draws ${FORMAT}`);
    this.total = 0;
    this.sequences.forEach((sequence, index) => {
      Object.assign(sequence, { index, start: this.total, length: sequence.tokens.length, breaks: new Map(sequence.breaks) });
      this.total += sequence.length;
    });
    this.owner = new Uint32Array(this.total);
    for (const { start, length, index } of this.sequences) this.owner.fill(index, start, start + length);
    this.sinks = new Set(this.sinks);
    this.scales = new Map();
    this.quantities = this.#quantities(bytes.subarray(4 + size));
    this.#readEvents();
  }

  #quantities(planes) {
    let at = 0;
    const take = (n) => planes.subarray(at, (at += n));
    const found = this.quantities.map((quantity) => {
      const n = Math.max(1, quantity.layers.length) * this.total;
      return new Values(quantity, take(n), take(n), this.total);
    });
    if (this.compact) return found;
    const [norm] = found, { layers } = norm, row = (layer) => norm.row(layer);
    const ratio = {
      name: "ratio", label: "L2 norm over the layer’s median", layers, row,
      value: (layer, token) => norm.value(layer, token) / (this.medians[row(layer)] || NaN),
    };
    const derived = [norm, ratio];
    this.#readBlocks();
    if (this.partner.some((token) => token >= 0)) {
      derived.push({
        name: "change", label: "L2 norm over that of the same token in the first sequence", layers, row,
        value: (layer, token) =>
          this.partner[token] < 0 ? NaN : norm.value(layer, token) / (norm.value(layer, this.partner[token]) || NaN),
      });
    }
    return [...derived, ...found.slice(1)];
  }

  // Token of the first sequence of the item that each token stands for, -1 for none; and back, by token of the first.
  #readBlocks() {
    this.partner = new Int32Array(this.total).fill(-1);
    this.partners = new Map();
    const first = new Map();
    for (const sequence of this.sequences) {
      if (!first.has(sequence.item)) first.set(sequence.item, sequence);
      const base = first.get(sequence.item);
      for (const [a, b, n] of sequence.blocks) {
        for (let k = 0; k < n && a + k < base.length && b + k < sequence.length; k++) {
          const [one, other] = [base.start + a + k, sequence.start + b + k];
          this.partner[other] = one;
          this.partners.set(one, [...(this.partners.get(one) ?? []), other]);
        }
      }
    }
  }

  #readEvents() {
    this.events = new Map();
    for (const { start, events } of this.sequences) {
      for (const [position, layer, name, decision, fired, before, after] of events) {
        const token = start + position;
        if (!this.events.has(token)) this.events.set(token, []);
        this.events.get(token).push({ layer, name, decision, fired, before, after });
      }
    }
  }

  quantity(name) { return this.quantities.find((one) => one.name === name) ?? this.quantities[0]; }

  sequence(token) { return this.sequences[this.owner[token]]; }

  position(token) { return token - this.sequence(token).start; }

  text(token) { return this.sequence(token).tokens[this.position(token)]; }

  segment(token) {
    let left = this.position(token);
    return this.sequence(token).runs.find(([, n]) => (left -= n) < 0)?.[0] ?? "";
  }

  isSink(layer, token) { return this.sinks.has(this.layers.indexOf(layer) * this.total + token); }

  // Tokens that mean the same in the other sequences of the item.
  counterparts(token) {
    if (!this.partner) return [];
    const first = this.partner[token] < 0 ? token : this.partner[token];
    return [first, ...(this.partners.get(first) ?? [])].filter((other) => other !== token);
  }

  // Least and greatest value of what is no sink, over all sequences; null where there is none.
  scale(quantity, layer) {
    const key = `${quantity.name} ${layer}`;
    if (!this.scales.has(key)) {
      let low = Infinity, high = -Infinity;
      for (let token = 0; token < this.total; token++) {
        const value = quantity.value(layer, token);
        if (!Number.isFinite(value) || this.isSink(layer, token)) continue;
        if (value < low) low = value;
        if (value > high) high = value;
      }
      this.scales.set(key, low <= high ? [low, high] : null);
    }
    return this.scales.get(key);
  }

  place(quantity, layer, value) {
    const scale = this.scale(quantity, layer);
    if (!scale || Number.isNaN(value)) return NaN;
    return scale[1] > scale[0] ? Math.min(1, Math.max(0, (value - scale[0]) / (scale[1] - scale[0]))) : 0;
  }

  step(quantity, layer, token) {
    if (this.isSink(layer, token)) return SINK;
    const place = this.place(quantity, layer, quantity.value(layer, token));
    return Number.isNaN(place) ? NONE : Math.round(place * (STEPS - 1));
  }
}
