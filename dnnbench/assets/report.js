"use strict";
// Draws the plots from the JSON in the page, and sorts and filters its table. Texts go in as texts, never as HTML.
(() => {
  const FONT = { family: "system-ui, sans-serif", size: 12 };
  const CONFIG = { displayModeBar: false, displaylogo: false, showLink: false, doubleClick: false };
  const MARGIN = { l: 10, r: 12, t: 14, b: 10 };
  const AXIS = {
    automargin: true, fixedrange: true, zeroline: false, separatethousands: true, exponentformat: "none",
    ticklabelstandoff: 4,
  };
  const LEGEND_ROW_PX = 20;
  const TICK_PX = 110;
  const PRINTED_PX = 640;
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const places = [...document.querySelectorAll(".chart")];

  // A legend above the plot takes its room from nothing else: the plot grows by its rows.
  function size(figure, width) {
    const names = figure.data.filter((one) => one.name !== undefined && one.showlegend !== false).map((one) => one.name);
    const legend = names.length > 1 || figure.data.some((one) => one.showlegend === true);
    const longest = Math.max(0, ...names.map((name) => name.length)) * 6.6 + 60;
    const rows = legend ? Math.ceil(names.length / Math.max(1, Math.floor((width - 20) / longest))) : 0;
    const noted = (figure.layout.annotations || []).some((one) => one.yref === "paper");
    const top = MARGIN.t + rows * LEGEND_ROW_PX + (noted ? 18 : 0);
    return { width, height: figure.height + top - MARGIN.t, margin: { ...MARGIN, t: top }, showlegend: rows > 0 };
  }

  function layoutOf(figure, width) {
    const axes = {};
    for (const name of ["xaxis", "yaxis", "yaxis2"]) {
      if (name === "yaxis2" && !figure.layout.yaxis2) continue;
      axes[name] = { ...AXIS, ...figure.layout[name] };
      if (name === "xaxis") Object.assign(axes.xaxis, { tickangle: 0, nticks: Math.max(3, Math.floor(width / TICK_PX)) });
    }
    const legend = { orientation: "h", x: 0, xref: "container", y: 1, yref: "container", yanchor: "top", traceorder: "normal" };
    return {
      font: FONT, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", dragmode: false, hovermode: "closest",
      autosize: false, legend, ...figure.layout, ...axes, ...size(figure, width),
    };
  }

  async function draw() {
    for (const [index, place] of places.entries()) {
      await Plotly.newPlot(place, figures[index].data, layoutOf(figures[index], place.clientWidth), CONFIG);
      // Between plots, what is drawn is shown.
      await new Promise((done) => setTimeout(done));
    }
    document.documentElement.dataset.drawn = "all";
  }

  function fit(width) {
    for (const [index, place] of places.entries()) {
      const wanted = width || place.clientWidth;
      if (place.layout && wanted && wanted !== place.layout.width) Plotly.relayout(place, size(figures[index], wanted));
    }
  }

  function sort(table, header) {
    const headers = [...table.tHead.rows[0].cells];
    const column = headers.indexOf(header);
    const ascending = header.getAttribute("aria-sort") !== "ascending";
    for (const other of headers) other.setAttribute("aria-sort", "none");
    header.setAttribute("aria-sort", ascending ? "ascending" : "descending");
    const value = (row) => {
      const cell = row.cells[column];
      if (cell.dataset.value !== undefined) return Number(cell.dataset.value);
      return cell.classList.contains("number") ? null : cell.textContent;
    };
    const compare = (one, other) => {
      const [a, b] = [value(one), value(other)];
      // What is missing comes last, either way.
      if (a === null || b === null) return (a === null) - (b === null);
      const order = typeof a === "number" ? a - b : a.localeCompare(b, "en", { numeric: true });
      return ascending ? order : -order;
    };
    table.tBodies[0].append(...[...table.tBodies[0].rows].sort(compare));
  }

  function filter(table, words) {
    const wanted = words.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const row of table.tBodies[0].rows) {
      // Cells apart, so that no word is found across two of them.
      const told = [...row.cells].map((cell) => cell.textContent.toLowerCase()).join("\n");
      row.hidden = !wanted.every((word) => told.includes(word));
      shown += !row.hidden;
    }
    document.getElementById(`${table.id}-shown`).textContent = `${shown} of ${table.tBodies[0].rows.length} rows`;
  }

  for (const table of document.querySelectorAll("table.sortable")) {
    for (const header of table.tHead.rows[0].cells) {
      header.querySelector("button").addEventListener("click", () => sort(table, header));
    }
    const input = document.getElementById(`${table.id}-filter`);
    input.addEventListener("input", () => filter(table, input.value));
  }
  let waiting = 0;
  let printing = false;
  window.addEventListener("resize", () => {
    cancelAnimationFrame(waiting);
    // A frame that is drawn while it prints would have the screen's width.
    if (!printing) waiting = requestAnimationFrame(() => fit());
  });
  window.addEventListener("beforeprint", () => {
    cancelAnimationFrame(waiting);
    printing = true;
    fit(PRINTED_PX);
  });
  window.addEventListener("afterprint", () => {
    printing = false;
    fit();
  });
  if (places.length) draw();
  else document.documentElement.dataset.drawn = "all";
})();
