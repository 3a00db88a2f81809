// What was run and how well it went: the panel when no concept is open.

const METRICS = {
  explained_variance: { name: "Variance explained", share: true },
  l0: { name: "L0" },
  dead_share: { name: "Dead", share: true },
  agreement: { name: "Comes again", share: true },
  cross_entropy_recovered: { name: "Cross-entropy recovered", share: true },
  denoising_loss_recovered: { name: "Denoising loss recovered", share: true },
};

function overviewPage(model) {
  const { run } = model;
  return el("article", { class: "overview", "aria-labelledby": "overview-title" },
    el("header", { class: "concept-head" },
      el("p", { class: "eyebrow" }, "Concept atlas"),
      el("h2", { id: "overview-title" }, run.title),
      run.description ? el("p", { class: "lead" }, run.description) : null,
      el("p", { class: "sub" }, el("span", { class: "id" }, `${run.name} v${run.version}`), el("time", { datetime: run.createdAt }, when(run.createdAt)))),
    tallies(model),
    fitTable(model),
    run.changes ? changeTable(run.changes) : null,
    landmarks(model),
    run.facts.length > 0 ? factList(run.facts) : null,
    run.steps.length > 0 ? stepList(run.steps) : null,
    howToRead());
}

function when(iso) {
  const time = new Date(iso);
  return Number.isNaN(time.getTime()) ? iso : new Intl.DateTimeFormat(undefined, { dateStyle: "long", timeStyle: "short" }).format(time);
}

function tallies(model) {
  const learnt = model.level.reduce((sum, level) => sum + (level > 0 ? 1 : 0), 0);
  const verdicts = model.verdict.map((verdict) => VERDICTS[verdict]);
  const tested = verdicts.filter((verdict) => verdict === "confirmed" || verdict === "refuted").length;
  const confirmed = verdicts.filter((verdict) => verdict === "confirmed").length;
  const tally = (value, name) => el("div", {}, el("dd", {}, value), el("dt", {}, name));
  return el("dl", { class: "tallies" },
    tally(count.format(learnt), "concepts"),
    tally(count.format(model.n - learnt), "observed"),
    tally(count.format(model.m), "edges"),
    tested > 0 ? tally(percent(confirmed / tested), `confirmed of ${count.format(tested)} tested`) : null);
}

function fitTable(model) {
  const given = [...new Set(model.levels.flatMap((level) => Object.keys(level.metrics)))];
  const keys = [...Object.keys(METRICS).filter((key) => given.includes(key)), ...given.filter((key) => !(key in METRICS))];
  const title = (key) => METRICS[key]?.name ?? key.replaceAll("_", " ").replace(/^./, (first) => first.toUpperCase());
  const cell = (key, value) => {
    if (value === undefined) return el("td", { class: "num" }, "–");
    if (!METRICS[key]?.share) return el("td", { class: "num" }, number(value));
    return el("td", { class: "metric" }, bar(value), el("span", { class: "value" }, percent(value)));
  };
  return el("section", { class: "card" },
    el("div", { class: "card-head" }, el("h3", {}, "Levels and their fit"), el("span", { class: "note" }, "highest first")),
    el("div", { class: "table-wrap" }, el("table", { class: "fit" },
      el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "Level"), el("th", { scope: "col", class: "num" }, "Size"), keys.map((key) => el("th", { scope: "col", class: METRICS[key]?.share ? null : "num" }, title(key))))),
      el("tbody", {}, model.levels.slice().reverse().map((level) => el("tr", { "--level": levelColour(model, level.level) },
        el("th", { scope: "row" }, el("a", { class: "concept-link", href: withHash({ view: "concepts", concept: null, level: level.level }) },
          el("span", { class: level.level === 0 ? "dot square" : "dot" }), level.level === 0 ? "Observed" : `${level.level} · ${levelName(model, level.level)}`),
          level.hookpoint ? el("code", { class: "hook" }, level.hookpoint) : null),
        el("td", { class: "num" }, count.format(level.n_concepts)),
        keys.map((key) => cell(key, level.metrics[key]))))))));
}

function changeTable(changes) {
  const fates = ["kept", "changed", "born", "gone"];
  const row = (name, counts) => el("tr", {}, el("th", { scope: "row" }, name), fates.map((fate) => el("td", { class: "num" }, count.format(counts[fate] ?? 0))));
  return el("section", { class: "card" },
    el("div", { class: "card-head" }, el("h3", {}, "What has changed"), el("span", { class: "note" }, `since version ${changes.since}`)),
    el("div", { class: "table-wrap" }, el("table", { class: "fit changes" },
      el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "Fate"), fates.map((fate) => el("th", { scope: "col", class: "num" }, fate.replace(/^./, (first) => first.toUpperCase()))))),
      el("tbody", {}, row("Concepts", changes.concepts), row("Edges", changes.edges)))),
    changes.gone.length > 0 ? el("p", {}, "Gone: ", changes.gone.map(seen).join(", ")) : null,
    Object.keys(changes.cosines).length > 0 ? el("p", {}, "Mean |cosine| of what is in both: ", Object.entries(changes.cosines).map(([name, cosine]) => `${name} ${number(cosine)}`).join(", ")) : null);
}

// The best connected concepts of every level: doors into the map.
function landmarks(model) {
  if (model.m === 0) return null;
  const rows = model.levels.slice().reverse().filter(({ level }) => level > 0).map(({ level }) => {
    const best = Array.from(model.nodeOrder.filter((v) => model.level[v] === level && model.importance[v] > 0).slice(0, 6));
    return best.length === 0 ? null : el("div", { class: "landmarks" }, best.map((v) => conceptLink(model, v)));
  });
  return el("section", { class: "card" },
    el("div", { class: "card-head" }, el("h3", {}, "Places to start"), el("span", { class: "note" }, "best connected of each level")), rows);
}

function factList(facts) {
  return el("section", { class: "card" }, el("h3", {}, "What was run"),
    el("dl", { class: "facts" }, facts.map(([name, value]) => [el("dt", {}, seen(name)), el("dd", {}, seen(value))])));
}

function stepList(steps) {
  const longest = Math.max(...steps.map(([, seconds]) => seconds)) || 1;
  const total = steps.reduce((sum, [, seconds]) => sum + seconds, 0);
  return el("section", { class: "card" },
    el("div", { class: "card-head" }, el("h3", {}, "Time taken"), el("span", { class: "note" }, `${duration(total)} in all`)),
    el("ul", { class: "steps" }, steps.map(([name, seconds]) =>
      el("li", {}, el("span", { class: "step-name" }, seen(name)), bar(seconds / longest), el("span", { class: "value" }, duration(seconds))))));
}

function howToRead() {
  const line = (key, text) => el("li", {}, el("kbd", {}, key), el("span", {}, text));
  return el("section", { class: "card" }, el("h3", {}, "How to read it"),
    el("p", {}, "Each mark is a concept the model uses; each band is a level, from what is observed at the bottom to the most composed at the top. An edge says that a part helps to decide a whole: drawn through if it raises it, dashed if it lowers it."),
    el("ul", { class: "keys" }, line("/", "search"), line("← → ↑ ↓", "walk on the map, or in a list"), line("Enter", "open"), line("Esc", "close"), line("+ − 0", "zoom in, out, to everything")));
}
