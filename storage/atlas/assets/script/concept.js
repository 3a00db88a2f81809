// The page of one concept.

const FIRST_EDGES = 10;

function conceptLink(model, node, view = {}) {
  return el("a", { class: "concept-link", href: withHash({ concept: model.id[node], ...view }), "--level": levelColour(model, model.level[node]) },
    el("span", { class: model.level[node] === 0 ? "dot square" : "dot" }), el("bdi", {}, model.label[node]), el("span", { class: "id" }, model.id[node]));
}

async function conceptPage(model, node) {
  const detail = await detailOf(model, node);
  const level = model.level[node];
  const parts = Array.from(edgesAt(model.down, node));
  const wholes = Array.from(edgesAt(model.up, node));
  return el(
    "article",
    { class: "concept", "--level": levelColour(model, level), "aria-labelledby": "concept-title" },
    conceptHead(model, node, level),
    keyFigures(model, node, detail),
    detail.examples ? exampleSection(detail.examples, model.max[node]) : null,
    edgeSection(model, node, parts, "Made of", "its parts, one level down", model.source),
    edgeSection(model, node, wholes, "Part of", "the wholes it helps to make", model.target),
    parts.length + wholes.length === 0 ? el("p", { class: "empty" }, "No edge of this concept was kept: the smallest set of parents and children that explains the data leaves it out.") : null,
    detail.steering ? steeringSection(detail.steering) : null,
    detail.neighbours ? neighbourSection(model, detail.neighbours) : null,
    detail.history ? historySection(detail.history) : null,
  );
}

function conceptHead(model, node, level) {
  const entry = model.levelOf.get(level);
  const chips = [model.kind[node], model.form[node], model.status[node]].filter(Boolean);
  const copy = el("button", { type: "button", class: "quiet", onclick: async () => {
    try {
      await navigator.clipboard.writeText(location.href);
      copy.textContent = "Copied";
    } catch {
      copy.textContent = "Copy it from the address bar";
    }
  } }, "Copy link");
  const peers = model.levels.length > 0 ? peersOf(model, node) : [];
  const step = (other, name, sign) => other === undefined
    ? el("span", { class: "icon-button off", "aria-hidden": "true" }, sign)
    : el("a", { class: "icon-button", href: withHash({ concept: model.id[other] }), "aria-label": `${name} concept of this level` }, sign);
  return el("header", { class: "concept-head" },
    el("div", { class: "concept-bar" },
      el("p", { class: "eyebrow" }, el("span", { class: level === 0 ? "dot square" : "dot" }), level === 0 ? "Observed variable" : `Level ${level}`, ` · ${levelName(model, level)}`),
      el("div", { class: "tools" }, step(peers[0], "Previous", "‹"), step(peers[1], "Next", "›"),
        el("a", { class: "icon-button", href: withHash({ concept: null, focus: null }), "aria-label": "Close this concept" }, "✕"))),
    el("h2", { id: "concept-title" }, el("bdi", {}, model.label[node])),
    el("p", { class: "sub" }, el("span", { class: "id" }, model.id[node]), entry.hookpoint ? el("code", {}, entry.hookpoint) : null, chips.map((chip) => el("span", { class: "chip" }, chip))),
    el("div", { class: "actions" },
      el("a", { class: "button", href: withHash({ concept: model.id[node], focus: "1", view: "map" }) }, "Only this and its kin"), copy));
}

function peersOf(model, node) {
  const same = (v) => v >= 0 && v < model.n && model.level[v] === model.level[node];
  return [same(node - 1) ? node - 1 : undefined, same(node + 1) ? node + 1 : undefined];
}

function keyFigures(model, node, detail) {
  const figure = (name, value, note) => el("div", {}, el("dt", {}, name), el("dd", {}, value, note ? el("small", {}, ` ${note}`) : null));
  const often = model.frequency[node];
  return el("section", { class: "card figures" },
    el("h3", { class: "unseen" }, "Activation"),
    el("dl", {},
      figure("Active on", percent(often), often > 0 && often < 0.5 ? `1 row in ${compact.format(Math.round(1 / often))}` : "of rows"),
      figure("Mean when active", number(model.mean[node])),
      figure("Strongest", number(model.max[node]))),
    detail.histogram ? histogramChart(detail.histogram) : null);
}

