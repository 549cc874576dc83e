/** The lists beside and below the picture; each is made anew from the state. */

import { atMost, attempt, byId, digits, h, pText, save } from "./page.js";
import { answered, answers, drawnIn } from "./reader.js";
import { card, result, state } from "./state.js";

const DICOM_OBJECTS = { sc: "secondary capture", seg: "segmentation", sr: "report", pm: "parametric map" };

/** New children; the one that had the focus keeps it. */
export function fill(parent, ...children) {
  const { id } = parent.contains(document.activeElement) ? document.activeElement : {};
  parent.replaceChildren(...children);
  if (id) byId(id)?.focus();
}

/** @param {{choose, select, remove, centre, judge, look, unmark}} actions what their buttons do */
export function renderLists(actions) {
  const { choose, select, remove } = actions;
  renderDetectors(choose);
  renderStrip(select, remove);
  renderResult();
  renderFindings(actions);
  renderCard();
  renderDownloads();
}

function renderDetectors(choose) {
  const row = ({ name, summary }, i) => {
    const found = state.current?.results.get(name)?.answer;
    const check = h("input", {
      type: "checkbox",
      id: `choose-${i}`,
      checked: state.chosen.includes(name),
      "aria-label": `use ${name}`,
      onchange: (event) => choose(name, event.target.checked),
    });
    const show = { type: "button", id: `show-${i}`, title: summary, onclick: () => choose(name, true) };
    const button = h("button", { ...show, "aria-pressed": String(state.active === name) }, name);
    return h("li", {}, check, button, h("span", {}, found ? pText(found.p_value, found.p_value_floor) : ""));
  };
  fill(byId("detectors"), ...state.cards.map(row));
}

function renderStrip(select, remove) {
  const item = (film, i) => {
    const found = film.results.get(state.active)?.answer;
    const pending = film.problems.has(state.active) ? "failed" : "…";
    const text = found ? pText(found.p_value, found.p_value_floor) : pending;
    const shown = { type: "button", id: `film-${i}`, title: film.name, onclick: () => select(film) };
    const name = h("span", { className: "name" }, film.name);
    const current = String(film === state.current);
    const button = h("button", { ...shown, "aria-current": current }, name, h("span", {}, text));
    if (film.thumbnail) button.prepend(film.thumbnail);
    const closing = { type: "button", className: "close", "aria-label": `close ${film.name}` };
    return h("li", {}, button, h("button", { ...closing, title: "Close (Delete)", onclick: () => remove(film) }, "×"));
  };
  byId("strip").hidden = state.films.length < 2;
  fill(byId("strip"), ...state.films.map(item));
}

function renderResult() {
  const answer = result()?.answer;
  const none = state.current ? "Not scored yet." : "No image.";
  if (!answer) return fill(byId("result"), h("p", { className: "soft" }, none));
  const { score, p_value: p, p_value_floor: floor, calibration_patients: count } = answer;
  const least = `p ≤ 1/${count + 1} is the least that K = ${count} healthy patients can say.`;
  const figure = (name, text) => h("div", {}, h("dt", {}, name), h("dd", {}, text));
  const figures = h("dl", { className: "figures" }, figure("score", digits(score)), figure("p-value", pText(p, floor)));
  const word = answer.verdict ? [h("p", { className: `verdict ${answer.verdict}`, title: `Abnormal: a score ${answer.rule}` }, answer.verdict)] : [];
  const doubts = (answer.doubts ?? []).map(({ sentence }) => h("p", { className: "doubt" }, `Doubtful: ${sentence}.`));
  fill(byId("result"), ...word, figures, ...doubts, h("p", { className: "soft" }, least), ...together());
}

/** What the images that hang say together, by the formula of rayad/heatmaps/studies.py. */
function together() {
  const found = (state.hang ? state.films : []).map((film) => film.results.get(state.active)?.answer).filter(Boolean);
  if (found.length < 2) return [];
  const highest = found.reduce((most, answer) => (answer.score > most.score ? answer : most));
  const { patient_p_value: p, patient_images: each, p_value_floor: floor } = highest;
  if (p === null || !each) return [];
  const groups = Math.ceil(found.length / each);
  const text = `If all ${found.length} images are of one patient, together:`;
  return [h("p", { id: "together" }, `${text} ${pText(Math.min(1, groups * p), Math.min(1, groups * floor))}`)];
}

export function renderFindings(actions) {
  renderFound(actions);
  renderDrawn(actions);
  renderAnswers();
}

