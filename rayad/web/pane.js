/** One detector's view of the image: canvas, what stands in its corners, and what a pointer does to it. */

import { changeTable, grayTable } from "./colors.js";
import { digits, h, pText } from "./page.js";
import { place } from "./picture.js";
import { answered, drawnIn } from "./reader.js";

const SIGNS = { accepted: "✓", rejected: "✗" };
const LENGTHS_MM = [0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100];

export class Pane {
  /**
   * @param {string} detector
   * @param {Object} controls pan, zoom, adjust, point, press, release and activate: all by screen px from the pane's
   * middle
   * @param {Film?} film that hangs here; null: whichever is looked at
   */
  constructor(detector, controls, film = null) {
    Object.assign(this, { detector, film });
    this.canvas = h("canvas", { tabIndex: 0, role: "img" });
    this.name = h("b", {}, detector);
    this.said = h("span");
    this.window = h("div", { className: "corner top right" });
    this.readout = h("output", { className: "corner bottom left" });
    this.message = h("p", { className: "message" });
    const head = h("div", { className: "corner top left" }, this.name, this.said);
    this.element = h("figure", { className: "pane" }, this.canvas, head, this.window, this.readout, this.message);
    this.listen(controls);
    new ResizeObserver(() => this.resize(controls)).observe(this.element);
  }

  /** Whole pixels of the screen, so that nothing is blurred. */
  resize(controls) {
    const room = this.element.getBoundingClientRect();
    for (const side of ["width", "height"]) {
      this.canvas[side] = Math.floor(room[side] * devicePixelRatio);
      this.canvas.style[side] = `${this.canvas[side] / devicePixelRatio}px`;
    }
    controls.resized();
  }

