/** An image and what detectors said of it. */

import { request } from "./api.js";
import { grayTable } from "./colors.js";
import { Frame } from "./frame.js";
import { Heatmap, NAMES } from "./heatmap.js";
import { readNpz } from "./npz.js";
import { h } from "./page.js";
import { Picture } from "./picture.js";

const NPZ = { Accept: "application/x-npz" };
/** Difference to the healthy version where its colour is strongest, share of the full scale. */
const CHANGE = 0.5;

export class Film {
  /**
   * @param {File|string} source a file, or a URL that the server fetches
   * @param {{spacing_mm: string, view: string}} said what the image may not say
   */
  constructor(source, said) {
    /** What the reader's answers know it by; they keep no image. */
    this.key = Symbol();
    this.file = typeof source === "string" ? null : source;
    this.name = this.file?.name ?? source.replace(/[?#].*/, "").replace(/.*\/(?=.)/, "");
    this.body = this.file ?? JSON.stringify({ url: source });
    this.packed = null;
    this.picture = null;
    this.thumbnail = null;
    this.dicom = !this.file && !/\.(png|jpe?g|tiff?|pgm)$/i.test(this.name);
    this.file?.slice(128, 132).text().then((magic) => (this.dicom = magic === "DICM"));
    this.forget(said);
  }

  /** Begin again, with another spacing or view. */
  forget(said) {
    this.said = said;
    this.results = new Map();
    this.problems = new Map();
  }

  /** What the first detector to score it says of its size, view and side; undefined before. */
  get image() {
    return this.results.values().next().value?.answer.image;
  }

  /** Where its breast lies; null before a detector has scored it. */
  get frame() {
    const result = this.results.values().next().value;
    return result ? (result.frame ??= new Frame(result.heatmap, result.answer.image)) : null;
  }

  /** Ask a detector; its answer or the problem is kept. */
  async score(detector) {
    const { results, problems, packed } = this;
    try {
      const blob = await (await this.ask(detector, NPZ, packed ? {} : { include: "pixels" })).blob();
      const arrays = await readNpz(blob, [...NAMES, "answer"]);
      if (!arrays.answer) throw new Error("the server's answer lacks its summary");
      const answer = JSON.parse(new TextDecoder().decode(arrays.answer.values));
      this.packed ??= blob;
      results.set(detector, { blob, answer, heatmap: new Heatmap(arrays), healthy: null });
    } catch (problem) {
      problems.set(detector, problem.message);
    }
  }

  /** Ask for the healthy counterfactual of an image that was scored. */
  async explain(detector) {
    const result = this.results.get(detector);
    result.explained = true;
    const blob = await (await this.ask(detector, NPZ, { include: "counterfactual" })).blob();
    const { counterfactual, change } = await readNpz(blob, ["counterfactual", "change"]);
    if (!counterfactual || !change) throw new Error("the server's answer has no counterfactual");
    const { rows, columns } = result.answer.image;
    const depth = (share) => Math.round(65535 * Math.min(Math.max(share, 0), 1));
    const picture = ({ values, shape }, share) =>
      new Picture(Uint16Array.from(values, (value) => depth(share(value))), shape, [rows, columns]);
    result.healthy = {
      healthy: picture(counterfactual, (value) => value),
      change: picture(change, (value) => 0.5 + (0.5 * value) / CHANGE),
    };
  }

  /** POST /v1/score of this image. */
  ask(detector, headers, more = {}) {
    const said = Object.entries(this.said).filter(([, value]) => value !== "");
    const query = new URLSearchParams({ detector, ...Object.fromEntries(said), ...more });
    const kind = this.file ? {} : { "Content-Type": "application/json" };
    return request(`/v1/score?${query}`, { method: "POST", headers: { ...headers, ...kind }, body: this.body });
  }

  /** Unpack the pixels; they are packed again (forgotten) while another image is looked at. */
  async unpack() {
    if (this.picture) return;
    const { pixels } = await readNpz(this.packed, ["pixels"]);
    if (!pixels) throw new Error("the server's answer has no pixels");
    this.picture = new Picture(pixels.values, pixels.shape);
    this.thumbnail ??= thumbnail(this.picture);
  }
}

function thumbnail(picture) {
  const [low, high] = picture.quantiles([0, 0.995], () => true);
  const small = picture.levels.find(({ rows, columns }) => Math.max(rows, columns) <= 160) ?? picture.last;
  const image = new Picture(small.values, [small.rows, small.columns, picture.channels]);
  const element = h("canvas", { width: small.columns, height: small.rows, "aria-hidden": "true" });
  image.draw(element, { x: small.columns / 2, y: small.rows / 2, scale: 1 }, grayTable({ low, high }, picture.full));
  return element;
}
