/** The batch page: what runs, what came of it, and a form that starts another. */

import { json, request, served, tokenButton } from "./api.js";
import { attempt, byId, digits, h, themeButton } from "./page.js";

const [SOON_MS, LATER_MS] = [1000, 10000];
const form = byId("start");
const rows = new Map();
let chosen = null;
let timer = 0;

/** Ask for the list, and for the chosen batch; again soon while one runs. */
async function poll() {
  clearTimeout(timer);
  let running = false;
  if (!document.hidden) {
    await attempt(async () => {
      const { batches } = await json("/v1/batches");
      running = batches.some(({ state }) => state === "running");
      showList(batches);
      if (chosen) showBatch(await json(`/v1/batches/${encodeURIComponent(chosen)}`));
    });
  }
  clearTimeout(timer);
  timer = setTimeout(poll, running ? SOON_MS : LATER_MS);
}

/** Rows are kept and filled anew, so that the focus stays where it is. */
function showList(batches) {
  const known = new Set(batches.map(({ id }) => id));
  for (const [id, row] of rows) {
    if (known.has(id)) continue;
    row.element.remove();
    rows.delete(id);
  }
  batches.forEach((batch, i) => {
    if (!rows.has(batch.id)) rows.set(batch.id, newRow(batch.id));
    const row = rows.get(batch.id);
    const body = document.querySelector("#batches tbody");
    if (body.children[i] !== row.element) body.insertBefore(row.element, body.children[i] ?? null);
    row.show(batch);
  });
  byId("none").hidden = batches.length > 0;
}

function newRow(id) {
  const open = h("button", { type: "button", className: "link", title: id, onclick: () => choose(id) }, id.slice(0, 8));
  const bar = h("progress", { "aria-label": `progress of ${id}` });
  const cancel = h("button", { type: "button", "aria-label": `cancel ${id}`, onclick: () => stop(id) }, "Cancel");
  const [state, detector, count, failed, began] = ["span", "span", "span", "span", "span"].map((tag) => h(tag));
  cancel.addEventListener("click", () => (cancel.disabled = true));
  const cells = [open, state, detector, h("div", { className: "progress" }, bar, count), failed, began, cancel];
  const element = h("tr", {}, ...cells.map((cell) => h("td", { className: cell === failed ? "number" : "" }, cell)));
  const show = (batch) => {
    const ended = batch.done + batch.failed;
    state.textContent = batch.state;
    state.className = `state ${batch.state}`;
    detector.textContent = batch.detector.name;
    if (batch.total === null) bar.removeAttribute("value");
    else Object.assign(bar, { max: Math.max(batch.total, 1), value: ended });
    count.textContent = `${ended} of ${batch.total ?? "…"}`;
    failed.textContent = batch.failed;
    began.textContent = batch.began.slice(0, 16).replace("T", " ");
    cancel.hidden = batch.state !== "running";
    element.setAttribute("aria-current", String(id === chosen));
  };
  return { element, show };
}

function choose(id) {
  chosen = id;
  poll();
}

async function stop(id) {
  await attempt(() => request(`/v1/batches/${encodeURIComponent(id)}`, { method: "DELETE" }), "refused");
  poll();
}

function showBatch({ id, out, results, failures, updated }) {
  byId("batch").hidden = false;
  byId("batch-title").textContent = id;
  byId("where").textContent = `Results in ${out}; last news ${updated.slice(0, 19).replace("T", " ")} UTC`;
  const sorted = [...results].sort((a, b) => a.p_value - b.p_value || b.score - a.score);
  fill("results", sorted.map((one) => [one.name || one.image, digits(one.p_value, 2), one.score.toFixed(2)]));
  fill("failures", failures.map(({ image, reason }) => [image, reason]));
}

function fill(table, lines) {
  const columns = [...document.querySelectorAll(`#${table} th`)].map((head) => head.className);
  const line = (cells) => h("tr", {}, ...cells.map((cell, i) => h("td", { className: columns[i] }, cell)));
  const none = h("tr", {}, h("td", { className: "soft", colSpan: columns.length }, "None."));
  document.querySelector(`#${table} tbody`).replaceChildren(...(lines.length ? lines.map(line) : [none]));
}

/** What the form says, without what it leaves open. */
function wanted() {
  const said = new FormData(form);
  const urls = said.get("urls").split("\n").map((line) => line.trim()).filter(Boolean);
  const images = said.get("source") === "urls" ? { urls } : { prefix: said.get("prefix").trim() };
  const spacing = Number(said.get("spacing_mm"));
  return {
    ...images,
    out: said.get("out").trim(),
    detector: said.get("detector"),
    ...(spacing && { spacing_mm: spacing }),
    ...(said.get("view") && { view: said.get("view") }),
    results: said.getAll("results"),
  };
}

async function start(event) {
  event.preventDefault();
  const headers = { "Content-Type": "application/json" };
  await attempt(async () => {
    const batch = await json("/v1/batches", { method: "POST", headers, body: JSON.stringify(wanted()) });
    choose(batch.id);
  }, "refused");
}

function showSource() {
  const listed = form.elements.source.value === "urls";
  form.elements.prefix.hidden = listed;
  form.elements.prefix.required = !listed;
  form.elements.urls.hidden = !listed;
  form.elements.urls.required = listed;
}

async function begin() {
  themeButton(byId("theme"));
  form.addEventListener("submit", start);
  form.addEventListener("change", showSource);
  document.addEventListener("visibilitychange", poll);
  showSource();
  tokenButton(byId("token-button"), load);
  load();
}

async function load() {
  await attempt(async () => {
    const { detectors, default: first } = await served();
    const option = ({ name }) => h("option", { value: name, selected: name === first }, name);
    form.elements.detector.replaceChildren(...detectors.map(option));
  });
  poll();
}

begin();
