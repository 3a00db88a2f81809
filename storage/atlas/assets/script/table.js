// All concepts as a sortable, filterable table. Only the rows in sight exist, so its size costs nothing.

const ROW = 42;

const COLUMNS = [
  { key: "label", name: "Concept", of: (model, v) => model.label[v].toLowerCase() },
  { key: "level", name: "Level", of: (model, v) => model.level[v], wide: true },
  { key: "frequency", name: "Active on", of: (model, v) => model.frequency[v], share: true },
  { key: "mean", name: "Mean", of: (model, v) => model.mean[v], wide: true, show: (value) => (value === 0 ? "–" : number(value)) },
  { key: "max", name: "Strongest", of: (model, v) => model.max[v], show: (value) => (value === 0 ? "–" : number(value)) },
  { key: "parts", name: "Parts", of: (model, v) => edgesAt(model.down, v).length, wide: true, show: count.format },
  { key: "wholes", name: "Part of", of: (model, v) => edgesAt(model.up, v).length, wide: true, show: count.format },
  { key: "unexplained", name: "Unexplained", of: (model, v) => model.unexplained[v] ?? -1, wide: true, optional: true, show: (value) => (value < 0 ? "–" : percent(value)) },
  { key: "recurrence", name: "Comes again", of: (model, v) => model.recurrence[v] ?? -1, wide: true, optional: true, show: (value) => (value < 0 ? "–" : percent(value)) },
];

function createTable(model, search) {
  const standing = new Float64Array(model.n);
  model.nodeOrder.forEach((v, i) => {
    standing[v] = -i;
  });
  const columns = COLUMNS.filter((column) => !column.optional || model[column.key].some((value) => value !== null));
  const state = { level: "all", text: "", sort: "importance", falling: true, rows: [], active: 0, selected: null };
  const body = el("div", { class: "rows", role: "rowgroup" });
  const spacer = el("div", { class: "spacer" });
  body.append(spacer);
  const filter = el("input", { type: "search", placeholder: "Filter by label, id or example word", "aria-label": "Filter concepts", oninput: () => { state.text = filter.value; refresh(); } });
  const level = el("select", { "aria-label": "Level", onchange: () => { state.level = level.value; refresh(); } },
    el("option", { value: "all" }, "All levels"),
    model.levels.slice().reverse().map((entry) => el("option", { value: entry.level }, entry.level === 0 ? "Observed" : `Level ${entry.level} · ${levelName(model, entry.level)}`)));
  const tally = el("output", { class: "readout", "aria-live": "polite" });
  const heads = columns.map((column) => {
    const button = el("button", { type: "button", onclick: () => sortBy(column.key) }, column.name, el("span", { class: "arrow", "aria-hidden": "true" }));
    return el("div", { role: "columnheader", class: `cell ${column.key}${column.wide ? " wide" : ""}`, "data-key": column.key }, button);
  });
  const table = el("div", { class: "grid-table", role: "table", "aria-label": "Concepts", "--columns": columns.length },
    el("div", { role: "rowgroup" }, el("div", { class: "row head", role: "row" }, heads)), body);
  byId("table-view").append(el("div", { class: "table-tools" }, filter, level, tally), table);

  function sortBy(key) {
    state.falling = state.sort === key ? !state.falling : key !== "label";
    state.sort = key;
    refresh();
  }

  function refresh() {
    for (const head of heads) {
      const on = head.dataset.key === state.sort;
      head.setAttribute("aria-sort", on ? (state.falling ? "descending" : "ascending") : "none");
    }
    const column = columns.find(({ key }) => key === state.sort);
    const key = Array.from({ length: model.n }, (_, v) => (column ? column.of(model, v) : standing[v]));
    const wanted = state.level === "all" ? null : Number(state.level);
    const found = search.matching(state.text);
    const direction = state.falling ? -1 : 1;
    state.rows = found
      .filter((v) => wanted === null || model.level[v] === wanted)
      .sort((a, b) => (key[a] < key[b] ? -direction : key[a] > key[b] ? direction : a - b));
    tally.textContent = plural(state.rows.length, "concept");
    table.setAttribute("aria-rowcount", state.rows.length + 1);
    spacer.style.height = `${state.rows.length * ROW}px`;
    body.scrollTop = 0;
    state.active = 0;
    draw();
  }

  function draw() {
    const first = Math.max(0, Math.floor(body.scrollTop / ROW) - 6);
    const last = Math.min(state.rows.length, Math.ceil((body.scrollTop + body.clientHeight) / ROW) + 6);
    const rows = state.rows.slice(first, last).map((v, i) => row(v, first + i));
    spacer.replaceChildren(...rows);
  }

  function row(v, position) {
    const value = (column) => {
      if (column.key === "label") {
        const link = conceptLink(model, v);
        link.tabIndex = position === state.active ? 0 : -1;
        return link;
      }
      if (column.key === "frequency") return [bar(Math.sqrt(model.frequency[v])), el("span", { class: "value" }, percent(model.frequency[v]))];
      if (column.key === "level") return levelName(model, model.level[v]);
      return column.show(column.of(model, v));
    };
    return el("div", { class: `row${v === state.selected ? " selected" : ""}`, role: "row", "aria-rowindex": position + 2, "--top": `${position * ROW}px`, "--level": levelColour(model, model.level[v]), onclick: (event) => { if (!event.target.closest("a")) location.hash = withHash({ concept: model.id[v] }); } },
      columns.map((column) => el("div", { role: "cell", class: `cell ${column.key}${column.wide ? " wide" : ""}` }, value(column))));
  }

  // Arrow keys move one focus through the rows, scrolling as they go.
  body.addEventListener("keydown", (event) => {
    const page = Math.max(1, Math.floor(body.clientHeight / ROW) - 1);
    const step = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -Infinity, End: Infinity }[event.key];
    if (step === undefined) return;
    event.preventDefault();
    state.active = clamp(state.active + step, 0, state.rows.length - 1);
    const top = state.active * ROW;
    if (top < body.scrollTop) body.scrollTop = top;
    else if (top + ROW > body.scrollTop + body.clientHeight) body.scrollTop = top + ROW - body.clientHeight;
    draw();
    body.querySelector('a[tabindex="0"]')?.focus();
  });
  let waiting = false;
  body.addEventListener("scroll", () => {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => {
      waiting = false;
      const focused = body.contains(document.activeElement);
      draw();
      if (focused) body.querySelector('a[tabindex="0"]')?.focus({ preventScroll: true });
    });
  });
  new ResizeObserver(draw).observe(body);
  refresh();

  return {
    select(node) {
      state.selected = node;
      draw();
    },
    showLevel(wanted) {
      level.value = wanted;
      state.level = wanted;
      refresh();
    },
    searchAgain: () => { if (state.text !== "") refresh(); },
    repaint: draw,
  };
}
