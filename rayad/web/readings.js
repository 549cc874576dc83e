/**
 * The table readings.csv (docs/formats.md): what a reader says of findings, and lesions that he marks himself. The viewer
 * imports this; rayad/evaluation/report.py writes it into the page of a report.
 */

const COLUMNS = ["image", "row", "col", "radius", "reading", "detector", "sha256"];
/** How a cell begins that spreadsheets take for a formula. */
const FORMULA = /^[=+\-@\t\r\n]/;

/** A state that changes, what it was before each change, and whether it was saved since. */
export class History {
  constructor(now) {
    Object.assign(this, { now, before: [], saved: now });
  }

  get unsaved() {
    return this.now !== this.saved;
  }

  change(next) {
    this.before.push(this.now);
    this.now = next;
  }

  undo() {
    if (this.before.length) this.now = this.before.pop();
  }
}

/**
 * The table as text, in the form of RFC 4180. A name that begins like a formula gets "./" before it, which leaves a path
 * what it is; a detector's an apostrophe.
 * @param {{image, row, col, radius, reading, detector, sha256}[]} readings lengths in px of the image as it came
 */
export function csv(readings) {
  const line = ({ image, row, col, radius, reading, detector, sha256 }) => [
    FORMULA.test(image) ? `./${image}` : image,
    ...[row, col, radius].map((px) => String(Number(Number(px).toFixed(2)))),
    reading,
    FORMULA.test(detector) ? `'${detector}` : detector,
    sha256,
  ];
  const quoted = (cell) => (/[",\r\n]/.test(cell) ? `"${cell.replaceAll('"', '""')}"` : cell);
  return [COLUMNS, ...readings.map(line)].map((cells) => `${cells.map(quoted).join(",")}\r\n`).join("");
}
