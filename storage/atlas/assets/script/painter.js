// Draws the hierarchy on three canvases: the ground (bands), the web (edges and nodes, redrawn when the camera
// moves), and what stands out (labels, selection), redrawn alone when the pointer moves.

const TAU = 2 * Math.PI;

// What a frame may cost: the strongest edges come first, so a budget loses only the faint ones.
// Zooming in raises it: fewer edges are in view then, and the faint ones have room.
const edgesAtRest = (zoom, width) => clamp(Math.round(1.5 * width * zoom ** 1.5), 500, 6000);
const EDGES_IN_MOTION = 900;

function drawGround(pen, scene) {
  const { model, place, camera, width, height } = scene;
  pen.clearRect(0, 0, width, height);
  for (const band of place.bands) {
    const pad = clamp(10 * camera.k, 8, 40);
    const top = band.top * camera.k + camera.y - pad;
    const bottom = band.bottom * camera.k + camera.y + pad;
    if (bottom < -40 || top > height + 40) continue;
    pen.fillStyle = levelColour(model, band.level, theme() === "dark" ? 0.09 : 0.08);
    pen.fill(stratum(scene, band.level, top, bottom));
  }
}

function drawTitles(pen, { model, place, camera, height, ink }) {
  pen.lineJoin = "round";
  pen.strokeStyle = ink.paper;
  pen.lineWidth = 5;
  for (const band of place.bands) {
    const top = band.top * camera.k + camera.y - clamp(10 * camera.k, 8, 40);
    if (band.bottom * camera.k + camera.y < 0 || top > height + 10) continue;
    const y = clamp(top - 8, 20, height - 8);
    if (y === 20) plate(pen, ink.paper);
    const entry = model.levelOf.get(band.level);
    const listed = band.nodes.length < entry.n_concepts ? `${count.format(band.nodes.length)} of ` : "";
    let x = 14;
    for (const [text, weight, colour] of [
      [band.level === 0 ? "Observed" : `Level ${band.level}`, 650, levelColour(model, band.level)],
      [`${levelName(model, band.level)} · ${listed}${count.format(entry.n_concepts)}`, 400, ink.muted],
    ]) {
      pen.font = `${weight} 12.5px ${ink.font}`;
      pen.strokeText(text, x, y);
      pen.fillStyle = colour;
      pen.fillText(text, x, y);
      x += pen.measureText(text).width + 8;
    }
  }
}

// A band with gently waved borders, each level with its own phase.
function stratum({ width, camera }, level, top, bottom) {
  const path = new Path2D();
  const swell = clamp(2.5 * camera.k, 2, 6);
  const wave = (x, phase) =>
    swell * (Math.sin((x - camera.x) / (140 * camera.k) + phase) + 0.5 * Math.sin((x - camera.x) / (53 * camera.k) + 2 * phase));
  for (let x = -12; x <= width + 12; x += 12) path.lineTo(x, top + wave(x, level * 2.1));
  for (let x = width + 24; x >= -12; x -= 12) path.lineTo(x, bottom + wave(x, level * 2.1 + 1.3));
  path.closePath();
  return path;
}

function drawWeb(pen, scene, moving) {
  pen.clearRect(0, 0, scene.width, scene.height);
  drawEdges(pen, scene, edgesInView(scene, moving ? EDGES_IN_MOTION : edgesAtRest(scene.camera.k / scene.home, scene.width)), 1);
  drawNodes(pen, scene);
}

function edgesInView({ model, place, camera, home, shown, width, height }, budget) {
  const kept = [];
  const close = camera.k > 2 * home;
  const inside = (x, y) => x > -20 && x < width + 20 && y > -20 && y < height + 20;
  for (const e of model.edgeOrder) {
    if (!shown[e]) continue;
    const [s, t] = [model.source[e], model.target[e]];
    const [xs, xt] = [place.x[s] * camera.k + camera.x, place.x[t] * camera.k + camera.x];
    if (!(xs > -40 || xt > -40) || !(xs < width + 40 || xt < width + 40)) continue;
    const [ys, yt] = [place.y[s] * camera.k + camera.y, place.y[t] * camera.k + camera.y];
    if (!(ys > 0 || yt > 0) || !(ys < height || yt < height)) continue;
    // Close up, an edge that merely passes through says nothing about what is in view.
    if (close && !inside(xs, ys) && !inside(xt, yt)) continue;
    kept.push(e);
    if (kept.length === budget) break;
  }
  return kept;
}