function renderFound({ centre, judge }) {
  const { findings = [], findings_total: total = 0, image } = result()?.answer ?? {};
  const item = (found, i) => {
    const [x, y] = [found.column, found.row].map((px) => (px * image.spacing_mm).toFixed(0));
    const shown = { type: "button", id: `finding-${i}`, onclick: () => centre(i) };
    const p = pText(found.p_value, result().answer.p_value_floor);
    const cells = [String(i + 1), `x ${x}, y ${y} mm`, `${digits(found.size_mm2, 2)} mm²`, p];
    const known = found.false_discovery_rate ?? null;
    const rate = known === null ? "" : `, false discovery rate ${digits(known, 2)}`;
    const title = `${x} mm from the left, ${y} mm from the top; score ${digits(found.score)}, healthy quantile ${digits(found.healthy_quantile, 4)}${rate}`;
    const button = h("button", { ...shown, title, "aria-current": String(i === state.finding) });
    button.append(...cells.map((cell) => h("span", {}, cell)));
    const reading = answered(state.current, state.active, found)?.reading;
    const choice = (word, text, done, key) => {
      const chosen = { type: "button", id: `${word}-${i}`, className: "answer", title: `${text} (${key})` };
      const pressed = { "aria-label": `${word} finding ${i + 1}`, "aria-pressed": String(reading === done) };
      return h("button", { ...chosen, ...pressed, onclick: () => judge(i, done) }, done === "accepted" ? "✓" : "✗");
    };
    const choices = [choice("accept", "Accept", "accepted", "y"), choice("reject", "Reject", "rejected", "x")];
    return h("li", { className: atMost(found.p_value, state.limit) ? "" : "hidden-place" }, button, ...choices);
  };
  fill(byId("findings"), ...findings.map(item));
  const more = total > findings.length ? `${findings.length} of ${total}, the most unusual` : "";
  const none = result() ? "None: nothing is marked." : "After scoring.";
  byId("findings-more").textContent = findings.length ? more : none;
}

function renderDrawn({ look, unmark }) {
  const spacing = result()?.answer.image.spacing_mm;
  const item = (one, i) => {
    const [x, y, radius] = [one.col, one.row, one.radius].map((px) => (px * (spacing ?? 1)).toFixed(0));
    const unit = spacing ? "mm" : "px";
    const shown = { type: "button", id: `drawn-${i}`, onclick: () => look({ x: one.col + 0.5, y: one.row + 0.5 }) };
    const text = `missed: x ${x}, y ${y}, radius ${radius} ${unit}`;
    const closing = { type: "button", id: `unmark-${i}`, className: "answer", onclick: () => unmark(one) };
    const named = { title: "Take it back", "aria-label": `take back missed lesion ${i + 1}` };
    return h("li", {}, h("button", shown, text), h("button", { ...closing, ...named }, "×"));
  };
  fill(byId("drawn"), ...drawnIn(state.current).map(item));
}

/** How much was answered, and what can be done with it. */
function renderAnswers() {
  const [count, images] = [answers.now.length, new Set(answers.now.map(({ film }) => film)).size];
  const amount = `${count} ${count === 1 ? "answer" : "answers"}, ${images} ${images === 1 ? "image" : "images"}`;
  byId("answered").textContent = count || answers.unsaved ? `${amount}${answers.unsaved ? ", not saved yet" : ""}` : "";
  byId("drawing").hidden = state.drawing === null;
  for (const button of document.querySelectorAll("#answers button")) {
    const { action } = button.dataset;
    if (action === "draw") button.disabled = !state.current?.picture;
    if (action === "draw") button.setAttribute("aria-pressed", String(state.drawing !== null));
    if (action === "undo") button.disabled = !answers.before.length;
    if (action === "save") button.disabled = !count;
  }
}

function renderCard() {
  const one = card();
  const text = (value) => (typeof value === "object" ? JSON.stringify(value) : String(value));
  const flat = (object) => Object.entries(object ?? {}).map(([key, value]) => [key, text(value)]);
  const list = (pairs) => h("dl", {}, ...pairs.flatMap(([key, value]) => [h("dt", {}, key), h("dd", {}, value)]));
  if (!one) return fill(byId("card"));
  const { preprocessing, provenance, summary, ...rest } = one;
  const parts = [h("p", {}, summary), list(flat(rest)), h("h3", {}, "Preprocessing"), list(flat(preprocessing))];
  fill(byId("card"), ...parts, h("h3", {}, "Provenance"), list(flat(provenance)));
}

function renderDownloads() {
  const { current: film, active: detector } = state;
  const found = result();
  if (!found) return fill(byId("downloads"), h("p", { className: "soft" }, "After scoring."));
  const name = `${film.name.replace(/\.[^.]*$/, "")}-${detector}`;
  const fetched = (headers, more, ending) => () =>
    attempt(async () => save(await (await film.ask(detector, headers, more)).blob(), `${name}${ending}`));
  const text = JSON.stringify(found.answer, null, 1);
  const kinds = [
    ["npz", "numpy arrays", () => save(found.blob, `${name}.npz`)],
    ["JSON", "figures and findings", () => save(new Blob([text], { type: "application/json" }), `${name}.json`)],
    ["PNG", "overlay as the server draws it", fetched({ Accept: "image/png" }, {}, ".png")],
  ];
  for (const [object, title] of film.dicom ? Object.entries(DICOM_OBJECTS) : []) {
    const headers = { Accept: "application/dicom" };
    kinds.push([`DICOM ${object.toUpperCase()}`, title, fetched(headers, { object }, `-${object}.dcm`)]);
  }
  const button = ([label, title, onclick]) =>
    h("button", { type: "button", id: `save-${label}`, title, onclick }, label);
  fill(byId("downloads"), ...kinds.map(button));
}
