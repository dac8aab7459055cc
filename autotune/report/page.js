"use strict";
// Draws figures when they come into view, and shows one shape at a time in the panel.
(() => {
  const NARROW = 480; // CSS pixels
  const CONFIG = {
    responsive: true,
    displaylogo: false,
    displayModeBar: matchMedia("(hover: hover)").matches ? "hover" : false,
    modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"],
  };
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const panel = document.getElementById("panel");
  const choice = document.getElementById("choice");
  const numbers = Array.from(choice.options, (option) => Number(option.value));
  const parsed = new Map();

  // ---------------------------------------------------------------- figures

  /** The figures of one device or shape; the last few are kept, as parsing takes time. */
  function figuresOf(store) {
    if (!parsed.has(store)) {
      if (parsed.size > 4) parsed.delete(parsed.keys().next().value);
      parsed.set(store, JSON.parse(document.getElementById(store).textContent));
    }
    return parsed.get(store);
  }

  /** The layout of a figure in the colours of the page. */
  function themed(layout) {
    const style = getComputedStyle(document.documentElement);
    const colour = (name) => style.getPropertyValue(name).trim();
    const page = structuredClone(layout);
    page.font = { family: getComputedStyle(document.body).fontFamily, size: 13, color: colour("--ink") };
    page.paper_bgcolor = colour("--paper");
    page.plot_bgcolor = colour("--paper");
    for (const name of Object.keys(page).filter((key) => /^[xy]axis\d*$/.test(key))) {
      const lines = { gridcolor: colour("--grid"), zerolinecolor: colour("--grid"), linecolor: colour("--line") };
      Object.assign(page[name], lines);
      if (page[name].title) page[name].title.font = { size: 13 };
    }
    return page;
  }

  /** The traces, without colour bars where these would take a third of the width. */
  function fitting(data, plot) {
    if (plot.parentElement.clientWidth >= NARROW) return data;
    return data.map((trace) => (trace.colorbar ? { ...trace, showscale: false } : trace));
  }

  function draw(plot) {
    const figure = plot.dataset.store && figuresOf(plot.dataset.store)[plot.dataset.figure];
    if (!figure || !plot.isConnected) return;
    Plotly.react(plot, fitting(figure.data, plot), themed(figure.layout), CONFIG);
    if (figure.opens && !plot.dataset.drawn) {
      plot.on("plotly_click", (event) => {
        const [row, column] = event.points[0].pointIndex;
        if (figure.opens[row][column]) location.hash = `shape-${figure.opens[row][column]}`;
      });
    }
    plot.dataset.drawn = "yes";
  }

  const seen = new IntersectionObserver(
    (entries) => {
      for (const entry of entries.filter((each) => each.isIntersecting)) {
        seen.unobserve(entry.target);
        setTimeout(draw, 0, entry.target); // one at a time: the first figure appears before the last is drawn
      }
    },
    { rootMargin: "400px" },
  );

  function drawAgain() {
    for (const plot of document.querySelectorAll("div.plot[data-drawn]")) draw(plot);
  }

  // ---------------------------------------------------------------- one shape

  function open(number) {
    for (const plot of panel.querySelectorAll("div.plot")) {
      seen.unobserve(plot);
      if (plot.dataset.drawn) Plotly.purge(plot);
    }
    panel.replaceChildren(document.getElementById(`template-${number}`).content.cloneNode(true));
    choice.value = String(number);
    for (const row of document.querySelectorAll("tr.chosen")) row.classList.remove("chosen");
    document.querySelector(`a[href="#shape-${number}"]`)?.closest("tr").classList.add("chosen");
    for (const plot of panel.querySelectorAll("div.plot")) {
      plot.dataset.store = `shape-figures-${number}`;
      seen.observe(plot);
    }
  }

  function openFromAddress() {
    const match = /^#shape-(\d+)$/.exec(location.hash);
    const number = match ? Number(match[1]) : 0;
    if (!numbers.includes(number)) return false;
    open(number);
    document.getElementById("one").scrollIntoView();
    return true;
  }

  function step(by) {
    const at = numbers.indexOf(Number(choice.value)) + by;
    location.hash = `shape-${numbers[(at + numbers.length) % numbers.length]}`;
  }

  choice.addEventListener("change", () => { location.hash = `shape-${choice.value}`; });
  document.getElementById("previous").addEventListener("click", () => step(-1));
  document.getElementById("next").addEventListener("click", () => step(1));

  // ---------------------------------------------------------------- tables

  function keyOf(row, column) {
    const cell = row.cells[column];
    const value = cell.dataset.value;
    return value === undefined ? cell.textContent.trim() : value === "" ? -Infinity : Number(value);
  }

  function sort(table, column, header) {
    const ascending = header.getAttribute("aria-sort") !== "ascending";
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    header.setAttribute("aria-sort", ascending ? "ascending" : "descending");
    const compare = (a, b) => (a < b ? -1 : a > b ? 1 : 0);
    const rows = Array.from(table.tBodies[0].rows);
    rows.sort((a, b) => compare(keyOf(a, column), keyOf(b, column)) * (ascending ? 1 : -1));
    table.tBodies[0].append(...rows);
  }

  for (const table of document.querySelectorAll("table.sortable")) {
    Array.from(table.tHead.rows[0].cells).forEach((header, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.title = "Sort";
      button.append(...header.childNodes);
      button.addEventListener("click", () => sort(table, column, header));
      header.append(button);
    });
  }

  // ---------------------------------------------------------------- start

  addEventListener("hashchange", openFromAddress);
  addEventListener("beforeprint", () => document.querySelectorAll("div.plot").forEach(draw));
  dark.addEventListener("change", drawAgain);
  for (const plot of document.querySelectorAll("div.plot")) seen.observe(plot);
  if (!openFromAddress() && numbers.length) open(numbers[0]);
})();
