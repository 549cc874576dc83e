/** Images that hang side by side, as films on a light box: their order, and how each is looked at. */

import { state } from "./state.js";

/** Images that hang at once. */
const MOST = 6;

/** The view that shows all of a picture. */
export function whole({ levels: [{ rows, columns }] }, { width, height }) {
  return { x: columns / 2, y: rows / 2, scale: Math.min(width / columns, height / rows) };
}

/** The images that are opened together with the current one, at most MOST at once, as they hang. */
export function hung() {
  const first = Math.floor(Math.max(0, state.films.indexOf(state.current)) / MOST) * MOST;
  return inOrder(state.films.slice(first, first + MOST));
}

/** How an image is looked at while the current one is looked at as the state says. */
export function viewOf(film, canvas) {
  const { current, view, fitted } = state;
  if (film === current) return view;
  if (!fitted && current?.frame && film.frame) return current.frame.view(film.frame, view);
  return film.picture ? whole(film.picture, canvas) : view;
}

/** The state as the pane of an image shows it: the place under the cursor is where such a place is in its own image. */
export function seenBy(film, canvas) {
  if (film === state.current) return state;
  const [from, to] = [state.current?.frame, film.frame];
  const cursor = state.cursor && from && to ? { ...from.to(to, state.cursor), pane: state.cursor.pane } : null;
  return { ...state, view: viewOf(film, canvas), cursor, finding: -1, drawing: null };
}

/** Images as they hang: a row a view, the breast whose chest wall is at the right first, back to back. */
function inOrder(films) {
  const rows = new Map();
  for (const film of films) {
    const view = film.image?.view ?? "";
    rows.set(view, [...(rows.get(view) ?? []), film]);
  }
  const side = ({ image, frame }) => image?.laterality || (frame?.towards === -1 ? "R" : "L");
  return [...rows.keys()].sort().flatMap((view) => {
    const [right, left] = ["R", "L"].map((wanted) => rows.get(view).filter((film) => side(film) === wanted));
    const pairs = Array.from({ length: Math.max(right.length, left.length) }, (_, i) => [right[i], left[i]]);
    return pairs.flat().filter(Boolean);
  });
}
