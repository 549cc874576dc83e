/** The viewer: images that are dropped, the detectors that are asked, and how their answers are looked at. */

import { served, tokenButton } from "./api.js";
import { paintScale } from "./colors.js";
import { hung, seenBy, viewOf, whole } from "./hanging.js";
import { attempt, byId, digits, h, themeButton } from "./page.js";
import { Pane } from "./pane.js";
import { place } from "./picture.js";
import { answer, answers, mark, saveReadings, unmark } from "./reader.js";
import { fill, renderFindings, renderLists } from "./sidebar.js";
import { BASES, card, result, state } from "./state.js";
import { Film } from "./film.js";

/** Panes of detectors, by name, and of images that hang, by film. */
const panes = new Map();
let frame = 0;

const shown = () => (state.hang ? hung() : state.compare ? state.chosen : [state.active]);
const shownPanes = () => shown().map((key) => panes.get(key)).filter(Boolean);
const filmOf = (pane) => pane.film ?? state.current;
const said = () => ({ spacing_mm: byId("spacing").value, view: byId("projection").value });

// Images and requests

/** @param {Iterable<File|string>} sources files, or URLs */
function add(sources) {
  const films = [...sources].map((source) => new Film(source, said()));
  state.films.push(...films);
  if (films.length) select(films[0]);
}

function remove(film) {
  const at = state.films.indexOf(film);
  if (at < 0) return;
  state.films.splice(at, 1);
  panes.delete(film);
  if (film === state.current) select(state.films[Math.min(at, state.films.length - 1)] ?? null);
  else render();
}

async function select(film) {
  const stays = state.hang && hung().includes(film);
  if (stays) Object.assign(state, { view: viewOf(film, panes.get(film).canvas), framed: film });
  else if (state.current && state.current !== film) state.current.picture = null;
  Object.assign(state, { current: film, finding: -1, cursor: null, drawing: null }, stays ? {} : { framed: null });
  render();
  if (!film) return;
  byId("spacing").value = film.said.spacing_mm;
  byId("projection").value = film.said.view;
  await unpack(film);
  work();
}

/** Pixels of the image that is looked at; of the others only a small picture is kept. */
async function unpack(film) {
  if (film.packed) await attempt(() => film.unpack());
  if (!film.picture) return;
  if (film !== state.current) {
    if (!(state.hang && hung().includes(film))) film.picture = null;
  } else if (state.framed !== film) {
    state.framed = film;
    fit();
    tissueWindow("image");
  }
  render();
}

/** Ask for what is missing, one request after the other, the image that is looked at first. */
async function work() {
  if (state.working) return;
  state.working = true;
  for (let job = nextJob(); job; job = nextJob()) {
    const [film, detector] = job;
    say(`Scoring ${film.name} by ${detector} …`);
    await film.score(detector);
    await unpack(film);
    if (film === state.current) await explain();
    render();
  }
  state.working = false;
  say("");
}

function nextJob() {
  for (const film of [state.current, ...state.films]) {
    const detector = film && state.chosen.find((name) => !film.results.has(name) && !film.problems.has(name));
    if (detector) return [film, detector];
  }
  return null;
}

/** The healthy counterfactuals, once they are looked at. */
async function explain() {
  if (state.base === "image" || !state.current) return;
  for (const pane of shownPanes()) {
    const [{ detector }, film] = [pane, filmOf(pane)];
    const found = film.results.get(detector);
    if (!found || found.explained || !card(detector).counterfactual) continue;
    say(`Asking ${detector} for the healthy version of ${film.name} …`);
    repaint();
    await attempt(() => film.explain(detector).finally(() => (found.healthy ??= {})));
    if (film === state.current) tissueWindow("healthy", detector);
    say("");
  }
  repaint();
}

const say = (text) => (byId("status").textContent = text);

// Looking

const canvas = () => shownPanes().find((pane) => filmOf(pane) === state.current)?.canvas;

function fit() {
  const { picture } = state.current ?? {};
  if (!picture || !canvas()?.width) return;
  Object.assign(state, { view: whole(picture, canvas()), fitted: true });
  repaint();
}

// Images that hang side by side

async function hang() {
  state.compare = false;
  toggle("hang");
  for (const film of hung()) {
    if (state.hang) await unpack(film);
    else if (film !== state.current) film.picture = null;
  }
  fit();
}

function look(view) {
  Object.assign(state, { view: { ...state.view, ...view }, fitted: false });
  repaint();
}

