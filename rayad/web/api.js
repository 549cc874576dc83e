/** Requests to the server, with the token that it may want. */

import { byId } from "./page.js";

const KEY = "rayad-token";
let asking = null;

/** What the server would not do, and why: the detail of its problem document. */
export class Problem extends Error {}

/**
 * The server's answer; a token is asked for when it wants one.
 * @throws {Problem} if it cannot be reached or refuses
 */
export async function request(path, options = {}) {
  const token = sessionStorage.getItem(KEY);
  const headers = { ...options.headers, ...(token && { Authorization: `Bearer ${token}` }) };
  const response = await fetch(path, { ...options, headers }).catch(() => {
    throw new Problem("The server cannot be reached.");
  });
  if (response.status === 401) {
    await newToken(token, await detail(response));
    return request(path, options);
  }
  if (!response.ok) throw new Problem(await detail(response));
  return response;
}

export const json = async (path, options) => (await request(path, options)).json();

async function detail(response) {
  const plain = `The server answered ${response.status} ${response.statusText}.`;
  if (!response.headers.get("Content-Type")?.startsWith("application/problem+json")) return plain;
  const problem = await response.json();
  return problem.detail || problem.title || plain;
}

/** Wait until there is another token than the one that was refused. */
async function newToken(refused, why) {
  if (sessionStorage.getItem(KEY) !== refused) return;
  asking ??= ask(refused === null ? "" : why).finally(() => (asking = null));
  await asking;
}

function ask(why) {
  const dialog = byId("token");
  const input = dialog.querySelector("input");
  dialog.querySelector(".problem").textContent = why;
  dialog.returnValue = "";
  input.value = "";
  dialog.showModal();
  return new Promise((resolve, reject) => {
    dialog.addEventListener("close", () => {
      if (dialog.returnValue !== "ok") return reject(new Problem("The server wants a token. Reload to give one."));
      sessionStorage.setItem(KEY, input.value.trim());
      input.value = "";
      resolve();
    }, { once: true });
  });
}
