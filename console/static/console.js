// What the pages do beyond links and forms: times in the viewer's zone, charts, and a job's states as they come.
"use strict";

const lang = document.documentElement.lang;
// English has many ways to write a time: the viewer's own, where it is of the page's language.
const locale = navigator.languages.find((name) => name.split("-")[0] === lang) ?? lang;
const shortDay = new Intl.DateTimeFormat(locale, { month: "short", day: "numeric", timeZone: "UTC" });
const shortTime = new Intl.DateTimeFormat(locale, { dateStyle: "medium", timeStyle: "short" });

function writeTimes(root) {
  for (const element of root.querySelectorAll("time[datetime]")) {
    element.textContent = shortTime.format(new Date(element.dateTime));
  }
}

// Browsers have a clipboard on secure pages only.
function showCopyButtons(root) {
  if (!navigator.clipboard) return;
  for (const button of root.querySelectorAll("button.copy")) button.hidden = false;
}

async function copyText(button) {
  if (button.textContent === button.dataset.done) return;
  await navigator.clipboard.writeText(button.dataset.text);
  const [text, label] = [button.textContent, button.ariaLabel];
  button.textContent = button.ariaLabel = button.dataset.done;
  setTimeout(() => { [button.textContent, button.ariaLabel] = [text, label]; }, 2000);
}

// A chart is drawn from its table, so that both say the same.
function drawCharts(root) {
  // Without it, their tables are there.
  if (typeof uPlot === "undefined") return;
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
    if (figure.dataset.kind === "intervals") {
      drawIntervals(figure, place, color, style);
      continue;
    }
    const rows = [...figure.querySelectorAll("tbody tr")].map((row) => [...row.cells].map((cell) => cell.textContent));
    const isBars = figure.dataset.kind === "bars";
    const axis = (label) => ({
      label, stroke: color("--quiet"), grid: { stroke: color("--line"), width: 1 }, ticks: { stroke: color("--line") },
      font: `12px ${style.fontFamily}`, labelFont: `12px ${style.fontFamily}`,
    });
    const line = { stroke: color("--accent"), width: 2, points: { show: rows.length < 20, size: 7, fill: color("--accent") } };
    const bars = { fill: color("--accent"), paths: uPlot.paths.bars({ size: [0.8, 40] }), points: { show: false } };
    // Steps and epochs are counted.
    const counted = { incrs: [1, 2, 5].flatMap((n) => [n, 10 * n, 100 * n, 1e3 * n, 1e4 * n]).sort((a, b) => a - b) };
    place.plot = new uPlot(
      {
        width: figure.clientWidth,
        height: isBars ? 140 : 240,
        tzDate: (seconds) => uPlot.tzDate(new Date(seconds * 1e3), "Etc/UTC"),
        scales: { x: { time: isBars }, y: isBars ? { range: (_, low, high) => [0, high] } : {} },
        legend: { show: false },
        cursor: { show: isBars, points: { show: false }, y: false, drag: { x: true, setScale: false } },
        hooks: { setSelect: [(plot) => isBars && chooseDates(plot)] },
        axes: [isBars ? { ...axis(), values: (_, days) => days.map((day) => shortDay.format(day * 1e3)) } : { ...axis(figure.dataset.x), ...counted }, { ...axis(figure.dataset.y), size: 60 }],
        series: [{}, isBars ? bars : line],
      },
      [rows.map((row) => (isBars ? Date.parse(row[0]) / 1e3 : Number(row[0]))), rows.map((row) => Number(row[1]))],
      place,
    );
  }
}

