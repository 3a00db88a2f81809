// Search over ids, labels and the words of the examples, as a combobox.

const MOST_RESULTS = 40;

function createSearch(model, onOpen, onMatch) {
  const labels = model.label.map((label) => label.toLowerCase());
  let words = null;
  // Not before the first paint: until then labels and ids are enough to search in.
  const ready = new Promise((resolve) => { setTimeout(resolve, 300); })
    .then(() => block("words"))
    .then((loaded) => { words = loaded; });

  // Score of a concept for one word of the query; 0 means it does not match.
  function score(v, word) {
    if (model.id[v] === word) return 100;
    const at = labels[v].indexOf(word);
    if (at === 0) return labels[v].length === word.length ? 60 : 40;
    if (at > 0) return /[\p{L}\p{N}]/u.test(labels[v][at - 1]) ? 15 : 25;
    if (model.id[v].startsWith(word)) return 12;
    if (!words) return 0;
    if (words[v].startsWith(word) || words[v].includes(` ${word}`)) return 8;
    return word.length > 2 && words[v].includes(word) ? 3 : 0;
  }

  function scored(text) {
    const query = text.toLowerCase().split(/\s+/).filter(Boolean);
    if (query.length === 0) return null;
    const found = [];
    for (let v = 0; v < model.n; v += 1) {
      let sum = 0;
      for (const word of query) {
        const points = score(v, word);
        sum = points === 0 ? -1 : sum + points;
        if (sum < 0) break;
      }
      if (sum > 0) found.push([v, sum]);
    }
    return found;
  }

  function ranked(text) {
    return (scored(text) ?? [])
      .sort((a, b) => b[1] - a[1] || model.importance[b[0]] - model.importance[a[0]] || a[0] - b[0])
      .map(([v]) => v);
  }

  const list = el("ul", { id: "results", role: "listbox", "aria-label": "Search results", hidden: true });
  const input = el("input", {
    type: "text", id: "query", role: "combobox", placeholder: "Search concepts", autocomplete: "off", spellcheck: "false",
    "aria-label": "Search concepts by id, label or example word", "aria-expanded": "false", "aria-controls": "results", "aria-autocomplete": "list",
  });
  byId("search").append(
    svg("svg", { viewBox: "0 0 20 20", "aria-hidden": "true" }, svg("circle", { cx: 8.5, cy: 8.5, r: 5.5 }), svg("path", { d: "m13 13 4.5 4.5" })),
    input, el("kbd", { "aria-hidden": "true" }, "/"), list);
  let results = [];
  let active = -1;

  function show() {
    const text = input.value.trim();
    const all = text === "" ? [] : ranked(text);
    results = all.slice(0, MOST_RESULTS);
    active = results.length > 0 ? 0 : -1;
    list.replaceChildren(...results.map((v, i) => option(v, i, text)));
    if (text !== "" && all.length === 0) list.append(el("li", { class: "none", role: "option", "aria-disabled": "true", "aria-selected": "false" }, "Nothing matches"));
    if (all.length > results.length) list.append(el("li", { class: "none", role: "option", "aria-disabled": "true", "aria-selected": "false" }, `… and ${count.format(all.length - results.length)} more`));
    open(text !== "");
    mark();
    onMatch(text === "" ? [] : all.filter((v) => labels[v].includes(text.toLowerCase())).slice(0, 200));
    if (text !== "") announce(plural(all.length, "result"));
  }

  function option(v, i, text) {
    const inLabel = labels[v].includes(text.toLowerCase().split(/\s+/)[0]) || model.id[v].startsWith(text);
    return el("li", { id: `result-${i}`, role: "option", "aria-selected": "false", "--level": levelColour(model, model.level[v]), onpointerdown: (event) => { event.preventDefault(); choose(i); } },
      el("span", { class: model.level[v] === 0 ? "dot square" : "dot" }), el("bdi", {}, model.label[v]),
      el("span", { class: "hint" }, inLabel ? levelName(model, model.level[v]) : "in its examples"), el("span", { class: "id" }, model.id[v]));
  }

  function open(on) {
    list.hidden = !on;
    input.setAttribute("aria-expanded", String(on));
  }

  function mark() {
    Array.from(list.children).forEach((item, i) => item.setAttribute("aria-selected", String(i === active)));
    if (active >= 0) {
      input.setAttribute("aria-activedescendant", `result-${active}`);
      list.children[active].scrollIntoView({ block: "nearest" });
    } else input.removeAttribute("aria-activedescendant");
  }

  function choose(i) {
    if (results[i] === undefined) return;
    open(false);
    onOpen(results[i]);
  }

  input.addEventListener("input", show);
  input.addEventListener("focus", () => { if (input.value.trim() !== "") show(); });
  input.addEventListener("blur", () => open(false));
  input.addEventListener("keydown", (event) => {
    if (event.key === "ArrowDown" || event.key === "ArrowUp") {
      event.preventDefault();
      if (results.length === 0) return;
      active = (active + (event.key === "ArrowDown" ? 1 : -1) + results.length) % results.length;
      mark();
    } else if (event.key === "Enter") choose(active);
    else if (event.key === "Escape") {
      event.stopPropagation();
      if (list.hidden && input.value === "") input.blur();
      else if (list.hidden) { input.value = ""; onMatch([]); } else open(false);
    }
  });

  return {
    ready,
    focus: () => { input.focus(); input.select(); },
    matching: (text) => scored(text)?.map(([v]) => v) ?? Array.from({ length: model.n }, (_, v) => v),
  };
}