const controls = {
  /** While a circle is drawn the picture stays. */
  pan(dx, dy) {
    const { drawing, view: { x, y, scale } } = state;
    if (!drawing?.centre) look({ x: x - dx / scale, y: y - dy / scale });
  },
  /** The place at (x, y) stays where it is. */
  zoom(factor, x = 0, y = 0) {
    const scale = Math.min(Math.max(state.view.scale * factor, 0.01), 64);
    const shift = 1 / state.view.scale - 1 / scale;
    look({ x: state.view.x + x * shift, y: state.view.y + y * shift, scale });
  },
  /** To the right: wider; down: brighter. */
  adjust(dx, dy) {
    const { low, high } = state.windows[state.base];
    const step = (state.current?.picture?.full ?? 65535) / 1024;
    const [middle, width] = [(low + high) / 2 - dy * step, Math.max(high - low + dx * step, 2)];
    setWindow({ low: Math.round(middle - width / 2), high: Math.round(middle + width / 2) });
  },
  point(x, y, pane) {
    const { canvas: { width, height } } = pane;
    const film = filmOf(pane);
    const { scale, left, top } = place(viewOf(film, pane.canvas), pane.canvas);
    const here = { x: (x + width / 2 - left) / scale, y: (y + height / 2 - top) / scale };
    const [from, to] = [film?.frame, state.current?.frame];
    const there = film === state.current ? here : from && to ? from.to(to, here) : null;
    state.cursor = x === null || !there ? null : { ...there, pane };
    if (state.drawing?.centre && state.cursor) stretch(state.cursor);
    repaint();
  },
  /** @param {boolean} alone no other finger is down */
  press(alone) {
    if (state.drawing) state.drawing.centre = alone ? state.cursor : null;
  },
  /** @param {boolean} whole the pointer was let go, and not taken away */
  release(whole) {
    const { drawing } = state;
    if (!drawing?.centre) return;
    if (whole) markAt(drawing.centre);
    drawing.centre = null;
  },
  activate({ film, detector }) {
    if (film && film !== state.current) select(film);
    if (state.active === detector) return;
    Object.assign(state, { active: detector, finding: -1 });
    render();
  },
  /** At once: a canvas of another size is empty. */
  resized() {
    if (state.fitted) fit();
    paint();
  },
};

/** Differences keep their scale: it is the same everywhere. */
function setWindow(window) {
  if (state.base === "change") return;
  state.windows = { ...state.windows, [state.base]: { ...state.windows[state.base], ...window } };
  repaint();
}

function tissueWindow(base = state.base, detector = state.active) {
  const { heatmap, healthy } = state.current?.results.get(detector) ?? {};
  const picture = base === "image" ? state.current?.picture : healthy?.[base];
  if (!picture || base === "change") return;
  const everywhere = !heatmap?.tissue.includes(1);
  const inside = (x, y) => everywhere || heatmap.tissue[heatmap.cell(x, y)] === 1;
  const [low, high] = picture.quantiles([0.005, 0.995], inside);
  state.windows = { ...state.windows, [base]: { low, high, invert: state.windows[base].invert } };
  repaint();
}

const step = (dx, dy) => controls.pan(-60 * dx, -60 * dy);

function moveCursor(dx, dy) {
  const { x, y } = state.cursor ?? state.view;
  const far = Math.max(1, (4 * devicePixelRatio) / state.view.scale);
  state.cursor = { x: x + dx * far, y: y + dy * far, pane: null };
  repaint();
}

/** Centre on a finding and read there. */
function centre(index) {
  const { column: x, row: y } = result()?.answer.findings[index] ?? {};
  if (x === undefined) return;
  Object.assign(state, { finding: index, cursor: { x, y, pane: null } });
  look({ x, y });
  renderFindings(READER);
}

function nextFinding(by) {
  const count = result()?.answer.findings.length ?? 0;
  if (count) centre(state.finding < 0 ? 0 : (state.finding + by + count) % count);
}

function nextFilm(by) {
  const at = state.films.indexOf(state.current) + by;
  if (state.films[at]) select(state.films[at]);
}

function nextDetector() {
  const { chosen, active } = state;
  if (chosen.length) controls.activate({ detector: chosen[(chosen.indexOf(active) + 1) % chosen.length] });
}

function choose(name, wanted) {
  const names = state.cards.map((one) => one.name);
  state.chosen = names.filter((one) => (one === name ? wanted : state.chosen.includes(one)));
  if (wanted || !state.chosen.includes(state.active)) state.active = wanted ? name : state.chosen[0] ?? null;
  state.finding = -1;
  setLimit(Number(byId("limit").value));
  render();
  work();
}

function showBase(base) {
  state.base = base;
  render();
  explain();
}

function setLimit(share) {
  const floors = state.cards.filter(({ name }) => state.chosen.includes(name)).map((one) => one.p_value_floor);
  state.limit = Math.min(1, ...floors) ** (1 - share);
  byId("limit-text").textContent = `p ≤ ${digits(state.limit, 2)}`;
  showAnswers();
}

