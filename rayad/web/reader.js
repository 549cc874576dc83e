/** What a reader says in the viewer: findings that he accepts or rejects, lesions that were missed. It stays in the page. */

import { save } from "./page.js";
import { History, csv } from "./readings.js";
import { card, state } from "./state.js";

/** A list of readings as `csv` takes them; each has the `film` that it is of, and whether it was `drawn`. */
export const answers = new History([]);

/** What was said of a detector's finding; it is known by its place, so that it outlives another scoring. */
export const answered = (film, detector, { row, column }) =>
  answers.now.find(
    (one) => one.film === film.key && one.detector === detector && !one.drawn && one.row === row && one.col === column,
  );

/** The missed lesions that were marked in an image, whichever detector missed them. */
export const drawnIn = (film) => answers.now.filter((one) => one.drawn && one.film === film?.key);

/** Accept or reject a finding of the active detector; the same answer once more takes it back. */
export function answer(finding, reading) {
  const { current: film, active: detector } = state;
  const before = answered(film, detector, finding);
  const rest = answers.now.filter((one) => one !== before);
  const circle = circleOf(finding, film.results.get(detector), card(detector).step_mm);
  answers.change(before?.reading === reading ? rest : [...rest, { ...of(film, detector), ...circle, reading }]);
}

/** Mark a missed lesion in the image that is looked at, px from its upper left corner; false: it is not in it. */
export function mark({ x, y, radius }) {
  const { current: film, active: detector } = state;
  if (!film?.picture?.at(x, y)) return false;
  const circle = { row: Math.max(0, y - 0.5), col: Math.max(0, x - 0.5), radius };
  answers.change([...answers.now, { ...of(film, detector), ...circle, reading: "accepted", drawn: true }]);
  return true;
}

export const unmark = (one) => answers.change(answers.now.filter((other) => other !== one));

export function saveReadings() {
  save(new Blob([csv(answers.now)], { type: "text/csv" }), "readings.csv");
  answers.saved = answers.now;
}

function of(film, detector) {
  const { sha256 } = film.results.get(detector)?.answer.detector ?? card(detector);
  return { film: film.key, image: film.name, detector, sha256: sha256 ?? "" };
}

/** The circle of a finding's area around its highest place, at least a place's step wide, px of the image as it came. */
function circleOf({ row, column, size_mm2: size }, { answer: { image }, heatmap: { down, across } }, step_mm) {
  const places = size / (step_mm || down * image.spacing_mm) ** 2;
  return { row, col: column, radius: Math.max(Math.sqrt((places * down * across) / Math.PI), down, across) };
}
