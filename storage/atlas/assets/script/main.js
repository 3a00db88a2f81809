// Wiring: the address decides what is shown; everything else changes the address.

function readHash() {
  return new URLSearchParams(location.hash.slice(1));
}

function withHash(changes) {
  const hash = readHash();
  for (const [key, value] of Object.entries(changes)) {
    if (value === null) hash.delete(key);
    else hash.set(key, value);
  }
  if (!("level" in changes)) hash.delete("level");
  if ("concept" in changes && !("focus" in changes)) hash.delete("focus");
  return `#${hash.toString().replaceAll("%3A", ":")}`;
}

function start(model) {
  const panel = byId("panel");
  const open = (node) => { location.hash = withHash({ concept: model.id[node] }); };
  const map = createMap(model, open);
  const controls = createControls(model, map);
  const search = createSearch(model, open, (nodes) => map.match(nodes));
  const table = createTable(model, search);
  search.ready.then(table.searchAgain);
  let shownConcept;
  let turn = 0;

  async function route() {
    const hash = readHash();
    const node = model.nodeOf.get(hash.get("concept")) ?? null;
    const view = viewOf(hash);
    document.body.dataset.view = view;
    // On a phone the concept covers the map, except when the reader asked to see its kin there.
    document.body.classList.toggle("with-concept", node !== null && !(narrow.matches && hash.has("focus")));
    byId("map-view").hidden = view === "concepts";
    byId("table-view").hidden = view !== "concepts";
    for (const link of document.querySelectorAll(".views a")) {
      link.href = withHash({ view: link.dataset.view, concept: link.dataset.view === "overview" || narrow.matches ? null : hash.get("concept") });
      const current = narrow.matches ? (node === null || hash.has("focus")) && view : view === "overview" ? "map" : view;
      if (link.dataset.view === current) link.setAttribute("aria-current", "page");
      else link.removeAttribute("aria-current");
    }
    if (hash.has("level")) table.showLevel(hash.get("level"));
    controls.focus(node !== null && hash.has("focus") ? node : null);
    map.resize();
    // The text first: it is what was asked for, and lighting up the map takes a few frames.
    await fill(node);
    if (node !== shownConcept) return;
    map.select(node);
    table.select(node);
  }

  function viewOf(hash) {
    const view = hash.get("view");
    if (["overview", "map", "concepts"].includes(view)) return view;
    return narrow.matches ? "overview" : "map";
  }

  async function fill(node) {
    if (node === shownConcept) return;
    const first = shownConcept === undefined;
    shownConcept = node;
    turn += 1;
    const mine = turn;
    const page = node === null ? overviewPage(model) : await conceptPage(model, node);
    if (mine !== turn) return;
    panel.replaceChildren(page);
    panel.scrollTop = 0;
    if (narrow.matches) scrollTo(0, 0);
    document.title = `${node === null ? model.run.title : model.label[node]} · ${model.run.name} v${model.run.version}`;
    if (node !== null && !first) announce(`Opened ${describe(model, node)}`);
  }

  addEventListener("hashchange", route);
  narrow.addEventListener("change", route);
  addEventListener("keydown", (event) => {
    const typing = event.target.closest?.("input, select, textarea");
    if (event.key === "/" && !typing && !event.ctrlKey && !event.metaKey) {
      event.preventDefault();
      search.focus();
    } else if (event.key === "Escape" && !typing && shownConcept !== null) {
      location.hash = withHash(readHash().has("focus") ? { focus: null } : { concept: null });
    }
  });
  byId("theme").addEventListener("click", () => {
    const next = theme() === "dark" ? "light" : "dark";
    document.documentElement.dataset.theme = next;
    try {
      localStorage.setItem("atlas-theme", next);
    } catch {
      // Storage is refused on some file:// pages; the choice then lasts as long as the page.
    }
    map.repaint();
    table.repaint();
    const node = shownConcept;
    shownConcept = undefined;
    fill(node);
  });
  document.addEventListener("pointerover", (event) => {
    const token = event.target.closest?.(".t[data-value]");
    if (token && !token.title) token.title = token.dataset.value;
  });
  route();
}

try {
  if (typeof DecompressionStream === "undefined") throw new Error("This browser is too old for the atlas; use a current one.");
  start(buildModel(await block("core")));
  document.body.dataset.ready = "true";
} catch (error) {
  byId("panel").replaceChildren(el("p", { class: "notice", role: "alert" }, String(error.message ?? error)));
  throw error;
}
