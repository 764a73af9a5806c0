// The heatmap (layers upwards, tokens along) and beside it the curve of one token, which has the heatmap's layers as its axis.

const GUTTER = 30, FOOT = 18;

const svg = (name, attributes = {}, text = "") => {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.textContent = text;
  return made;
};

class Heatmap {
  constructor(canvas, data) {
    Object.assign(this, { canvas, data, image: null });
    this.context = canvas.getContext("2d");
  }

  get width() { return this.canvas.clientWidth - GUTTER; }

  get height() { return this.canvas.clientHeight - FOOT; }

  // How many tokens share a column: the greatest of them is shown, so that no spike is lost.
  get pooled() { return Math.max(1, Math.ceil(this.sequence.length / Math.max(1, Math.floor(this.width)))); }

  draw(sequence, quantity, inks) {
    Object.assign(this, { sequence, quantity, inks });
    const { data, pooled } = this, { layers } = data;
    const columns = Math.ceil(sequence.length / pooled);
    const image = new ImageData(Math.max(1, columns), layers.length);
    layers.forEach((layer, row) => {
      const steps = data.steps(quantity, layer);
      for (let column = 0; column < columns; column++) {
        let step = NONE;
        for (let k = column * pooled; k < Math.min(sequence.length, (column + 1) * pooled); k++) {
          const own = steps[sequence.start + k];
          if (own > step || step === NONE) step = own;
        }
        if (step === NONE) continue;
        image.data.set(this.inks.of(step), 4 * ((layers.length - 1 - row) * image.width + column));
      }
    });
    this.image = Object.assign(document.createElement("canvas"), { width: image.width, height: image.height });
    this.image.getContext("2d").putImageData(image, 0, 0);
    this.columns = sequence.length / pooled;
  }

  // The image, and over it events, the chosen layer and the token under the pointer.
  point(layer, token) {
    const { canvas, context, width, height, inks, data, sequence } = this, ratio = devicePixelRatio || 1;
    canvas.width = Math.round(canvas.clientWidth * ratio);
    canvas.height = Math.round(canvas.clientHeight * ratio);
    context.scale(ratio, ratio);
    context.font = "11px system-ui, sans-serif";
    if (!this.image || width <= 0) return;
    context.imageSmoothingEnabled = false;
    context.drawImage(this.image, GUTTER, 0, (width * this.image.width) / this.columns, height);
    this.#events();
    this.#segments();
    const rows = data.layers.length, of = height / rows;
    const top = (index) => height - (index + 1) * of;
    const at = data.layers.indexOf(layer);
    const labels = new Set([at]);
    for (const index of [0, rows - 1]) if (Math.abs(index - at) * of > 12) labels.add(index);
    context.textAlign = "right";
    context.textBaseline = "middle";
    for (const index of labels) {
      context.fillStyle = index === at ? inks.text : inks.soft;
      context.fillText(data.layers[index], GUTTER - 7, Math.min(height - 6, Math.max(6, top(index) + of / 2)));
    }
    context.strokeStyle = inks.text;
    context.lineWidth = 1;
    context.strokeRect(GUTTER + 0.5, Math.round(top(at)) + 0.5, width - 1, Math.max(2, Math.round(of) - 1));
    if (token >= 0 && data.sequence(token) === sequence) {
      const one = width / sequence.length;
      context.strokeRect(Math.round(this.x(data.position(token))) + 0.5, 0.5, Math.max(2, Math.round(one) - 1), height - 1);
    }
  }

  x(position) { return GUTTER + (this.width * position) / this.sequence.length; }

  #events() {
    const { context, data, height, inks, sequence } = this, of = height / data.layers.length;
    context.fillStyle = inks.accent;
    const size = Math.max(2, Math.min(5, of - 1, this.width / sequence.length));
    for (const [position, layer, , , fired] of sequence.events) {
      const index = data.layers.indexOf(layer);
      if (!fired || index < 0) continue;
      context.fillRect(this.x(position + 0.5) - size / 2, height - (index + 0.5) * of - size / 2, size, size);
    }
  }

  #segments() {
    const { context, height, inks, sequence } = this;
    let from = 0;
    context.textAlign = "left";
    context.textBaseline = "alphabetic";
    for (const [name, n] of sequence.runs) {
      const [left, right] = [this.x(from), this.x(from + n)];
      context.fillStyle = inks.soft;
      context.fillRect(left, height + 3, Math.max(1, right - left - 2), 1);
      if (context.measureText(name).width < right - left) context.fillText(name, left, height + FOOT - 3);
      from += n;
    }
  }

  // Layer and token under a place on the canvas; null beside it.
  under(x, y) {
    const { data, sequence } = this;
    const column = Math.floor(((x - GUTTER) / this.width) * sequence.length);
    const row = data.layers.length - 1 - Math.floor((y / this.height) * data.layers.length);
    if (column < 0 || column >= sequence.length || row < 0 || row >= data.layers.length) return null;
    return { layer: data.layers[row], token: sequence.start + column };
  }
}

class Curve {
  constructor(frame, data) { Object.assign(this, { frame, data }); }

  // Of a token and its counterparts over all layers, beside the median of each layer.
  draw(quantity, layer, token) {
    const { frame, data } = this, { clientWidth: width, clientHeight } = frame, height = clientHeight - FOOT;
    const layers = quantity.layers.length ? data.layers.filter((one) => quantity.layers.includes(one)) : [];
    const lines = [];
    if (quantity.name === "norm") lines.push(["l2x-median", layers.map((one) => data.medians[data.layers.indexOf(one)])]);
    if (quantity.name === "ratio") lines.push(["l2x-median", layers.map(() => 1)]);
    if (token >= 0) {
      for (const other of data.counterparts(token)) lines.push(["l2x-other", layers.map((one) => quantity.value(one, other))]);
      lines.push(["l2x-own", layers.map((one) => quantity.value(one, token))]);
    }
    const values = lines.flatMap(([, line]) => line).filter(Number.isFinite);
    frame.replaceChildren();
    if (!values.length || width <= 0) return;
    const low = Math.min(0, ...values), high = Math.max(...values, low + 1e-12);
    const x = (value) => 6 + ((width - 12) * (value - low)) / (high - low);
    const y = (one) => height - ((data.layers.indexOf(one) + 0.5) * height) / data.layers.length;
    frame.append(svg("line", { class: "l2x-axis", x1: 0, x2: width, y1: height + 3.5, y2: height + 3.5 }));
    frame.append(svg("line", { class: "l2x-level", x1: 0, x2: width, y1: y(layer), y2: y(layer) }));
    for (const [name, line] of lines) {
      const points = line.map((value, i) => Number.isFinite(value) && `${x(value).toFixed(1)},${y(layers[i]).toFixed(1)}`);
      frame.append(svg("polyline", { class: name, points: points.filter(Boolean).join(" ") }));
      const own = line[layers.indexOf(layer)];
      if (name !== "l2x-median" && Number.isFinite(own)) {
        frame.append(svg("circle", { class: name, cx: x(own), cy: y(layer), r: 3 }));
      }
    }
    frame.append(svg("text", { x: 6, y: height + FOOT - 3 }, digits(low)));
    frame.append(svg("text", { x: width - 6, y: height + FOOT - 3, "text-anchor": "end" }, digits(high)));
  }
}
