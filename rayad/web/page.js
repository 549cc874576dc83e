/** What the viewer and the batch page share: elements without markup, numbers for people, the theme. */

export const byId = (id) => document.getElementById(id);

/**
 * A new element. Strings become text, never markup.
 * @param {string} tag
 * @param {Object} properties "onclick" and the like are listeners, names with a hyphen are attributes
 * @param {...(Node|string)} children
 */
export function h(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name.includes("-") || name === "role") element.setAttribute(name, value);
    else element[name] = value;
  }
  element.append(...children);
  return element;
}

/** A number in a few digits; a dash where there is none. */
export function digits(value, count = 3) {
  if (typeof value !== "number") return String(value ?? "–");
  return Number.isNaN(value) ? "–" : String(Number(value.toPrecision(count)));
}

/** "p = 0.12", or "p ≤ 0.04" where the calibration cannot say less. */
export function pText(p, floor) {
  return isFloor(p, floor) ? `p ≤ ${digits(floor, 2)}` : `p = ${digits(p, 2)}`;
}

/** float32 rounds 1 / (K + 1) up or down. */
export const atMost = (p, limit) => p <= limit * (1 + 1e-6);
const isFloor = (p, floor) => p !== null && atMost(p, floor);

/** Do it; what fails is said in place. */
export async function attempt(action, place = "problem") {
  try {
    await action();
    byId(place).textContent = "";
  } catch (problem) {
    byId(place).textContent = problem.message;
  }
}

/** Let a button switch between light and dark; until it does, the system's choice holds. */
export function themeButton(button) {
  const system = matchMedia("(prefers-color-scheme: dark)");
  const dark = () => (localStorage.getItem("theme") ?? (system.matches ? "dark" : "light")) === "dark";
  const show = () => {
    document.documentElement.dataset.theme = dark() ? "dark" : "light";
    button.setAttribute("aria-pressed", String(dark()));
  };
  button.addEventListener("click", () => {
    localStorage.setItem("theme", dark() ? "light" : "dark");
    show();
  });
  system.addEventListener("change", show);
  show();
}

/** Save bytes under a name. */
export function save(blob, name) {
  const link = h("a", { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}
