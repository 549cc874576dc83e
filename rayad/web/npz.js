/** Reading numpy's npz: a zip (stored or deflated entries) of npy files in C order. */

const TYPES = { "<f4": Float32Array, "<u2": Uint16Array, "|u1": Uint8Array, "|b1": Uint8Array };
const [LOCAL, CENTRAL, END] = [0x04034b50, 0x02014b50, 0x06054b50];
const END_BYTES = 22;
const text = new TextDecoder();

/**
 * Arrays of an npz file.
 * @param {Blob} blob
 * @param {string[]} names those that are wanted; those that the file lacks are left out
 * @returns {Promise<Object<string, {values: TypedArray, shape: number[]}>>}
 */
export async function readNpz(blob, names) {
  const bytes = new Uint8Array(await blob.arrayBuffer());
  const wanted = entries(bytes).filter((entry) => names.includes(entry.name));
  const arrays = wanted.map(async (entry) => [entry.name, parseNpy(await content(bytes, entry), entry.name)]);
  return Object.fromEntries(await Promise.all(arrays));
}

/** The zip's directory, which stands at its end. */
function entries(bytes) {
  const view = new DataView(bytes.buffer);
  let end = bytes.length - END_BYTES;
  while (end >= 0 && view.getUint32(end, true) !== END) end -= 1;
  if (end < 0) throw new Error("the answer is no zip file");
  const found = [];
  let at = view.getUint32(end + 16, true);
  for (let i = view.getUint16(end + 10, true); i > 0; i -= 1) {
    if (view.getUint32(at, true) !== CENTRAL) throw new Error("the zip's directory is damaged");
    const [name, extra, comment] = [28, 30, 32].map((offset) => view.getUint16(at + offset, true));
    found.push({
      name: text.decode(bytes.subarray(at + 46, at + 46 + name)).replace(/\.npy$/, ""),
      method: view.getUint16(at + 10, true),
      packed: view.getUint32(at + 20, true),
      size: view.getUint32(at + 24, true),
      offset: view.getUint32(at + 42, true),
    });
    at += 46 + name + extra + comment;
  }
  return found;
}

async function content(bytes, { name, method, packed, size, offset }) {
  const view = new DataView(bytes.buffer);
  if (view.getUint32(offset, true) !== LOCAL) throw new Error(`${name}: the zip's entry is damaged`);
  const start = offset + 30 + view.getUint16(offset + 26, true) + view.getUint16(offset + 28, true);
  const raw = bytes.subarray(start, start + packed);
  if (method !== 0 && method !== 8) throw new Error(`${name}: zip method ${method} is not known`);
  const data = method === 0 ? raw : await inflate(raw);
  if (data.length !== size) throw new Error(`${name}: ${data.length} bytes, not ${size}`);
  return data;
}

async function inflate(raw) {
  const stream = new Blob([raw]).stream().pipeThrough(new DecompressionStream("deflate-raw"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

/** numpy/lib/format.py: magic, version, length of the header, a Python dictionary, the values. */
function parseNpy(bytes, name) {
  if (text.decode(bytes.subarray(1, 6)) !== "NUMPY") throw new Error(`${name} is no npy file`);
  const view = new DataView(bytes.buffer, bytes.byteOffset);
  const wide = bytes[6] > 1;
  const start = wide ? 12 : 10;
  const end = start + (wide ? view.getUint32(8, true) : view.getUint16(8, true));
  const header = text.decode(bytes.subarray(start, end));
  const [, descr] = /'descr': '([^']+)'/.exec(header) ?? [];
  const [, inside] = /'shape': \(([^)]*)\)/.exec(header) ?? [];
  const Type = TYPES[descr];
  if (!Type || inside === undefined || !header.includes("'fortran_order': False")) {
    throw new Error(`${name}: ${header.trim()} is not what the viewer reads`);
  }
  const shape = inside.split(",").filter((size) => size.trim()).map(Number);
  const count = shape.reduce((product, size) => product * size, 1);
  if (bytes.length - end !== count * Type.BYTES_PER_ELEMENT) throw new Error(`${name}: ${shape} do not fit its size`);
  return { values: new Type(bytes.slice(end).buffer), shape };
}
