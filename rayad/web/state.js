/** What the viewer knows: the detectors, the images, and how they are looked at. */

const FULL = { low: 0, high: 65535, invert: false };
export const BASES = ["image", "healthy", "change"];

export const state = {
  cards: [],
  chosen: [],
  active: null,
  films: [],
  current: null,
  framed: null,
  working: false,
  compare: false,
  /** Whether open images hang side by side, by the active detector. */
  hang: false,
  view: { x: 0, y: 0, scale: 1 },
  fitted: true,
  windows: { image: FULL, healthy: FULL, change: FULL },
  base: "image",
  /** Whether the heatmap lies over each of BASES. */
  heat: { image: true, healthy: false, change: false },
  marks: true,
  opacity: 0.7,
  limit: 1,
  finding: -1,
  cursor: null,
  /** While missed lesions are marked: `radius` of the next circle, its `centre` while the pointer is down. */
  drawing: null,
};

/** Card of a detector, or of the one that is looked at. */
export const card = (wanted = state.active) => state.cards.find(({ name }) => name === wanted);
/** Its answer for the image that is looked at. */
export const result = () => state.current?.results.get(state.active);