// Edges are stroked in batches of similar look, faint ones first; small batches let crossings grow darker.
function drawEdges(pen, scene, edges, emphasis) {
  const { model, ink, camera } = scene;
  const crowd = clamp(Math.sqrt(350 / (edges.length + 1)), 0.2, 1) * emphasis;
  const looks = new Map();
  for (const e of edges) {
    const tier = Math.min(4, Math.floor(model.weight[e] * model.confidence[e] * 5));
    const look = `${tier}|${model.sign[e]}|${VERDICTS[model.verdict[e]] === "refuted"}`;
    if (!looks.has(look)) looks.set(look, []);
    looks.get(look).push(e);
  }
  for (const look of [...looks.keys()].sort()) {
    const [tier, sign, refuted] = look.split("|");
    const strength = (Number(tier) + 1) / 5;
    const alpha = clamp(crowd * (0.2 + 0.6 * strength) * (refuted === "true" ? 0.4 : 1), 0.02, 0.95);
    pen.strokeStyle = `rgb(${sign === "1" ? ink.plus : ink.minus} / ${alpha})`;
    pen.lineWidth = (0.5 + 0.9 * strength) * clamp(Math.sqrt(camera.k), 0.8, 2) * (emphasis > 1 ? 1.25 : 1);
    pen.setLineDash(refuted === "true" ? [1.5, 4] : sign === "1" ? [] : [6, 4]);
    const batch = looks.get(look);
    for (let i = 0; i < batch.length; i += 48) {
      pen.beginPath();
      for (const e of batch.slice(i, i + 48)) traceEdge(pen, scene, e);
      pen.stroke();
    }
  }
  pen.setLineDash([]);
}

function traceEdge(pen, { model, place, camera }, e) {
  const [s, t] = [model.source[e], model.target[e]];
  const [xs, ys] = [place.x[s] * camera.k + camera.x, place.y[s] * camera.k + camera.y];
  const [xt, yt] = [place.x[t] * camera.k + camera.x, place.y[t] * camera.k + camera.y];
  const middle = (ys + yt) / 2;
  pen.moveTo(xs, ys);
  pen.bezierCurveTo(xs, middle, xt, middle, xt, yt);
}

function radius({ model, camera }, band, v) {
  const room = Math.min(band.wide, band.high) * camera.k;
  // Frequencies span decades; 1e-5 … 0.1 maps to 0.45 … 1.
  const often = clamp((Math.log10(model.frequency[v] + 1e-6) + 5) / 4, 0, 1);
  return clamp(room * 0.36, 0.9, 10) * (0.45 + 0.55 * often);
}

function drawNodes(pen, scene) {
  const { model, place, camera, width, height, linked } = scene;
  for (const band of place.bands) {
    for (const joined of [false, true]) {
      pen.fillStyle = levelColour(model, band.level, joined ? 0.95 : 0.3);
      pen.beginPath();
      for (const v of band.nodes) {
        if ((linked[v] > 0) !== joined) continue;
        const x = place.x[v] * camera.k + camera.x;
        const y = place.y[v] * camera.k + camera.y;
        if (x < -20 || x > width + 20 || y < -20 || y > height + 20) continue;
        traceNode(pen, x, y, radius(scene, band, v), band.level);
      }
      pen.fill();
    }
  }
}

// Observed variables are squares and learnt concepts discs, so that the difference needs no colour.
function traceNode(pen, x, y, r, level) {
  if (level === 0 || r < 1.3) pen.rect(x - r, y - r, 2 * r, 2 * r);
  else {
    pen.moveTo(x + r, y);
    pen.arc(x, y, r, 0, TAU);
  }
}

function drawForeground(pen, scene) {
  const { width, height, model, place, camera, lit, selected, hovered, matches, ink } = scene;
  pen.clearRect(0, 0, width, height);
  const bandOf = new Map(place.bands.map((band) => [band.level, band]));
  const at = (v) => [place.x[v] * camera.k + camera.x, place.y[v] * camera.k + camera.y];
  if (lit) {
    const order = lit.edges.slice().sort((a, b) => model.weight[a] - model.weight[b]);
    drawEdges(pen, scene, order.slice(-2500), 2);
    for (const [v, distance] of lit.distance) {
      if (Number.isNaN(place.x[v])) continue;
      const r = Math.max(radius(scene, bandOf.get(model.level[v]), v), distance === 0 ? 5 : 2.2);
      pen.fillStyle = levelColour(model, model.level[v]);
      pen.beginPath();
      traceNode(pen, ...at(v), r, model.level[v]);
      pen.fill();
    }
  }
  for (const v of matches) ring(pen, at(v), 6, ink.ink, 1.5);
  for (const [v, wide] of [[hovered, 2], [selected, 2.5]]) {
    if (v === null || Number.isNaN(place.x[v])) continue;
    ring(pen, at(v), radius(scene, bandOf.get(model.level[v]), v) + 5, ink.ink, wide);
  }
  drawLabels(pen, scene, at);
  drawTitles(pen, scene);
}

function ring(pen, [x, y], r, colour, wide) {
  if (Number.isNaN(x)) return;
  pen.strokeStyle = colour;
  pen.lineWidth = wide;
  pen.beginPath();
  pen.arc(x, y, Math.max(r, 6), 0, TAU);
  pen.stroke();
}

// A level whose upper border is out of sight keeps its title at the top, readable above whatever is there.
function plate(pen, paper) {
  pen.fillStyle = paper;
  pen.globalAlpha = 0.85;
  pen.beginPath();
  pen.roundRect(6, 4, 250, 25, 8);
  pen.fill();
  pen.globalAlpha = 1;
}

