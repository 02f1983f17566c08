"use strict";
// Saves a figure of this page as SVG, PNG or csv: always in light colours, marked
// SIMULATED where the page is. Everything shown works without this script.
(() => {
  const root = document.documentElement;
  const isSimulated = "simulated" in root.dataset;
  const STYLES = ["fill", "fill-opacity", "stroke", "stroke-width", "stroke-opacity",
    "stroke-dasharray", "stroke-linecap", "stroke-linejoin", "font-size", "font-weight"];
  const SCALE = 2;
  root.classList.add("scripted");

  // The drawing as a file of its own: styles of the page become attributes.
  function standalone(svg) {
    root.dataset.theme = "light";
    const copy = svg.cloneNode(true);
    const shown = svg.querySelectorAll("*"), written = copy.querySelectorAll("*");
    shown.forEach((element, at) => {
      const style = getComputedStyle(element);
      for (const name of STYLES) written[at].setAttribute(name, style.getPropertyValue(name));
      written[at].removeAttribute("class");
    });
    const ink = getComputedStyle(root).getPropertyValue("--sim");
    delete root.dataset.theme;
    const [, , width, height] = svg.getAttribute("viewBox").split(" ");
    copy.setAttribute("width", width);
    copy.setAttribute("height", height);
    copy.setAttribute("font-family", "Helvetica, Arial, sans-serif");
    const paper = document.createElementNS(svg.namespaceURI, "rect");
    for (const [name, value] of [["width", width], ["height", height], ["fill", "#fff"]]) {
      paper.setAttribute(name, value);
    }
    copy.prepend(paper);
    if (isSimulated) {
      const mark = document.createElementNS(svg.namespaceURI, "text");
      for (const [name, value] of [["x", width - 18], ["y", 14], ["font-size", 12],
        ["font-weight", 700], ["text-anchor", "end"], ["fill", ink]]) {
        mark.setAttribute(name, value);
      }
      mark.textContent = "SIMULATED";
      copy.append(mark);
    }
    return new XMLSerializer().serializeToString(copy);
  }

  function pixels(svg, text) {
    return new Promise((done, failed) => {
      const url = URL.createObjectURL(new Blob([text], { type: "image/svg+xml" }));
      const image = new Image();
      image.onerror = failed;
      image.onload = () => {
        const canvas = document.createElement("canvas");
        const [, , width, height] = svg.getAttribute("viewBox").split(" ");
        canvas.width = SCALE * width;
        canvas.height = SCALE * height;
        canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
        URL.revokeObjectURL(url);
        canvas.toBlob((blob) => blob ? done(blob) : failed(new Error("no PNG")), "image/png");
      };
      image.src = url;
    });
  }

  async function content(figure, button) {
    const svg = figure.querySelector("svg");
    if (button.dataset.form === "csv") {
      const tables = figure.querySelectorAll("script");
      const text = JSON.parse(tables[button.dataset.table].textContent);
      return new Blob([text], { type: "text/csv" });
    }
    const text = standalone(svg);
    return button.dataset.form === "png"
      ? pixels(svg, text) : new Blob([text], { type: "image/svg+xml" });
  }

  async function save(button) {
    const figure = button.closest("figure");
    const blob = await content(figure, button);
    const link = document.createElement("a");
    link.href = URL.createObjectURL(blob);
    link.download = `servewatt-${isSimulated ? "SIMULATED-" : ""}${figure.dataset.name}` +
      `${button.dataset.suffix || ""}.${button.dataset.form}`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  }

  document.addEventListener("click", (event) => {
    const button = event.target.closest("button[data-form]");
    if (button) save(button);
  });
})();
