/** What a detector says of the places of an image: their colours, the border of what is marked, one place's figures. */

import { heatColor } from "./colors.js";
import { atMost } from "./page.js";
import { place } from "./picture.js";

/** The healthy quantile above which a place is marked, as in rayad/evaluation/findings.py. */
const ALARM = 0.99;
export const NAMES = ["scores", "p_values", "healthy_quantile", "tissue", "rows", "cols"];

export class Heatmap {
  /** @param {Object} arrays those of NAMES, as readNpz gives them */
  constructor(arrays) {
    for (const name of NAMES) {
      if (!arrays[name]) throw new Error(`the heatmap has no ${name}`);
    }
    const { rows: { values: rows }, cols: { values: columns } } = arrays;
    this.shape = [rows.length, columns.length];
    for (const name of NAMES.slice(0, 4)) {
      this[name] = arrays[name].values;
      if (this[name].length !== rows.length * columns.length) throw new Error(`${name} do not fit the heatmap's grid`);
    }
    this.down = step(rows) ?? step(columns) ?? 2 * rows[0];
    this.across = step(columns) ?? this.down;
    this.left = columns[0] - this.across / 2;
    this.top = rows[0] - this.down / 2;
    this.canvas = document.createElement("canvas");
    [this.canvas.height, this.canvas.width] = this.shape;
    this.painted = null;
  }

  /** The place that holds a point of the image; -1 outside the grid. */
  cell(x, y) {
    const [column, row] = [Math.floor((x - this.left) / this.across), Math.floor((y - this.top) / this.down)];
    const [rows, columns] = this.shape;
    return row >= 0 && column >= 0 && row < rows && column < columns ? row * columns + column : -1;
  }

  /** Score, p and healthy quantile under a point; null outside the tissue. */
  at(x, y) {
    const cell = this.cell(x, y);
    if (cell < 0 || !this.tissue[cell]) return null;
    return { score: this.scores[cell], p: this.p_values[cell], quantile: this.healthy_quantile[cell] };
  }

  /** Draw the places whose p is at most `limit`. */
  draw(canvas, view, limit, opacity) {
    this.paint(limit);
    const context = canvas.getContext("2d");
    const { scale, left, top } = place(view, canvas);
    context.imageSmoothingEnabled = false;
    context.globalAlpha = opacity;
    const at = [left + this.left * scale, top + this.top * scale];
    const size = [this.shape[1] * this.across * scale, this.shape[0] * this.down * scale];
    context.drawImage(this.canvas, ...at, ...size);
    context.globalAlpha = 1;
  }

  paint(limit) {
    if (this.painted === limit) return;
    const image = new ImageData(this.shape[1], this.shape[0]);
    const words = new Uint32Array(image.data.buffer);
    this.healthy_quantile.forEach((quantile, i) => {
      if (atMost(this.p_values[i], limit)) words[i] = heatColor(quantile);
    });
    this.canvas.getContext("2d").putImageData(image, 0, 0);
    this.painted = limit;
  }

  /** Draw the border of the cells that the detector marks and whose p is at most `limit`. */
  outline(canvas, view, limit) {
    const marked = (cell) => this.healthy_quantile[cell] > ALARM && atMost(this.p_values[cell], limit);
    this.border(canvas, view, marked, [["#222", 3], ["#fff", 1.25]]);
  }

  /** Draw the border of what was scored, dotted. */
  outlineTissue(canvas, view) {
    const context = canvas.getContext("2d");
    context.setLineDash([devicePixelRatio, 4 * devicePixelRatio]);
    this.border(canvas, view, (cell) => this.tissue[cell], [["#7cc4f0", 1.5]]);
    context.setLineDash([]);
  }

  /** Draw lines of these colours and widths between the cells inside and those outside. */
  border(canvas, view, inside, lines) {
    const context = canvas.getContext("2d");
    const { scale, left, top } = place(view, canvas);
    const x = (column) => left + (this.left + column * this.across) * scale;
    const y = (row) => top + (this.top + row * this.down) * scale;
    context.beginPath();
    for (const [fromRow, fromColumn, toRow, toColumn] of this.edges(inside)) {
      context.moveTo(x(fromColumn), y(fromRow));
      context.lineTo(x(toColumn), y(toRow));
    }
    context.lineCap = "square";
    for (const [color, width] of lines) {
      context.strokeStyle = color;
      context.lineWidth = width * devicePixelRatio;
      context.stroke();
    }
  }

  /** Edges between cells inside and others: row and column of both ends, in cells. */
  *edges(inside) {
    const [rows, columns] = this.shape;
    const within = (row, column) =>
      row >= 0 && column >= 0 && row < rows && column < columns && Boolean(inside(row * columns + column));
    for (let row = 0; row <= rows; row += 1) {
      for (let column = 0; column <= columns; column += 1) {
        const here = within(row, column);
        if (here !== within(row - 1, column)) yield [row, column, row, column + 1];
        if (here !== within(row, column - 1)) yield [row, column, row + 1, column];
      }
    }
  }
}

const step = (centers) => (centers.length > 1 ? centers[1] - centers[0] : null);