// A band whose cells are roomy names every concept, below its mark and within its cell. Elsewhere, as on a
// printed map, names are placed by rank and left out where they would touch one that stands already.
function drawLabels(pen, scene, at) {
  const { model, camera, width, height, lit, selected, hovered, matches, place } = scene;
  const roomy = new Map(place.bands.filter((band) => isRoomy(band, camera)).map((band) => [band.level, band]));
  const first = [selected, hovered].filter((v) => v !== null);
  const ranked = lit
    ? [...first, ...[...lit.distance.keys()].sort((a, b) => lit.distance.get(a) - lit.distance.get(b) || model.importance[b] - model.importance[a])]
    : [...first, ...matches, ...model.nodeOrder];
  const zoom = Math.min(camera.k / scene.home, 6);
  const most = lit ? 90 : clamp((width * height * zoom ** 1.5) / 26000, 8, 260);
  const taken = [];
  let placed = 0;
  pen.lineJoin = "round";
  pen.textBaseline = "middle";
  for (const v of new Set(ranked)) {
    const [x, y] = at(v);
    if (!(x > -40 && x < width + 40 && y > -40 && y < height + 10)) continue;
    const band = roomy.get(model.level[v]);
    if (band) drawCellLabel(pen, scene, band, v, x, y);
    else if (placed < most && drawFreeLabel(pen, scene, v, x, y, taken)) placed += 1;
  }
  pen.textBaseline = "alphabetic";
  pen.textAlign = "start";
}

const isRoomy = (band, camera) => band.wide * camera.k >= 58 && band.high * camera.k >= 44;

function drawCellLabel(pen, scene, band, v, x, y) {
  const { model, camera, ink } = scene;
  const [wide, high] = [Math.min(band.wide * camera.k - 10, 190), band.high * camera.k];
  const below = y + radius(scene, band, v) + 12;
  pen.font = `500 12px ${ink.font}`;
  pen.textAlign = "center";
  const lines = wrapped(pen, model.label[v], wide, clamp(Math.floor((high - 24) / 15), 1, 3));
  lines.forEach((line, i) => haloed(pen, line, x, below + 15 * i, ink.ink, ink.paper));
  if (wide < 120 || high < 90) return;
  pen.font = `11px ${ink.font}`;
  haloed(pen, `${model.id[v]} · ${percent(model.frequency[v])}`, x, below + 15 * lines.length, ink.muted, ink.paper);
}

function drawFreeLabel(pen, scene, v, x, y, taken) {
  const { model, width, lit, ink } = scene;
  pen.font = `500 12px ${ink.font}`;
  pen.textAlign = "start";
  const text = shortened(model.label[v], lit && lit.distance.get(v) === 0 ? 48 : 26);
  const box = spot(x, y, pen.measureText(text).width, taken, width);
  if (!box) return false;
  taken.push(box);
  haloed(pen, text, box.x, box.y, ink.ink, ink.paper);
  return true;
}

function haloed(pen, text, x, y, colour, paper) {
  pen.strokeStyle = paper;
  pen.lineWidth = 5;
  pen.strokeText(text, x, y);
  pen.fillStyle = colour;
  pen.fillText(text, x, y);
}

// Break at spaces into at most `most` lines of `wide` pixels; what does not fit ends in an ellipsis.
function wrapped(pen, text, wide, most) {
  const lines = [];
  let line = "";
  for (const word of text.split(" ")) {
    const longer = line === "" ? word : `${line} ${word}`;
    if (line !== "" && pen.measureText(longer).width > wide) {
      lines.push(line);
      line = word;
    } else line = longer;
  }
  lines.push(line);
  const kept = lines.slice(0, most);
  if (lines.length > most) kept[most - 1] += "…";
  return kept.map((each) => fitted(pen, each, wide));
}

function fitted(pen, text, wide) {
  if (pen.measureText(text).width <= wide) return text;
  const characters = Array.from(text.replace(/…$/, ""));
  while (characters.length > 1 && pen.measureText(`${characters.join("")}…`).width > wide) characters.pop();
  return `${characters.join("")}…`;
}

function spot(x, y, wide, taken, width) {
  const tries = [[x + 9, y], [x - 9 - wide, y], [x - wide / 2, y - 15], [x - wide / 2, y + 15]];
  for (const [left, middle] of tries) {
    const box = { x: left, y: middle, right: left + wide + 6, top: middle - 8, bottom: middle + 8 };
    if (left < 4 || box.right > width - 2) continue;
    const free = taken.every((other) => box.right < other.x || left > other.right || box.bottom < other.top || box.top > other.bottom);
    if (free) return box;
  }
  return null;
}

function shortened(text, most) {
  const characters = Array.from(text);
  return characters.length <= most ? text : `${characters.slice(0, most - 1).join("").trimEnd()}…`;
}
