// The hierarchy in memory: columns by node and by edge, and for every node its edges down (parts) and up (wholes).

const VERDICTS = [null, "untested", "confirmed", "refuted"];

function buildModel(core) {
  const { concepts, edges } = core;
  const n = concepts.label.length;
  const m = edges.source.length;
  const model = {
    run: core.run,
    levels: core.levels,
    detailBlock: core.detailBlock,
    n,
    m,
    level: Int32Array.from(concepts.level),
    index: concepts.index,
    label: concepts.label.map(readable),
    frequency: concepts.frequency,
    mean: concepts.mean,
    max: concepts.max,
    kind: concepts.kind,
    form: concepts.form,
    unexplained: concepts.unexplained,
    recurrence: concepts.recurrence,
    status: concepts.status,
    source: Int32Array.from(edges.source),
    target: Int32Array.from(edges.target),
    strength: Float64Array.from(edges.strength),
    confidence: Float64Array.from(edges.confidence),
    sign: Int8Array.from(edges.sign),
    stability: edges.stability,
    verdict: edges.verdict,
    effect: edges.effect,
  };
  model.id = Array.from({ length: n }, (_, node) => `${model.level[node]}:${model.index[node]}`);
  model.nodeOf = new Map(model.id.map((id, node) => [id, node]));
  model.levelOf = new Map(model.levels.map((level) => [level.level, level]));
  model.down = incidence(n, model.target);
  model.up = incidence(n, model.source);
  model.weight = relativeStrength(model);
  model.edgeOrder = Int32Array.from({ length: m }, (_, e) => e).sort(
    (a, b) => model.weight[b] * model.confidence[b] - model.weight[a] * model.confidence[a] || a - b,
  );
  model.importance = importance(model);
  model.nodeOrder = byRankWithinLevel(model);
  return model;
}

// Edges grouped by one of their ends: those of node v are list[start[v]] … list[start[v + 1] - 1].
// Edges arrive strongest first, and counting sort keeps that order within each node.
function incidence(n, ends) {
  const start = new Int32Array(n + 1);
  for (const v of ends) start[v + 1] += 1;
  for (let v = 0; v < n; v += 1) start[v + 1] += start[v];
  const next = start.slice(0, n);
  const list = new Int32Array(ends.length);
  ends.forEach((v, e) => {
    list[next[v]] = e;
    next[v] += 1;
  });
  return { start, list };
}

function edgesAt(side, node) {
  return side.list.subarray(side.start[node], side.start[node + 1]);
}

// Strengths are comparable only within one pair of levels; on the map 1 is a pair's 98th percentile.
function relativeStrength({ m, level, source, target, strength }) {
  const pairs = new Map();
  const pairOf = (e) => level[source[e]] * 1e6 + level[target[e]];
  for (let e = 0; e < m; e += 1) {
    if (!pairs.has(pairOf(e))) pairs.set(pairOf(e), []);
    pairs.get(pairOf(e)).push(strength[e]);
  }
  const top = new Map();
  for (const [pair, values] of pairs) {
    values.sort((a, b) => a - b);
    top.set(pair, values[Math.floor(0.98 * (values.length - 1))] || values.at(-1) || 1);
  }
  return Float32Array.from({ length: m }, (_, e) => Math.min(1, strength[e] / top.get(pairOf(e))));
}

// How much a concept matters to a newcomer: the sum of what it takes part in.
function importance({ n, m, source, target, weight, confidence }) {
  const sum = new Float32Array(n);
  for (let e = 0; e < m; e += 1) {
    const share = weight[e] * confidence[e];
    sum[source[e]] += share;
    sum[target[e]] += share;
  }
  return sum;
}

// The first of every level, then the second of every level, …: no level crowds out the others.
function byRankWithinLevel({ n, level, importance: worth }) {
  const nodes = Array.from({ length: n }, (_, v) => v).sort((a, b) => worth[b] - worth[a] || a - b);
  const taken = new Map();
  const rank = new Float64Array(n);
  for (const v of nodes) {
    rank[v] = taken.get(level[v]) ?? 0;
    taken.set(level[v], rank[v] + 1);
  }
  return Int32Array.from(nodes.sort((a, b) => rank[a] - rank[b] || level[b] - level[a]));
}

function describe(model, node) {
  return `${model.label[node]}, concept ${model.id[node]}`;
}

function levelName(model, level) {
  const entry = model.levelOf.get(level);
  if (level === 0) return entry.name || "observed";
  return entry.timestep === null ? entry.name : `${entry.name} · t = ${entry.timestep}`;
}

// Everything below and above a node along shown edges, nearest and strongest first, at most `most` nodes.
function lineage(model, node, shown, most = 600) {
  const distance = new Map([[node, 0]]);
  const edges = [];
  for (const [side, far] of [[model.down, model.source], [model.up, model.target]]) {
    let ring = [node];
    for (let step = 1; ring.length > 0 && distance.size < most; step += 1) {
      const next = [];
      const candidates = ring.flatMap((v) => Array.from(edgesAt(side, v)).filter((e) => shown[e]));
      candidates.sort((a, b) => model.weight[b] - model.weight[a]);
      for (const e of candidates) {
        const v = far[e];
        if (!distance.has(v)) {
          if (distance.size >= most) continue;
          distance.set(v, step);
          next.push(v);
        }
        edges.push(e);
      }
      ring = next;
    }
  }
  return { distance, edges };
}
