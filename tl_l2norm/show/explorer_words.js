// What the legend and the values of a token say, and where.

function fillLegend(legend, data, quantity, layer) {
  const where = quantity.layers.length ? (data.compact ? `after layer ${layer}` : `layer ${layer}`) : "";
  const scale = data.scale(quantity, layer), sinks = data.sinksAt(layer);
  const part = (className, text) => {
    const made = make("span", "l2-legend");
    made.append(make("i", className), ` ${text}`);
    legend.append(made);
  };
  legend.replaceChildren(make("span", "", [quantity.label, where, data.model].filter(Boolean).join(", ")));
  if (scale) {
    const shown = make("span", "l2-legend"), ramp = make("span", "l2-ramp");
    for (let i = 0; i < STEPS; i++) ramp.append(make("i", `l2-c${i}`));
    shown.append(`${digits(scale[0])} `, ramp, ` ${digits(scale[1])}`);
    legend.append(shown);
  } else legend.append(make("span", "", quantity.row(layer) ? "nothing to colour" : "not recorded at this layer"));
  let n = 0, greatest = -Infinity;
  for (let token = 0; token < data.total; token++) {
    if (!sinks[token]) continue;
    n += 1;
    greatest = Math.max(greatest, quantity.value(layer, token));
  }
  const norm = quantity.name === "norm" ? `, norm up to ${digits(greatest)}` : "";
  if (n) part("l2-sink", `${n === 1 ? "an attention sink" : `${n} attention sinks`}${norm}, off the scale`);
  if (data.events.size) part("l2-event", "an intervention fired here");
}

// The value, what is near it, where it is, and what else there is to say of a token.
function notesOf(data, quantity, token, layer) {
  const [norm, ratio] = data.quantities, of = (one) => digits(one.value(layer, token));
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
function placeTip({ tip, root, frame, hover, text }) {
  const span = hover >= 0 ? text.spans[hover] : null;
  tip.hidden = !span;
  if (!span) return;
  const [outer, inner, view] = [root, span, frame].map((node) => node.getBoundingClientRect());
  if (inner.bottom < view.top || inner.top > view.bottom) tip.hidden = true;
  const left = Math.max(4, Math.min(inner.left - outer.left, outer.width - tip.offsetWidth - 4));
  const below = inner.bottom - outer.top + 6, above = inner.top - outer.top - tip.offsetHeight - 6;
  tip.style.left = `${left}px`;
  tip.style.top = `${above > 0 && inner.bottom + tip.offsetHeight + 10 > innerHeight ? above : below}px`;
}