// Versions one after the other, each with its interval; and hollow what each is compared with, or a line at nothing.
function drawIntervals(figure, place, color, style) {
  const rows = [...figure.querySelectorAll("tbody tr")];
  const columns = [...rows[0].cells].slice(1).map((_, at) => rows.map((row) => Number(row.cells[at + 1].textContent)));
  const [, low, high] = columns;
  const hasOther = columns.length > 3;
  const days = rows.map((row) => shortDay.format(new Date(row.dataset.at)));
  const font = `12px ${style.fontFamily}`;
  const axis = (label) => ({ label, stroke: color("--quiet"), font, labelFont: font, ticks: { stroke: color("--line") } });
  const points = (fill) => ({ show: true, size: 8, width: 2, stroke: color("--accent"), fill });
  const whiskers = (plot) => {
    const { ctx } = plot;
    ctx.save();
    ctx.strokeStyle = color("--quiet");
    ctx.lineWidth = 1.5 * devicePixelRatio;
    const cap = 4 * devicePixelRatio;
    for (let row = 0; row < rows.length; row += 1) {
      const [x, from, to] = [plot.valToPos(row, "x", true), plot.valToPos(low[row], "y", true), plot.valToPos(high[row], "y", true)];
      ctx.beginPath();
      ctx.moveTo(x, from); ctx.lineTo(x, to);
      ctx.moveTo(x - cap, from); ctx.lineTo(x + cap, from);
      ctx.moveTo(x - cap, to); ctx.lineTo(x + cap, to);
      ctx.stroke();
    }
    if (!hasOther) {
      const [left, zero] = [plot.bbox.left, plot.valToPos(0, "y", true)];
      ctx.strokeStyle = color("--ink");
      ctx.beginPath(); ctx.moveTo(left, zero); ctx.lineTo(left + plot.bbox.width, zero); ctx.stroke();
    }
    ctx.restore();
  };
  const shown = [...low, ...high, ...(hasOther ? columns[3] : [0])];
  const [least, most] = [Math.min(...shown), Math.max(...shown)];
  const room = 0.08 * (most - least || 1);
  // As many days as there is room for.
  const every = Math.ceil(rows.length / Math.max(1, Math.floor(figure.clientWidth / 80)));
  new uPlot(
    {
      width: figure.clientWidth,
      height: 240,
      scales: { x: { time: false, range: [-0.5, rows.length - 0.5] }, y: { range: [least - room, most + room] } },
      legend: { show: false },
      cursor: { show: false },
      hooks: { drawAxes: [whiskers] },
      axes: [
        { ...axis(figure.dataset.x), grid: { show: false }, splits: () => days.map((_, row) => row).filter((row) => row % every === 0), values: (_, splits) => splits.map((row) => days[row]) },
        { ...axis(figure.dataset.y), grid: { stroke: color("--line"), width: 1 }, size: 60 },
      ],
      series: [
        {},
        ...(hasOther ? [{ paths: () => null, points: points(color("--paper")) }] : []),
        { stroke: color("--accent"), width: hasOther ? 2 : 0, points: points(color("--accent")) },
      ],
    },
    [rows.map((_, row) => row), ...(hasOther ? [columns[3]] : []), columns[0]],
    place,
  );
}

// What the dates choose is marked; without dates nothing is.
function showDates() {
  const plot = document.querySelector("#days .plot")?.plot;
  if (!plot) return;
  const [start, end] = ["start", "end"].map((id) => Date.parse(document.getElementById(id).value) / 1e3);
  const { min, max } = plot.scales.x;
  const place = (at, other) => plot.valToPos(Number.isNaN(at) ? other : Math.min(Math.max(at - 43200, min), max), "x");
  const [left, right] = Number.isNaN(start) && Number.isNaN(end) ? [0, 0] : [place(start, min), place(end, max)];
  plot.setSelect({ left, width: Math.max(right - left, 0), top: 0, height: plot.over.clientHeight }, false);
}

// Of the bars that were dragged over.
function chooseDates(plot) {
  if (plot.select.width < 2 || !document.getElementById("days")) return;
  const days = plot.data[0];
  const at = (left) => days[plot.posToIdx(left)];
  const text = (seconds) => new Date(seconds * 1e3).toISOString().slice(0, 10);
  document.getElementById("start").value = text(at(plot.select.left));
  document.getElementById("end").value = text(at(plot.select.left + plot.select.width) + 86400);
  document.getElementById("start").dispatchEvent(new Event("change", { bubbles: true }));
}

