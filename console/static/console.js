// What the pages do beyond links and forms: times in the viewer's zone, charts, and a job's states as they come.
"use strict";

const lang = document.documentElement.lang;
const shortTime = new Intl.DateTimeFormat(lang, { dateStyle: "medium", timeStyle: "short" });

function writeTimes(root) {
  for (const element of root.querySelectorAll("time[datetime]")) {
    element.textContent = shortTime.format(new Date(element.dateTime));
  }
}

// A chart is drawn from its table, so that both say the same.
function drawCharts(root) {
  const style = getComputedStyle(document.documentElement);
  const color = (name) => {
    // A canvas knows no light-dark(): the browser resolves it in an element.
    const probe = document.createElement("span");
    probe.style.color = `var(${name})`;
    document.body.append(probe);
    const value = getComputedStyle(probe).color;
    probe.remove();
    return value;
  };
  for (const figure of root.querySelectorAll("figure.chart")) {
    const place = figure.querySelector(".plot");
    if (place.childElementCount) continue;
    const rows = [...figure.querySelectorAll("tbody tr")].map((row) => [...row.cells].map((cell) => Number(cell.textContent)));
    const axis = (label) => ({
      label, stroke: color("--quiet"), grid: { stroke: color("--line"), width: 1 }, ticks: { stroke: color("--line") },
      font: `12px ${style.fontFamily}`, labelFont: `12px ${style.fontFamily}`,
    });
    const few = rows.length < 20;
    new uPlot(
      {
        width: figure.clientWidth,
        height: 240,
        scales: { x: { time: false } },
        legend: { show: false },
        cursor: { show: false },
        // Steps and epochs are counted.
        axes: [{ ...axis(figure.dataset.x), incrs: [1, 2, 5].flatMap((n) => [n, 10 * n, 100 * n, 1e3 * n, 1e4 * n]).sort((a, b) => a - b) }, { ...axis(figure.dataset.y), size: 60 }],
        series: [{}, { stroke: color("--accent"), width: 2, points: { show: few, size: 7, fill: color("--accent") } }],
      },
      [rows.map((row) => row[0]), rows.map((row) => row[1])],
      place,
    );
  }
}

function redrawCharts() {
  for (const place of document.querySelectorAll("figure.chart .plot")) place.replaceChildren();
  drawCharts(document);
}

// Statuses come as server-sent events; each has the part of the page fetched anew. The browser connects again by itself,
// and says which one it saw last.
function followJob(element) {
  const lost = document.getElementById("lost");
  const source = new EventSource(element.dataset.events);
  let seen = new Date();
  source.addEventListener("open", () => { lost.hidden = true; });
  source.addEventListener("error", () => {
    lost.querySelector("time").textContent = shortTime.format(seen);
    lost.hidden = false;
  });
  source.addEventListener("status", (event) => {
    seen = new Date();
    element.dispatchEvent(new CustomEvent("changed"));
    if (["completed", "rejected", "failed", "cancelled"].includes(JSON.parse(event.data).state)) {
      source.close();
      lost.hidden = true;
    }
  });
}

function prepare(root) {
  writeTimes(root);
  drawCharts(root);
}

document.addEventListener("DOMContentLoaded", () => {
  prepare(document);
  for (const element of document.querySelectorAll("[data-events]")) followJob(element);
});
document.addEventListener("htmx:after:swap", () => prepare(document));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redrawCharts);
let resized;
addEventListener("resize", () => { clearTimeout(resized); resized = setTimeout(redrawCharts, 200); });
