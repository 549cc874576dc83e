/** Requests to the server, with the token that it may want. */

import { byId, h } from "./page.js";

const KEY = "rayad-token";
const [RETRIES, LONGEST_WAIT_S] = [3, 20];
let asking = null;
let declined = false;

/** What the server would not do, and why: the detail of its problem document. */
export class Problem extends Error {}

/**
 * The server's answer; a token is asked for when it wants one, and a busy server is asked again when it says so.
 * @throws {Problem} if it cannot be reached or refuses
 */
export async function request(path, options = {}, retries = RETRIES) {
  const token = sessionStorage.getItem(KEY);
  const headers = { ...options.headers, ...(token && { Authorization: `Bearer ${token}` }) };
  const response = await fetch(path, { ...options, headers }).catch(() => {
    throw new Problem("The server cannot be reached.");
  });
  if (response.ok) return response;
  const why = await detail(response);
  if (response.status === 401) {
    await newToken(token, why);
    return request(path, options, retries);
  }
  const wait = Number(response.headers.get("Retry-After"));
  if (![429, 503].includes(response.status) || !retries || !wait || wait > LONGEST_WAIT_S) throw new Problem(why);
  await new Promise((resolve) => setTimeout(resolve, 1000 * wait));
  return request(path, options, retries - 1);
}

export const json = async (path, options) => (await request(path, options)).json();

/** The detectors that are served, and which of them is the default; the page says what they are for. */
export async function served() {
  const found = await json("/v1/detectors");
  byId("research").textContent = found.research_use_only;
  if (!found.detectors.length) throw new Problem("The server has no detector yet.");
  return found;
}

/** The button that asks for a token once more: it is seen while the server wants one and has none. */
export function tokenButton(button, then) {
  button.addEventListener("click", () => {
    declined = false;
    newToken(sessionStorage.getItem(KEY), "").then(then, () => {});
  });
}

async function detail(response) {
  const plain = `The server answered ${response.status} ${response.statusText}.`;
  if (!response.headers.get("Content-Type")?.startsWith("application/problem+json")) return plain;
  const problem = await response.json();
  return problem.detail || problem.title || plain;
}

/** Wait until there is another token than the one that was refused. */
async function newToken(refused, why) {
  if (sessionStorage.getItem(KEY) !== refused) return;
  if (declined) throw new Problem("The server wants a token.");
  asking ??= ask(refused === null ? "" : why).finally(() => (asking = null));
  await asking;
}

function ask(why) {
  const input = h("input", { type: "password", required: true, autocomplete: "off" });
  const buttons = [
    h("button", { value: "ok", className: "main" }, "Go on"),
    h("button", { value: "cancel", formNoValidate: true }, "Cancel"),
  ];
  const form = h("form", { method: "dialog" }, h("h2", { id: "token-title" }, "Token"));
  form.append(h("p", {}, "This server wants a token. It is kept until this tab is closed."));
  form.append(h("p", { className: "problem", role: "alert" }, why), h("label", {}, "Token ", input));
  form.append(h("div", {}, ...buttons));
  const dialog = h("dialog", { id: "token", "aria-labelledby": "token-title" }, form);
  document.body.append(dialog);
  dialog.showModal();
  return new Promise((resolve, reject) => {
    dialog.addEventListener("close", () => {
      dialog.remove();
      declined = dialog.returnValue !== "ok";
      byId("token-button").hidden = !declined;
      if (declined) return reject(new Problem("The server wants a token."));
      sessionStorage.setItem(KEY, input.value.trim());
      resolve();
    });
  });
}