function edgeSection(model, node, edges, title, note, far) {
  if (edges.length === 0) return null;
  const judged = edges.some((e) => VERDICTS[model.verdict[e]] !== null);
  const steady = edges.some((e) => model.stability[e] !== null);
  const most = Math.max(...edges.map((e) => model.strength[e])) || 1;
  const row = (e) => el("tr", {},
    el("th", { scope: "row" }, conceptLink(model, far[e])),
    el("td", { class: "strength" }, bar(model.strength[e] / most, { class: model.sign[e] > 0 ? "bar plus" : "bar minus" }),
      el("span", { class: "value" }, `${model.sign[e] > 0 ? "+" : "−"}${number(model.strength[e])}`)),
    el("td", { class: "num" }, model.confidence[e].toFixed(2)),
    steady ? el("td", { class: "num" }, model.stability[e] === null ? "–" : percent(model.stability[e])) : null,
    judged ? el("td", {}, VERDICTS[model.verdict[e]] ? verdictBadge(VERDICTS[model.verdict[e]], model.effect[e]) : "–") : null);
  const [body, more] = [growing("tbody", "", edges, row, FIRST_EDGES)].flat();
  const column = (name, hint) => el("th", { scope: "col", title: hint ?? null }, name);
  const left = title === "Made of" ? model.unexplained[node] : null;
  return el("section", { class: "card" },
    el("div", { class: "card-head" }, el("h3", {}, title, el("span", { class: "count" }, count.format(edges.length))), el("span", { class: "note" }, note)),
    el("div", { class: "table-wrap" }, el("table", { class: "edges" },
      el("thead", {}, el("tr", {}, column("Concept"), column("Strength", "Size and sign of the influence"), column("Conf.", "Confidence that the edge exists"),
        steady ? column("Stable", "Share of resamples that found the edge again") : null,
        judged ? column("Tested", "Outcome and effect of the intervention on the model") : null)),
      body)),
    more ?? null,
    left === null ? null : el("div", { class: "unexplained" }, bar(1 - left), el("p", {}, `${percent(1 - left)} of its variation comes from these parts; ${percent(left)} stays unexplained.`)));
}

function neighbourSection(model, neighbours) {
  return el("section", { class: "card" },
    el("div", { class: "card-head" }, el("h3", {}, "Neighbours"), el("span", { class: "note" }, "similar directions, by cosine")),
    el("ul", { class: "neighbours" }, neighbours.map(([id, cosine]) =>
      el("li", {}, conceptLink(model, model.nodeOf.get(id)), bar(cosine), el("span", { class: "value" }, cosine.toFixed(2).replace("-", "−"))))));
}

function historySection(history) {
  return el("section", { class: "card" },
    el("div", { class: "card-head" }, el("h3", {}, "History"), el("span", { class: "note" }, "from version to version")),
    el("ol", { class: "history" }, history.map(([version, status]) =>
      el("li", { class: `status-${status.replace(/[^a-z]/g, "")}` }, el("span", { class: "version" }, `v${version}`), el("span", {}, seen(status))))));
}

function steeringSection(steering) {
  const show = (content, name) => steering.media === "image"
    ? el("img", { src: content, alt: name })
    : el("p", { class: "output" }, content.replace(UNSEEN, named));
  const side = (name, content) => el("div", {}, el("h4", {}, name), show(content, name));
  return el("section", { class: "card" },
    el("div", { class: "card-head" }, el("h3", {}, "Steering"), el("span", { class: "note" }, steering.scale === null ? "the model with an edit of this concept" : steering.scale === 0 ? "concept ablated" : `concept × ${number(steering.scale)}`)),
    steering.prompt ? el("p", { class: "prompt" }, seen(steering.prompt)) : null,
    el("div", { class: "before-after" }, side("Before", steering.before), side("After", steering.after)));
}
