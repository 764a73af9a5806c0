// Draws each figure of a page from the JSON inside of it, the first at once; keeps figures as SVG and PNG; fits them to paper.
(() => {
  const CONFIG = {
    displaylogo: false,
    responsive: true,
    showSendToCloud: false, // which would upload the figure
    plotlyServerURL: "",
    modeBarButtons: [["resetScale2d"]],
  };
  // Pixels of a page of text: words in a figure are printed as large as those around it, and two figures fit a page.
  const PAPER = { width: 700, height: 350, most: 420 };
  const read = (figure) => JSON.parse(figure.querySelector(".l2-drawing").textContent);

  // A data URL of a figure as it is printed, whatever the page looks like.
  const picture = ({ figure, paper, scale }, format) =>
    Plotly.toImage({ data: figure.data, layout: { ...figure.layout, ...paper } }, {
      format, width: paper.width, height: paper.height, scale: format === "png" ? scale : 1,
    });

  const keep = async (figure, format) => {
    const link = document.createElement("a");
    link.href = await picture(read(figure), format);
    link.download = `${figure.dataset.file}.${format}`;
    link.click();
  };

  // Printing makes the drawing as narrow as the paper: with a view box it shrinks instead of being cut.
  const fit = (place) => {
    for (const svg of place.querySelectorAll(".main-svg")) {
      svg.setAttribute("viewBox", `0 0 ${svg.getAttribute("width")} ${svg.getAttribute("height")}`);
    }
  };

  const draw = (figure) => {
    const place = figure.querySelector(".l2-plot");
    if (place.childElementCount) return;
    const { data, layout } = read(figure).figure;
    Plotly.newPlot(place, data, { autosize: true, ...layout }, CONFIG);
    place.on("plotly_afterplot", () => fit(place));
    fit(place);
  };

  const figures = [], all = [];

  // Of every figure that is new here: its place, and what keeps it.
  const find = () => {
    for (const element of document.querySelectorAll(".l2-figure:not(.l2-live)")) {
      const place = element.querySelector(".l2-plot");
      const { figure: { layout }, paper } = read(element);
      element.classList.add("l2-live");
      place.style.height = `${paper.height}px`; // no later figure moves what is being read
      place.style.minWidth = `${layout.meta?.min_width ?? 0}px`;
      for (const button of element.querySelectorAll(".l2-keep button")) {
        button.hidden = false;
        button.addEventListener("click", () => keep(element, button.dataset.format));
      }
      figures.push(element);
      all.push(element);
    }
  };

  const next = () => {
    if (!figures.length) return;
    draw(figures.shift());
    setTimeout(next);
  };

  const wake = () => {
    find();
    next();
  };

  const begin = () => {
    const resize = (size) => {
      for (const element of all) {
        const place = element.querySelector(".l2-plot");
        for (const _ of [1, 2]) Plotly.relayout(place, size(read(element).paper)); // the second time around a legend's new height
      }
    };
    addEventListener("beforeprint", () => {
      figures.splice(0).forEach(draw);
      resize(({ height }) => ({ autosize: false, width: PAPER.width, height: height > PAPER.most ? height : Math.min(height, PAPER.height) }));
    });
    addEventListener("afterprint", () => resize(({ height }) => ({ autosize: true, width: null, height })));
    wake();
  };

  window.l2Figures = { picture, wake }; // a notebook has figures that come later
  if (document.readyState === "loading") addEventListener("DOMContentLoaded", begin);
  else begin();
})();
