/**
 * A picture of full depth as a pyramid of halves: only what is seen, at about the size it is seen at, goes through
 * the window, so that a mammogram of 4096 x 3328 px pans as fast as a small one.
 *
 * Places are in px of the image, from its upper left corner: pixel (0, 0) is the square from (0, 0) to (1, 1).
 */

import { pixel } from "./colors.js";

const SAMPLE = 2 ** 20;
const scratch = document.createElement("canvas");

/** Where a pane looks: `x`, `y` of the image are in its middle, at `scale` screen px a px of the image. */
export function place(view, canvas) {
  const left = Math.round(canvas.width / 2 - view.x * view.scale);
  const top = Math.round(canvas.height / 2 - view.y * view.scale);
  return { scale: view.scale, left, top };
}

export class Picture {
  /**
   * @param {Uint16Array|Uint8Array} values gray, or red, green, blue
   * @param {number[]} shape rows, columns, and 3 for colours
   * @param {number[]} size rows and columns of the image that it covers
   */
  constructor(values, [rows, columns, channels = 1], size = [rows, columns]) {
    this.channels = channels;
    this.full = values instanceof Uint8Array ? 255 : 65535;
    this.unit = [size[1] / columns, size[0] / rows];
    this.levels = [{ values, rows, columns }];
    while (Math.max(this.last.rows, this.last.columns) > 64) this.levels.push(half(this.last, channels));
  }

  get last() {
    return this.levels.at(-1);
  }

  /** The values of a pixel; null outside the picture. */
  at(x, y) {
    const { values, rows, columns } = this.levels[0];
    const [column, row] = [Math.floor(x / this.unit[0]), Math.floor(y / this.unit[1])];
    if (row < 0 || column < 0 || row >= rows || column >= columns) return null;
    const start = (row * columns + column) * this.channels;
    return [...values.subarray(start, start + this.channels)];
  }

  /**
   * The values that these shares of the pixels lie below.
   * @param {number[]} shares
   * @param {function(number, number): boolean} inside which pixels count, by x and y
   */
  quantiles(shares, inside) {
    const depth = this.levels.findIndex(({ rows, columns }) => rows * columns <= SAMPLE);
    const { values, rows, columns } = this.levels[depth];
    const [width, height] = this.unit.map((unit) => unit * 2 ** depth);
    const counts = new Uint32Array(this.full + 1);
    let total = 0;
    for (let i = 0; i < rows * columns; i += 1) {
      if (!inside(((i % columns) + 0.5) * width, (Math.floor(i / columns) + 0.5) * height)) continue;
      counts[values[i * this.channels]] += 1;
      total += 1;
    }
    return shares.map((share) => firstAbove(counts, share * total));
  }

  /** Draw what a pane sees, through a table of colours. */
  draw(canvas, view, table) {
    const context = canvas.getContext("2d");
    const { scale, left, top } = place(view, canvas);
    const finest = scale * Math.min(...this.unit);
    const depth = Math.min(Math.max(Math.floor(-Math.log2(finest) + 0.01), 0), this.levels.length - 1);
    const level = this.levels[depth];
    const [width, height] = this.unit.map((unit) => unit * 2 ** depth * scale);
    const [x, columns] = seen(left, width, canvas.width, level.columns);
    const [y, rows] = seen(top, height, canvas.height, level.rows);
    if (rows <= 0 || columns <= 0) return;
    scratch.width = columns;
    scratch.height = rows;
    scratch.getContext("2d").putImageData(this.colored(level, table, { x, y, rows, columns }), 0, 0);
    context.imageSmoothingEnabled = width < 1;
    context.imageSmoothingQuality = "low";
    context.drawImage(scratch, left + x * width, top + y * height, columns * width, rows * height);
  }

  colored(level, table, { x, y, rows, columns }) {
    const image = new ImageData(columns, rows);
    const words = new Uint32Array(image.data.buffer);
    const { values } = level;
    for (let row = 0; row < rows; row += 1) {
      let from = ((y + row) * level.columns + x) * this.channels;
      const end = (row + 1) * columns;
      if (this.channels === 1) for (let to = row * columns; to < end; to += 1) words[to] = table[values[from++]];
      else {
        for (let to = row * columns; to < end; to += 1, from += 3) {
          words[to] = pixel(table[values[from]] & 255, table[values[from + 1]] & 255, table[values[from + 2]] & 255);
        }
      }
    }
    return image;
  }
}

/** First cell and number of cells of `size` screen px that a screen shows. */
function seen(start, size, screen, count) {
  const first = Math.max(Math.floor(-start / size) - 1, 0);
  return [first, Math.min(Math.ceil((screen - start) / size) + 1, count) - first];
}

function half({ values, rows, columns }, channels) {
  const [tall, wide] = [Math.ceil(rows / 2), Math.ceil(columns / 2)];
  const small = new values.constructor(tall * wide * channels);
  const across = columns * channels;
  let to = 0;
  for (let row = 0; row < tall; row += 1) {
    const above = 2 * row * across;
    const below = Math.min(2 * row + 1, rows - 1) * across;
    for (let column = 0; column < wide; column += 1) {
      const left = 2 * column * channels;
      const right = Math.min(2 * column + 1, columns - 1) * channels;
      for (let c = 0; c < channels; c += 1) {
        const upper = values[above + left + c] + values[above + right + c];
        const lower = values[below + left + c] + values[below + right + c];
        small[to++] = (upper + lower + 2) >> 2;
      }
    }
  }
  return { values: small, rows: tall, columns: wide };
}

function firstAbove(counts, wanted) {
  let seenSoFar = 0;
  const value = counts.findIndex((count) => (seenSoFar += count) >= wanted && seenSoFar > 0);
  return Math.max(value, 0);
}