// Answers

const READER = { centre, judge, look, unmark: takeBack };

function showAnswers() {
  renderFindings(READER);
  repaint();
}

function takeBack(one) {
  unmark(one);
  showAnswers();
  if (document.activeElement === document.body) document.querySelector("#answers button").focus();
}

function judge(index, reading) {
  const finding = result()?.answer.findings[index];
  if (!finding) return;
  if (state.finding !== index) centre(index);
  answer(finding, reading);
  showAnswers();
}

/** Begin or end to mark missed lesions, the first circle of a twentieth of the image. */
function toggleDrawing() {
  const { picture } = state.current ?? {};
  const [{ rows, columns }] = picture?.levels ?? [{ rows: 0, columns: 0 }];
  state.drawing = state.drawing || !picture ? null : { radius: Math.min(rows, columns) / 20, centre: null };
  if (state.drawing) {
    state.cursor ??= { x: state.view.x, y: state.view.y, pane: null };
    canvas()?.focus();
  }
  showAnswers();
}

/** As wide as the pointer was dragged. */
function stretch({ x, y }) {
  const { centre, radius } = state.drawing;
  const far = Math.hypot(x - centre.x, y - centre.y);
  state.drawing.radius = far * state.view.scale > 4 * devicePixelRatio ? far : radius;
}

function resize(factor) {
  if (state.drawing) state.drawing.radius = Math.max(1, state.drawing.radius * factor);
  repaint();
}

function markAt({ x, y }) {
  const inside = mark({ x, y, radius: state.drawing.radius });
  say(inside ? "" : "That is outside the image.");
  showAnswers();
}

function undo() {
  answers.undo();
  showAnswers();
}

function saveAll() {
  if (answers.now.length) saveReadings();
  showAnswers();
}

// Keys and buttons

/** Action, its key, what it does. */
const ACTIONS = {
  open: ["o", "open images", () => byId("files").click()],
  address: ["u", "open images by their URLs", () => byId("address").showModal()],
  remove: ["Delete", "close the image", () => remove(state.current)],
  nextFilm: ["PageDown", "next image", () => nextFilm(1)],
  previousFilm: ["PageUp", "previous image", () => nextFilm(-1)],
  next: ["n", "next finding", () => nextFinding(1)],
  previous: ["b", "previous finding", () => nextFinding(-1)],
  accept: ["y", "accept the finding, or take that back", () => judge(state.finding, "accepted")],
  reject: ["x", "reject the finding, or take that back", () => judge(state.finding, "rejected")],
  draw: ["g", "mark missed lesions", toggleDrawing],
  smaller: ["<", "a smaller circle", () => resize(2 ** -0.25)],
  larger: [">", "a larger circle", () => resize(2 ** 0.25)],
  undo: ["Backspace", "take back the last answer", undo],
  save: ["s", "save all answers as readings.csv", saveAll],
  detector: ["d", "next chosen detector", nextDetector],
  compare: ["c", "detectors side by side", compare],
  hang: ["v", "open images side by side, breasts back to back", hang],
  image: ["q", "the image", () => showBase("image")],
  healthy: ["w", "its healthy version", () => showBase("healthy")],
  change: ["e", "the difference", () => showBase("change")],
  heat: ["h", "heatmap", toggleHeat],
  marks: ["m", "marks and outlines", () => toggle("marks")],
  fit: ["f", "fit into the window", fit],
  life: ["z", "1:1, a pixel of the image a pixel of the screen", () => look({ scale: 1 })],
  closer: ["+", "zoom in", () => controls.zoom(2 ** 0.5)],
  farther: ["-", "zoom out", () => controls.zoom(2 ** -0.5)],
  full: ["a", "window: full depth", () => setWindow({ low: 0, high: state.current?.picture?.full ?? 65535 })],
  tissue: ["t", "window: from the tissue's 0.5 to its 99.5 percentile", () => tissueWindow()],
  invert: ["i", "invert", () => setWindow({ invert: !state.windows[state.base].invert })],
  darker: ["[", "darker", () => controls.adjust(0, -24)],
  brighter: ["]", "brighter", () => controls.adjust(0, 24)],
  narrower: [",", "more contrast", () => controls.adjust(-24, 0)],
  wider: [".", "less contrast", () => controls.adjust(24, 0)],
  theme: ["l", "light or dark", () => byId("theme").click()],
  token: ["k", "give another token", () => byId("token-button").click()],
  help: ["?", "this help", () => byId("help").showModal()],
};
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

function toggle(what) {
  state[what] = !state[what];
  render();
  explain();
}

function compare() {
  state.hang = false;
  toggle("compare");
}

function toggleHeat() {
  state.heat = { ...state.heat, [state.base]: !state.heat[state.base] };
  render();
}

