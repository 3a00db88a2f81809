// The data blocks of the page: base64 of raw-deflated JSON, inflated by the browser itself when asked for.

async function inflate(name) {
  const holder = document.querySelector(`script[data-block="${name}"]`);
  const stream = new Blob([bytesOf(holder.textContent)]).stream().pipeThrough(new DecompressionStream("deflate-raw"));
  return JSON.parse(await new Response(stream).text());
}

function bytesOf(base64) {
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(base64);
  const text = atob(base64);
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i += 1) bytes[i] = text.charCodeAt(i);
  return bytes;
}

const inflated = new Map();

function block(name) {
  if (!inflated.has(name)) inflated.set(name, inflate(name));
  return inflated.get(name);
}

async function detailOf(model, node) {
  const number = Math.floor(node / model.detailBlock);
  const details = await block(`detail-${number}`);
  return details[node - number * model.detailBlock];
}