function redrawCharts() {
  for (const place of document.querySelectorAll("figure.chart .plot")) place.replaceChildren();
  drawCharts(document);
  showDates();
}

// A page that has lost the server says when it last heard of it.
let heard = new Date();

function hear() {
  heard = new Date();
  document.getElementById("lost").hidden = true;
}

function lose() {
  const lost = document.getElementById("lost");
  lost.querySelector("time").textContent = shortTime.format(heard);
  lost.hidden = false;
}

// Statuses come as server-sent events; each has the part of the page fetched anew. The browser connects again by itself,
// and says which one it saw last.
function followJob(element) {
  const source = new EventSource(element.dataset.events);
  source.addEventListener("open", hear);
  source.addEventListener("error", lose);
  const refresh = () => element.dispatchEvent(new CustomEvent("changed"));
  // A state may last, and the page says how long it has so far.
  const minutely = setInterval(refresh, 60_000);
  source.addEventListener("status", (event) => {
    hear();
    refresh();
    if (!["completed", "rejected", "failed", "cancelled"].includes(JSON.parse(event.data).state)) return;
    source.close();
    clearInterval(minutely);
  });
}

// The form's own address has what differs from the defaults, so that it can be sent to somebody.
function followForm(form) {
  const isUnchanged = ({ value, dataset }) =>
    dataset?.default !== undefined && (value === dataset.default || (value !== "" && Number(value) === Number(dataset.default)));
  const changed = () => {
    const fields = new URLSearchParams();
    for (const [name, value] of new FormData(form)) {
      const field = form.elements[name];
      const isDefault = isUnchanged(field) || (name === "training.start" && value === "base");
      if (value && name !== "search" && !isDefault) fields.append(name, value);
    }
    history.replaceState(null, "", `${location.pathname}?${fields}`);
    showChanged();
  };
  const showChanged = () => {
    for (const element of form.querySelectorAll("[data-of]")) {
      element.hidden = isUnchanged(form.elements[element.dataset.of]);
    }
    form.querySelector(".reset-dates").hidden = !form.elements.start.value && !form.elements.end.value;
    showDates();
  };
  const set = (field, value) => {
    field.value = value;
    field.dispatchEvent(new Event("change", { bubbles: true }));
  };
  const edited = ({ target }) => {
    if (target.name === "search") return;
    // What was wrong with it was of what stood there before.
    document.getElementById(`error-${target.name}`)?.replaceChildren();
    target.removeAttribute("aria-invalid");
    changed();
    form.dispatchEvent(new Event("edited"));
  };
  form.addEventListener("input", edited);
  form.addEventListener("change", edited);
  form.addEventListener("click", ({ target }) => {
    if (target.matches(".reset")) set(form.elements[target.dataset.of], form.elements[target.dataset.of].dataset.default);
    if (!target.matches(".reset-dates")) return;
    form.elements.start.value = "";
    set(form.elements.end, "");
    form.elements.start.focus();
  });
  // The Enter key in a field starts no training.
  form.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && event.target.matches("input, select")) event.preventDefault();
  });
  showChanged();
}

// A keyboard moves the slider step by step, and each step brings a new one.
let isSliding = false;