function pressed(event) {
  const { key, target } = event;
  if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
  if (target.matches("input:not([type=range], [type=checkbox]), select, textarea")) return;
  if (key in ARROWS && target.matches("input")) return;
  if (state.drawing && key === "Enter" && target.matches("button, a, summary, input")) return;
  const [, , action] = Object.values(ACTIONS).find(([known]) => known === key) ?? [];
  if (key in ARROWS) (event.shiftKey ? moveCursor : step)(...ARROWS[key]);
  else if (/^[1-9]$/.test(key)) centre(Number(key) - 1);
  else if (action) action();
  else if (state.drawing && key === "Enter") state.cursor && markAt(state.cursor);
  else if (state.drawing && key === "Escape") toggleDrawing();
  else return;
  event.preventDefault();
}

// What the page shows

/** Paint before the next frame, however often it is asked for. */
function repaint() {
  frame ||= requestAnimationFrame(paint);
}

function paint() {
  cancelAnimationFrame(frame);
  frame = 0;
  for (const pane of shownPanes()) pane.paint(seenBy(filmOf(pane), pane.canvas), filmOf(pane));
}

function render() {
  renderLists({ choose, select, remove, ...READER });
  renderStage();
  const problems = [...(state.current?.problems.values() ?? [])];
  byId("spacing").setAttribute("aria-invalid", String(problems.some((problem) => /spacing/i.test(problem))));
  const explained = shownPanes().some(({ detector }) => card(detector).counterfactual);
  for (const button of document.querySelectorAll("[data-action]")) {
    const { action } = button.dataset;
    if (BASES.includes(action)) button.setAttribute("aria-pressed", String(state.base === action));
    else if (action === "heat") button.setAttribute("aria-pressed", String(state.heat[state.base]));
    else if (action in state) button.setAttribute("aria-pressed", String(state[action]));
    if (action === "healthy" || action === "change") button.disabled = !explained;
  }
  repaint();
}

function renderStage() {
  for (const name of state.chosen) if (!panes.has(name)) panes.set(name, new Pane(name, controls));
  for (const film of state.hang ? hung() : []) {
    if (!panes.has(film)) panes.set(film, new Pane(state.active, controls, film));
    panes.get(film).detector = state.active;
  }
  const elements = shownPanes().map(({ element }) => element);
  const stage = byId("panes");
  if (elements.length !== stage.children.length || elements.some((element, i) => stage.children[i] !== element)) {
    fill(stage, ...elements);
  }
  stage.dataset.count = elements.length;
  byId("hint").hidden = state.current !== null && elements.length > 0;
}

// Beginning

function listen() {
  for (const button of document.querySelectorAll("[data-action]")) {
    const [key, , action] = ACTIONS[button.dataset.action];
    button.title = `${button.title} (${key})`.trim();
    button.addEventListener("click", () => action());
  }
  document.addEventListener("keydown", pressed);
  window.addEventListener("beforeunload", (event) => answers.unsaved && event.preventDefault());
  byId("files").addEventListener("change", ({ target }) => {
    add(target.files);
    target.value = "";
  });
  byId("address").addEventListener("close", ({ target }) => {
    const field = target.querySelector("textarea");
    if (target.returnValue === "ok") add(field.value.split("\n").map((line) => line.trim()).filter(Boolean));
    target.returnValue = field.value = "";
  });
  byId("said").addEventListener("submit", (event) => {
    event.preventDefault();
    state.current?.forget(said());
    render();
    work();
  });
  byId("opacity").addEventListener("input", ({ target }) => {
    state.opacity = Number(target.value);
    byId("opacity-text").textContent = `${Math.round(100 * state.opacity)} %`;
    repaint();
  });
  byId("limit").addEventListener("input", ({ target }) => setLimit(Number(target.value)));
  for (const name of ["dragover", "drop"]) document.addEventListener(name, (event) => event.preventDefault());
  document.addEventListener("drop", ({ dataTransfer }) => add(dataTransfer.files));
  const row = ([key, what]) => h("div", {}, h("dt", {}, h("kbd", {}, key)), h("dd", {}, what));
  byId("keys").prepend(...Object.values(ACTIONS).map(row));
}

function begin() {
  themeButton(byId("theme"));
  paintScale(byId("scale"));
  listen();
  tokenButton(byId("token-button"), load);
  render();
  load();
}

/** The detectors; what could not be asked of them before is asked again. */
async function load() {
  for (const film of state.films) film.problems.clear();
  await attempt(async () => {
    const { detectors, default: first } = await served();
    if (state.cards.length) return;
    Object.assign(state, { cards: detectors, chosen: [first], active: first });
    setLimit(1);
  });
  render();
  work();
}

begin();
