// One element for a page, one function for anywidget. The text that Python wrote into the element stays where this can't run;
// where it can, a shadow root takes its place, so that no style of the page reaches in and none of ours out.

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
      if (this.explorer || !source) return this.explorer?.attach?.();
      this.explorer = "on its way";
      try {
        this.explorer = await mount(this, bytesOf(source.textContent));
        if (!this.isConnected) this.explorer.detach();
      } catch (error) { // the text that is there stays
        console.warn(`tl_l2norm: the tokens stay as text: ${error.message}`);
      }
    }

    disconnectedCallback() { this.explorer?.detach?.(); }
  });
}

export default {
  async render({ model, el }) {
    const data = model.get("data"), host = make("div");
    el.append(host);
    const explorer = await mount(host, new Uint8Array(data.buffer, data.byteOffset, data.byteLength), model);
    return () => explorer.detach();
  },
};