function showPreview(form, preview) {
  for (const place of form.querySelectorAll(".hints")) place.replaceChildren();
  for (const template of preview.querySelectorAll("template[data-hint]")) {
    const isSaid = document.getElementById(template.dataset.hint.replace("hint-", "error-"))?.childElementCount;
    if (!isSaid) document.getElementById(template.dataset.hint)?.replaceChildren(template.content.cloneNode(true));
  }
  const examples = preview.querySelector("[data-examples]");
  const button = document.getElementById("submit");
  if (button) button.textContent = !examples ? button.dataset.plain : button.dataset.on
    .replace("{model}", form.elements.model.value)
    .replace("{examples}", Number(examples.dataset.examples).toLocaleString(lang));
  document.getElementById("told").textContent = preview.querySelector(".lead, .error")?.textContent.replace(/\s+/g, " ") ?? "";
  const slider = preview.querySelector("#threshold");
  if (!slider) return;
  slider.parentElement.hidden = false;
  const field = form.elements["dataset.exclusion_threshold"];
  slider.addEventListener("input", () => markAll(slider));
  if (isSliding && document.activeElement === document.body) slider.focus({ preventScroll: true });
  slider.addEventListener("change", () => {
    isSliding = document.activeElement === slider;
    field.value = slider.value;
    field.dispatchEvent(new Event("change", { bubbles: true }));
  });
  markAll(slider);
}

// What was searched for and found joins what was shown with the same question.
function placeMined(preview) {
  for (const found of preview.querySelectorAll("[data-mined]")) {
    const list = preview.querySelector(`[data-example="${found.dataset.mined}"]`);
    if (!list) continue;
    list.append(...found.children);
    found.closest("details").remove();
  }
  const slider = preview.querySelector("#threshold");
  if (slider) markAll(slider);
}

function markAll(slider) {
  const counts = { near: 0, all: 0 };
  for (const list of document.querySelectorAll(".passages[data-example]")) {
    mark(list, Number(slider.value), Number(slider.dataset.hard), counts);
  }
  slider.nextElementSibling.textContent = slider.dataset.told
    .replace("{value}", Number(slider.value).toLocaleString(lang, { minimumFractionDigits: 2 }))
    .replace("{near}", counts.near).replace("{all}", counts.all);
}

// As the training does: the first of those that are not too near.
function mark(list, threshold, hard, counts) {
  let taken = 0;
  for (const item of list.querySelectorAll("[data-jaccard]")) {
    const isNear = Number(item.dataset.jaccard) >= threshold;
    const isOut = isNear || "out" in item.dataset;
    const isTaken = !isOut && taken < hard;
    taken += isTaken;
    counts.near += isNear;
    counts.all += 1;
    item.className = isTaken ? "taken" : "out";
    item.querySelector(".mark").textContent = isTaken ? "−" : "·";
    item.querySelector(".verdict-of").textContent = isNear ? list.dataset.near : isOut ? item.dataset.out : isTaken ? list.dataset.taken : list.dataset.spare;
  }
}

function prepare(root) {
  writeTimes(root);
  drawCharts(root);
  showCopyButtons(root);
}

document.addEventListener("DOMContentLoaded", () => {
  prepare(document);
  for (const element of document.querySelectorAll("[data-events]")) followJob(element);
  const form = document.getElementById("fine-tune");
  if (form) followForm(form);
});
document.addEventListener("click", ({ target }) => {
  if (target.matches("button.copy")) copyText(target);
});
// A second click would ask for a second training; whoever comes back to the page may ask again.
document.addEventListener("submit", ({ target, submitter }) => {
  if (target.method === "post" && submitter) setTimeout(() => { submitter.disabled = true; });
});
addEventListener("pageshow", ({ persisted }) => {
  if (persisted) for (const button of document.querySelectorAll("button:disabled")) button.disabled = false;
});
document.addEventListener("htmx:after:request", hear);
document.addEventListener("htmx:error", ({ detail }) => { if (detail.ctx) lose(); });
document.addEventListener("htmx:after:swap", () => {
  prepare(document);
  const form = document.getElementById("fine-tune");
  const preview = document.getElementById("preview");
  if (form && preview.querySelector("h2") && !preview.querySelector("[data-shown]")) {
    preview.firstElementChild.dataset.shown = "";
    showPreview(form, preview);
  }
  if (form) {
    placeMined(preview);
    showDates();
  }
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redrawCharts);
let resized;
addEventListener("resize", () => { clearTimeout(resized); resized = setTimeout(redrawCharts, 200); });
