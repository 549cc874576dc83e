/** A reader's answers on the page of a report: kept in this browser, exported and imported as files, sent nowhere. */

const by = (id) => document.getElementById(id);
const { key, detector, sha256 } = by("reader-panel").dataset;
const place = `rayad-reading-${key}`;
/** None where the page is locked in. */
const kept = (() => { try { return localStorage; } catch { return null; } })();
const about = { reader: "", comment: "" };
/** `answers`: name of a finding's buttons -> accept, reject or undecided; `drawn`: circles of missed lesions. */
const history = new History(read(kept?.getItem(place) || "{}"));
const findings = [...document.querySelectorAll(".finding")];
const inputs = [...document.querySelectorAll(".finding input")];
const asked = (finding) => finding.querySelector("input").name;

const missed = by("missed");
const svg = missed.querySelector("svg");
const fields = Object.fromEntries([...missed.querySelectorAll("input")].map((input) => [input.name, input]));
let article = null;

/** Answers that were written down; reader and comment are set, and circles that are of no image here left out. */
function read(text) {
  const { reader = "", comment = "", answers = {}, drawn = [] } = JSON.parse(text);
  Object.assign(about, { reader, comment });
  const images = new Set([...document.querySelectorAll(".missed")].map(({ dataset }) => dataset.image));
  const whole = ({ row, col, radius }) => [row, col, radius].every(Number.isFinite);
  return { answers, drawn: drawn.filter((circle) => images.has(circle.image) && whole(circle)) };
}

function change(next) {
  history.change({ ...history.now, ...next });
  keep();
}

function keep() {
  kept?.setItem(place, JSON.stringify({ ...about, ...history.now }));
  show();
}

function show() {
  const { answers, drawn } = history.now;
  for (const id of ["reader", "comment"]) by(id).value = about[id];
  for (const input of inputs) input.checked = answers[input.name] === input.value;
  for (const list of document.querySelectorAll(".missed ul")) {
    const { image } = list.parentElement.dataset;
    list.replaceChildren(...drawn.filter((circle) => circle.image === image).map(item));
  }
  const more = drawn.length ? `, ${drawn.length} missed marked` : "";
  by("count").textContent = `${Object.keys(answers).length} of ${findings.length} findings answered${more}`;
  by("undo").disabled = !history.before.length;
  by("export-csv").disabled = !readings().length;
}

function item(circle) {
  const [line, button] = [document.createElement("li"), document.createElement("button")];
  const [row, col, radius] = [circle.row, circle.col, circle.radius].map(Math.round);
  const text = `missed lesion: row ${row}, column ${col}, radius ${radius} px`;
  Object.assign(button, { type: "button", textContent: "×", title: "Take it back" });
  button.setAttribute("aria-label", `take back ${text}`);
  button.addEventListener("click", () => {
    const box = line.closest(".missed");
    change({ drawn: history.now.drawn.filter((other) => other !== circle) });
    box.querySelector(":scope > button").focus();
  });
  line.append(`${text} `, button);
  return line;
}

/** What goes into readings.csv: findings whose place in px is known, and what was drawn. */
function readings() {
  const words = { accept: "accepted", reject: "rejected" };
  const answered = findings.filter((one) => one.dataset.radius && words[history.now.answers[asked(one)]]);
  const rows = answered.map((one) => ({ ...one.dataset, reading: words[history.now.answers[asked(one)]] }));
  const circles = history.now.drawn.map((circle) => ({ ...circle, reading: "accepted" }));
  return [...rows, ...circles].map((row) => ({ ...row, detector, sha256 }));
}

/** The findings with their answers, for people. */
const table = () => findings.map((finding) => ({
  exam_id: finding.dataset.image,
  finding: Number(finding.dataset.finding),
  what: finding.querySelector("legend").textContent,
  answer: history.now.answers[asked(finding)] || "",
}));

function saveAs(name, type, text) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type }));
  link.download = name;
  link.click();
  URL.revokeObjectURL(link.href);
  history.saved = history.now;
}

// A missed lesion