  listen({ pan, zoom, adjust, point, press, release, activate }) {
    const { canvas } = this;
    const fingers = new Map();
    const fromMiddle = (event) => [
      (event.offsetX - canvas.clientWidth / 2) * devicePixelRatio,
      (event.offsetY - canvas.clientHeight / 2) * devicePixelRatio,
    ];
    const middle = () => [0, 1].map((side) => mean([...fingers.values()].map((finger) => finger[side])));
    const apart = ([one, two] = [...fingers.values()]) => (two ? Math.hypot(one[0] - two[0], one[1] - two[1]) : 1);
    canvas.addEventListener("contextmenu", (event) => event.preventDefault());
    canvas.addEventListener("focus", () => activate(this));
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      fingers.set(event.pointerId, fromMiddle(event));
      activate(this);
      point(...fromMiddle(event), this);
      if (event.button === 0) press(fingers.size === 1);
    });
    canvas.addEventListener("pointermove", (event) => {
      if (fingers.has(event.pointerId)) {
        const [[x, y], distance] = [middle(), apart()];
        fingers.set(event.pointerId, fromMiddle(event));
        const now = middle();
        (event.buttons === 2 ? adjust : pan)(now[0] - x, now[1] - y);
        if (fingers.size > 1) zoom(apart() / Math.max(distance, 1), ...now);
      }
      point(...fromMiddle(event), this);
    });
    for (const ended of ["pointerup", "pointercancel"]) {
      canvas.addEventListener(ended, (event) => {
        fingers.delete(event.pointerId);
        if (event.button === 0) release(ended === "pointerup");
      });
    }
    canvas.addEventListener("pointerleave", ({ pointerType }) => pointerType === "mouse" && point(null, null, this));
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      activate(this);
      zoom(2 ** (-Math.max(-100, Math.min(event.deltaY, 100)) / 400), ...fromMiddle(event));
    }, { passive: false });
  }

  /** Paint what the state of the viewer says of a film. */
  paint(state, film) {
    const { canvas } = this;
    const result = film?.results.get(this.detector);
    const picture = this.picture(state, film, result);
    canvas.getContext("2d").clearRect(0, 0, canvas.width, canvas.height);
    this.element.classList.toggle("active", state.active === this.detector && film === state.current);
    this.write(state, film, result, picture);
    if (!picture || !canvas.width || !canvas.height) return; // it has just come back, and gets its size after this
    picture.draw(canvas, state.view, table(state, picture));
    if (result) this.overlay(state, film, result);
    this.circle(state, film);
    if (state.cursor && state.cursor.pane !== this) this.cross(state);
  }

  /** What the detector says. */
  overlay(state, film, result) {
    const { canvas } = this;
    if (state.heat[state.base]) result.heatmap.draw(canvas, state.view, state.limit, state.opacity);
    if (state.marks) {
      result.heatmap.outlineTissue(canvas, state.view);
      result.heatmap.outline(canvas, state.view, state.limit);
      this.number(state, film, result.answer.findings);
    }
    this.scaleBar(state.view.scale, result.answer.image.spacing_mm);
  }

  picture(state, film, result) {
    if (!film?.picture) return null;
    return state.base === "image" ? film.picture : result?.healthy?.[state.base] ?? null;
  }

  write(state, film, result, picture) {
    const answer = result?.answer;
    const said = answer ? `score ${digits(answer.score)} · ${pText(answer.p_value, answer.p_value_floor)}` : "";
    const waiting = film && !result ? "scoring…" : "";
    const drawing = result?.explained && !result.healthy;
    const none = drawing ? "drawing…" : "This detector has no such picture of this image.";
    const lacking = result && !picture && film.picture ? none : "";
    const problem = film?.problems.get(this.detector);
    const mend = /spacing/i.test(problem) ? "\nGive mm a pixel above, then score again." : "";
    const { laterality = "", view = "" } = this.film?.image ?? {};
    write(this.name, this.film ? [laterality, view, film.name].filter(Boolean).join(" ") : this.detector);
    write(this.said, said);
    write(this.message, problem ? problem + mend : waiting || lacking);
    this.message.classList.toggle("problem", Boolean(problem));
    write(this.window, picture ? looking(state) : "");
    write(this.readout, picture && state.cursor ? reading(state, picture, film.picture, result) : "");
    this.canvas.setAttribute("aria-label", `${film?.name ?? "no image"}, ${this.detector}: ${said || "not scored"}`);
  }

  /** Numbers at the findings' peaks, with the reader's answers. */
  number(state, film, findings) {
    const context = this.canvas.getContext("2d");
    const { scale, left, top } = place(state.view, this.canvas);
    context.font = `600 ${11 * devicePixelRatio}px system-ui, sans-serif`;
    context.textAlign = "center";
    context.textBaseline = "middle";
    findings.forEach((finding, i) => {
      if (finding.p_value > state.limit * (1 + 1e-6)) return;
      const [x, y] = [left + finding.column * scale, top + finding.row * scale];
      const sign = SIGNS[answered(film, this.detector, finding)?.reading] ?? "";
      const radius = (sign ? 12 : 9) * devicePixelRatio;
      const chosen = state.active === this.detector && state.finding === i;
      const side = y > 3 * radius ? -1 : 1; // of the peak, where the number is seen
      context.beginPath();
      context.arc(x + 1.6 * radius, y + side * 1.6 * radius, radius, 0, 2 * Math.PI);
      context.fillStyle = chosen ? "#fff" : "#000b";
      context.strokeStyle = "#fff";
      context.lineWidth = 1.25 * devicePixelRatio;
      context.moveTo(x, y);
      context.lineTo(x + 0.9 * radius, y + side * 0.9 * radius);
      context.fill();
      context.stroke();
      context.fillStyle = chosen ? "#000" : "#fff";
      context.fillText(`${i + 1}${sign}`, x + 1.6 * radius, y + side * 1.6 * radius + 0.05 * radius);
    });
  }

  /** Missed lesions that the reader marked, and dashed the one that he is about to mark. */
  circle({ view, cursor, drawing, marks }, film) {
    const context = this.canvas.getContext("2d");
    const { scale, left, top } = place(view, this.canvas);
    const round = (x, y, radius) => {
      context.beginPath();
      context.arc(left + x * scale, top + y * scale, radius * scale, 0, 2 * Math.PI);
      stroke(context, 1.5, "#7cc4f0");
    };
    for (const { row, col, radius } of marks ? drawnIn(film) : []) round(col + 0.5, row + 0.5, radius);
    const centre = drawing && (drawing.centre ?? cursor);
    if (!centre) return;
    context.setLineDash([4 * devicePixelRatio, 4 * devicePixelRatio]);
    round(centre.x, centre.y, drawing.radius);
    context.setLineDash([]);
  }

  /** A bar of a round length, at most a quarter of the pane. */
  scaleBar(scale, spacing) {
    const context = this.canvas.getContext("2d");
    const room = (this.canvas.width / 4 / scale) * spacing;
    const length = LENGTHS_MM.findLast((mm) => mm <= room) ?? LENGTHS_MM[0];
    const [right, bottom] = [this.canvas.width - 14 * devicePixelRatio, this.canvas.height - 14 * devicePixelRatio];
    const start = right - (length / spacing) * scale;
    context.lineCap = "butt";
    line(context, [start, bottom, right, bottom], 2);
    context.font = `${12 * devicePixelRatio}px system-ui, sans-serif`;
    context.textAlign = "center";
    context.textBaseline = "bottom";
    context.lineWidth = 3 * devicePixelRatio;
    context.strokeStyle = "#000";
    context.fillStyle = "#fff";
    for (const draw of ["strokeText", "fillText"]) {
      context[draw](`${length} mm`, (start + right) / 2, bottom - 4 * devicePixelRatio);
    }
  }

  /** Where the pointer of another pane, or the keyboard's, is. */
  cross({ view, cursor }) {
    const context = this.canvas.getContext("2d");
    const { scale, left, top } = place(view, this.canvas);
    const [x, y] = [left + cursor.x * scale, top + cursor.y * scale];
    const arm = 9 * devicePixelRatio;
    line(context, [x - arm, y, x + arm, y], 1);
    line(context, [x, y - arm, x, y + arm], 1);
  }
}

