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

// Values of one quantity, decoded layer by layer when they are first wanted: `row(layer)` is [token], null where it has none.
class Values {
  constructor(name, label, layers, decode) {
    Object.assign(this, { name, label, layers, decode, rows: new Map() });
  }

  row(layer) {
    const index = this.layers.length ? this.layers.indexOf(layer) : 0;
    if (index < 0) return null;
    if (!this.rows.has(index)) this.rows.set(index, this.decode(index));
    return this.rows.get(index);
  }

  value(layer, token) { return this.row(layer)?.[token] ?? NaN; }
}

// Undoes `pack` for one row: its high and low bytes, the decade of its greatest value, and whether codes have a sign.
function unpacked(high, low, top, signed) {
  const lowest = top - (signed ? 2 : 5) - 3, powers = Array.from({ length: 7 }, (_, decade) => 10 ** (decade + lowest));
  return Float64Array.from(high, (byte, token) => {
    const code = (byte << 8) | low[token];
    if (code === MISSING) return NaN;
    if (code === INFINITE) return Infinity;
    const plain = signed ? code & ~SIGN : code, size = (plain % MANTISSAS) * powers[Math.floor(plain / MANTISSAS)];
    return signed && code & SIGN ? -size : size;
  });
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
    this.isSink = this.layers.map(() => new Uint8Array(this.total));
    for (const at of this.sinks) this.isSink[Math.floor(at / this.total)][at % this.total] = 1;
    [this.scales, this.log] = [new Map(), false];
    this.quantities = this.#quantities(bytes.subarray(4 + size));
    this.#readEvents();
  }

  #quantities(planes) {
    let at = 0;
    const take = (n) => planes.subarray(at, (at += n));
    const { total, medians } = this;
    const found = this.quantities.map(({ name, label, layers, tops, signed }) => {
      const n = Math.max(1, layers.length) * total, high = take(n), low = take(n);
      const part = (plane, row) => plane.subarray(row * total, (row + 1) * total);
      return new Values(name, label, layers, (row) => unpacked(part(high, row), part(low, row), tops[row], signed));
    });
    if (this.compact) return found;
    const [norm] = found, { layers } = norm;
    const derive = (name, label, of) =>
      new Values(name, label, layers, (row) => norm.row(layers[row]).map((value, token, all) => of(value, all, token, row)));
    const ratio = (value, all, token, row) => value / (medians[row] || NaN);
    const derived = [norm, derive("ratio", "L2 norm over the layer’s median", ratio)];
    this.#readBlocks();
    if (this.partner.some((token) => token >= 0)) {
      const label = "L2 norm over that of the same token in the first sequence";
      const change = (value, all, token) => (this.partner[token] < 0 ? NaN : value / (all[this.partner[token]] || NaN));
      derived.push(derive("change", label, change));
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

  // The sequence to look at: the given one, or the first that has values. What others are divided by has none.
  opening(quantity, layer, given) {
    const row = quantity.row(layer) ?? [], measured = ({ start, length }) => row.slice(start, start + length).some((value) => value === value);
    return [given, ...this.sequences].find(measured) ?? given;
  }

  quantity(name) { return this.quantities.find((one) => one.name === name) ?? this.quantities[0]; }

  sequence(token) { return this.sequences[this.owner[token]]; }

  position(token) { return token - this.sequence(token).start; }

  text(token) { return this.sequence(token).tokens[this.position(token)]; }

  segment(token) {
    let left = this.position(token);
    return this.sequence(token).runs.find(([, n]) => (left -= n) < 0)?.[0] ?? "";
  }

  sinksAt(layer) { return this.isSink[this.layers.indexOf(layer)]; }

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
      const values = quantity.row(layer) ?? [], sinks = this.sinksAt(layer);
      let low = Infinity, high = -Infinity;
      for (let token = 0; token < values.length; token++) {
        const value = values[token];
        if (!Number.isFinite(value) || sinks[token]) continue;
        if (value < low) low = value;
        if (value > high) high = value;
      }
      this.scales.set(key, low <= high ? [low, high] : null);
    }
    return this.scales.get(key);
  }

  // [token] steps of the scale, or SINK, or NONE; on a scale of logarithms if that is asked for and all values are over 0.
  steps(quantity, layer) {
    const values = quantity.row(layer), scale = this.scale(quantity, layer), sinks = this.sinksAt(layer);
    const steps = new Int8Array(this.total).fill(NONE);
    if (!values || !scale) return steps.map((none, token) => (sinks[token] ? SINK : none));
    const on = this.log && scale[0] > 0 ? Math.log : (value) => value;
    const low = on(scale[0]), extent = on(scale[1]) - low;
    for (let token = 0; token < this.total; token++) {
      if (sinks[token]) steps[token] = SINK;
      else if (!Number.isNaN(values[token])) {
        const place = extent > 0 ? (on(values[token]) - low) / extent : 0;
        steps[token] = Math.round(Math.min(1, Math.max(0, place)) * (STEPS - 1));
      }
    }
    return steps;
  }
}