function open(box) {
  article = box.closest("article");
  const { image, rows, columns } = box.dataset;
  by("missed-title").textContent = `A missed lesion in ${image}`;
  missed.querySelector("img").src = article.querySelector("img").src;
  svg.setAttribute("viewBox", `0 0 ${columns} ${rows}`);
  const start = { row: rows / 2, col: columns / 2, radius: Math.min(rows, columns) / 20 };
  for (const [name, most] of [["row", rows - 1], ["col", columns - 1], ["radius", Math.max(rows, columns)]]) {
    Object.assign(fields[name], { min: name === "radius" ? 0.5 : 0, max: most, value: start[name].toFixed(1) });
  }
  missed.dataset.image = image;
  draw();
  missed.showModal();
  fields.row.focus();
}

/** The circle of the fields, as the last of those that are marked. */
function draw() {
  const next = Object.fromEntries(Object.entries(fields).map(([name, field]) => [name, Number(field.value)]));
  const marked = history.now.drawn.filter(({ image }) => image === missed.dataset.image);
  svg.replaceChildren(...[...marked, next].map((circle) => {
    const element = document.createElementNS(svg.namespaceURI, "circle");
    const shape = { cx: circle.col + 0.5, cy: circle.row + 0.5, r: Math.max(0, circle.radius) };
    for (const [name, value] of Object.entries(shape)) element.setAttribute(name, value);
    element.classList.toggle("next", circle === next);
    return element;
  }));
}

/** Row and column under the pointer, px of the image as it came. */
function at(event) {
  const { left, top, width, height } = svg.getBoundingClientRect();
  const { width: columns, height: rows } = svg.viewBox.baseVal;
  const within = (share, size) => Math.min(Math.max(share * size - 0.5, 0), size - 1);
  return { row: within((event.clientY - top) / height, rows), col: within((event.clientX - left) / width, columns) };
}

let centre = null;
svg.addEventListener("pointerdown", (event) => {
  svg.setPointerCapture(event.pointerId);
  centre = at(event);
  for (const name of ["row", "col"]) fields[name].value = centre[name].toFixed(1);
  draw();
});
svg.addEventListener("pointermove", (event) => {
  if (!centre) return;
  const { row, col } = at(event);
  fields.radius.value = Math.max(0.5, Math.hypot(row - centre.row, col - centre.col)).toFixed(1);
  draw();
});
for (const ended of ["pointerup", "pointercancel"]) svg.addEventListener(ended, () => (centre = null));

function mark() {
  if (!Object.values(fields).every((field) => field.reportValidity())) return;
  const circle = Object.fromEntries(Object.entries(fields).map(([name, field]) => [name, Number(field.value)]));
  change({ drawn: [...history.now.drawn, { image: missed.dataset.image, ...circle }] });
  missed.close();
}

// Beginning

for (const input of inputs) {
  input.addEventListener("change", () => change({ answers: { ...history.now.answers, [input.name]: input.value } }));
}
for (const id of ["reader", "comment"]) {
  by(id).addEventListener("change", () => {
    about[id] = by(id).value;
    keep();
  });
}
for (const box of document.querySelectorAll(".missed")) {
  box.querySelector(":scope > button").addEventListener("click", () => open(box));
}
for (const field of Object.values(fields)) {
  field.addEventListener("input", draw);
  field.addEventListener("keydown", (event) => {
    if (event.key !== "Enter") return;
    event.preventDefault(); // else it presses the button that has the focus next
    mark();
  });
}
by("missed-mark").addEventListener("click", mark);
by("missed-close").addEventListener("click", () => missed.close());
by("undo").addEventListener("click", () => {
  history.undo();
  keep();
});
by("export-csv").addEventListener("click", () => saveAs("readings.csv", "text/csv", csv(readings())));
by("export-json").addEventListener("click", () => {
  const read = { request: place, ...about, ...history.now, findings: table() };
  saveAs("reading.json", "application/json", JSON.stringify(read, null, 2));
});
by("import").addEventListener("change", async (event) => change(read(await event.target.files[0].text())));
window.addEventListener("beforeunload", (event) => history.unsaved && event.preventDefault());
if (!kept) {
  by("kept").textContent = "Export your answers before you leave this page: the dashboard does not keep them.";
}
if (!findings.every((finding) => finding.dataset.radius)) {
  by("kept").textContent += " These results are too old to have the findings' places in px, which readings.csv needs: evaluate again.";
}
document.body.classList.add("scripted");
by("reader-panel").hidden = false;
show();
