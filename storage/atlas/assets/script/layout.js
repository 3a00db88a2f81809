// Where every concept stands: one band per level, observed variables at the bottom, and within a band an
// order that puts concepts near what they are made of and what they make up.

const WORLD = 1000;

// Positions in a world WORLD units wide and `aspect` times as high. `included` and `shown` are masks over
// nodes and edges. Cells of a band are filled column by column along the order, so that a band of a thousand
// concepts is a readable patch of ground rather than a line.
function arrange(model, included, shown, aspect) {
  const height = WORLD * aspect;
  const order = orderNodes(model, included, shown);
  const groups = model.levels
    .map(({ level }) => ({ level, nodes: [] }))
    .sort((a, b) => b.level - a.level);
  const groupOf = new Map(groups.map((group) => [group.level, group]));
  for (const v of order) groupOf.get(model.level[v]).nodes.push(v);
  const filled = groups.filter((group) => group.nodes.length > 0);
  const share = filled.map(({ nodes }) => Math.sqrt(nodes.length) + 6);
  const total = share.reduce((sum, value) => sum + value, 0) || 1;
  const grounds = filled.length === 1 ? 0.8 : 0.5;
  const gap = filled.length > 1 ? ((1 - grounds) * height) / (filled.length - 0.4) : 0.2 * height;
  const place = { x: new Float32Array(model.n).fill(NaN), y: new Float32Array(model.n).fill(NaN), bands: [], height };
  let top = 0.6 * gap;
  filled.forEach(({ level, nodes }, i) => {
    const tall = (grounds * height * share[i]) / total;
    place.bands.push(fillBand(place, level, nodes, top, tall));
    top += tall + gap;
  });
  return place;
}

function fillBand(place, level, nodes, top, tall) {
  // Cells are half as wide again as high, because labels are.
  const rows = clamp(Math.round(Math.sqrt((1.5 * nodes.length * tall) / WORLD)), 1, nodes.length);
  const columns = Math.ceil(nodes.length / rows);
  const [wide, high] = [WORLD / columns, tall / rows];
  nodes.forEach((v, i) => {
    const column = Math.floor(i / rows);
    const inColumn = Math.min(rows, nodes.length - column * rows);
    const row = (i % rows) + (rows - inColumn) / 2;
    place.x[v] = (column + 0.5 + stagger(i % rows)) * wide;
    place.y[v] = top + (row + 0.5) * high;
  });
  return { level, nodes, top, bottom: top + tall, rows, columns, wide, high };
}

// Rows are shifted against each other by less than half a cell (golden ratio: no two rows alike), so that the
// edges of one column do not run on top of each other.
const stagger = (row) => (((row + 0.5) * 0.618034) % 1 - 0.5) * 0.8 * (row > 0 ? 1 : 0);

function nodeAt(place, x, y, reach) {
  for (const band of place.bands) {
    if (y < band.top - reach || y > band.bottom + reach) continue;
    const column = clamp(Math.floor(x / band.wide), 0, band.columns - 1);
    let best = null;
    let nearest = reach * reach;
    for (let c = Math.max(0, column - 1); c <= Math.min(band.columns - 1, column + 1); c += 1) {
      for (const v of band.nodes.slice(c * band.rows, (c + 1) * band.rows)) {
        const away = (place.x[v] - x) ** 2 + (place.y[v] - y) ** 2;
        if (away < nearest) [best, nearest] = [v, away];
      }
    }
    if (best !== null) return best;
  }
  return null;
}

// First a smooth coordinate over the whole graph (lazy random walks from a fixed scatter, the mean taken out:
// what remains is a mix of the slowest modes, so communities end up together), then barycentre sweeps by rank.
// Concepts without a shown edge come last in their band.
function orderNodes(model, included, shown) {
  const { n, source, target, weight } = model;
  const active = model.edgeOrder.filter((e) => shown[e] && included[source[e]] && included[target[e]]);
  // Gathered once, because every step of the walk reads all of them in this order.
  const web = {
    low: active.map((e) => source[e]),
    high: active.map((e) => target[e]),
    weight: Float64Array.from(active, (e) => weight[e]),
  };
  const degree = new Float64Array(n);
  for (const e of active) {
    degree[source[e]] += weight[e];
    degree[target[e]] += weight[e];
  }
  const nodes = Array.from({ length: n }, (_, v) => v).filter((v) => included[v]);
  let score = Float64Array.from({ length: n }, (_, v) => ((v * 2654435761) % 4294967296) / 4294967296 - 0.5);
  // Enough steps for a small graph to settle; a large one gets what fits into some tens of milliseconds.
  const steps = clamp(Math.floor(1.5e6 / (active.length + 1)), 24, 160);
  for (let step = 0; step < steps; step += 1) score = smooth(score, degree, web);
  const levels = model.levels.map(({ level }) => nodes.filter((v) => model.level[v] === level && degree[v] > 0));
  const rank = new Float64Array(n);
  for (const level of levels) rankBy(level, score, rank);
  for (let sweep = 0; sweep < 6; sweep += 1) {
    const rising = sweep % 2 === 0;
    for (const level of rising ? levels : levels.slice().reverse()) {
      settle(level, rising ? model.down : model.up, rising ? source : target, shown, included, model, rank);
    }
  }
  return nodes.sort((a, b) => (degree[a] === 0) - (degree[b] === 0) || rank[a] - rank[b] || a - b);
}

function smooth(score, degree, { low, high, weight }) {
  const next = new Float64Array(score.length);
  for (let i = 0; i < low.length; i += 1) {
    next[low[i]] += weight[i] * score[high[i]];
    next[high[i]] += weight[i] * score[low[i]];
  }
  let mean = 0;
  let mass = 0;
  for (let v = 0; v < next.length; v += 1) {
    if (degree[v] === 0) continue;
    next[v] = 0.4 * score[v] + (0.6 * next[v]) / degree[v];
    mean += degree[v] * next[v];
    mass += degree[v];
  }
  let norm = 0;
  for (let v = 0; v < next.length; v += 1) {
    if (degree[v] === 0) continue;
    next[v] -= mean / mass;
    norm += next[v] * next[v];
  }
  const scale = 1 / Math.sqrt(norm || 1);
  for (let v = 0; v < next.length; v += 1) next[v] *= scale;
  return next;
}

function rankBy(level, score, rank) {
  level.sort((a, b) => score[a] - score[b] || a - b);
  level.forEach((v, i) => {
    rank[v] = (i + 0.5) / level.length;
  });
}

function settle(level, side, far, shown, included, { weight }, rank) {
  const wish = new Float64Array(rank.length);
  for (const v of level) {
    let sum = 0;
    let mass = 0;
    for (const e of edgesAt(side, v)) {
      if (!shown[e] || !included[far[e]]) continue;
      sum += weight[e] * rank[far[e]];
      mass += weight[e];
    }
    wish[v] = mass > 0 ? 0.7 * (sum / mass) + 0.3 * rank[v] : rank[v];
  }
  rankBy(level, wish, rank);
}