function line(context, [fromX, fromY, toX, toY], width) {
  context.beginPath();
  context.moveTo(fromX, fromY);
  context.lineTo(toX, toY);
  stroke(context, width, "#fff");
}

/** The path in a color, with a dark rim. */
function stroke(context, width, color) {
  for (const [shade, more] of [["#000", 2], [color, 0]]) {
    context.strokeStyle = shade;
    context.lineWidth = (width + more) * devicePixelRatio;
    context.stroke();
  }
}

const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;

function table({ base, windows }, { full }) {
  return base === "change" ? changeTable(full) : grayTable(windows[base], full);
}

/** Window and zoom. */
function looking({ base, view, windows }) {
  const { low, high, invert } = windows[base];
  const window = base === "change" ? "−0.5 – 0.5" : `${low} – ${high}${invert ? " inverted" : ""}`;
  return `${window}\n${digits(100 * view.scale)} %`;
}

/** Place, pixel and figures under the cursor, a line each. */
function reading({ cursor: { x, y }, base }, picture, image, result) {
  const values = picture.at(x, y);
  if (!values || !image.at(x, y)) return "";
  const spacing = result?.answer.image.spacing_mm;
  const where = spacing ? `x ${(x * spacing).toFixed(1)} mm, y ${(y * spacing).toFixed(1)} mm · ` : "";
  const difference = (values[0] / picture.full - 0.5).toFixed(3);
  const shown = base === "change" ? `difference ${difference}` : `value ${values.join(" ")}`;
  return `${where}row ${Math.floor(y)}, column ${Math.floor(x)}\n${shown}\n${judged(x, y, result)}`;
}

function judged(x, y, result) {
  const found = result?.heatmap.at(x, y);
  if (!found) return result ? "outside the tissue" : "";
  const p = pText(found.p, result.answer.p_value_floor);
  return `score ${digits(found.score)} · ${p} · healthy quantile ${digits(found.quantile, 4)}`;
}

function write(element, text) {
  if (element.textContent !== text) element.textContent = text;
}
