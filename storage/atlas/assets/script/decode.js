// The data blocks of the page: base64 of raw-deflated JSON, inflated by the browser itself when asked for.

async function inflate(name) {
  const holder = document.querySelector(`script[data-block="${name}"]`);
  const bytes = Uint8Array.from(atob(holder.textContent), (character) => character.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate-raw"));
  return JSON.parse(await new Response(stream).text());
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
