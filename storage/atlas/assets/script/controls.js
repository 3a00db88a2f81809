// The filters of the map. They decide which edges are shown and which concepts have a place.

function createControls(model, map) {
  const learntFrom = model.levels.map(({ level }) => level);
  const state = { strength: 0, confidence: 0, levels: new Set(learntFrom), sign: "both", verdict: "all", joined: model.m > 0, focus: null };
  const quantiles = Float64Array.from(model.weight).sort();
  // Not an <output>: browsers do not open a <details> by a click on a form control in its summary.
  const readout = el("span", { class: "readout", "aria-live": "polite" });

  // The slider runs over quantiles: strengths are long-tailed, and a linear slider would do all its work at one end.
  const cutAt = (share) => (share === 0 || model.m === 0 ? 0 : quantiles[Math.min(model.m - 1, Math.floor(share * model.m))]);

  function apply(rearrange) {
    const shown = new Uint8Array(model.m);
    const linked = new Uint8Array(model.n);
    const cut = cutAt(state.strength);
    let kept = 0;
    for (let e = 0; e < model.m; e += 1) {
      const verdict = VERDICTS[model.verdict[e]] ?? "untested";
      const pass =
        model.weight[e] >= cut &&
        model.confidence[e] >= state.confidence &&
        (state.sign === "both" || model.sign[e] === Number(state.sign)) &&
        (state.verdict === "all" || verdict === state.verdict) &&
        state.levels.has(model.level[model.source[e]]) &&
        state.levels.has(model.level[model.target[e]]);
      if (!pass) continue;
      shown[e] = 1;
      kept += 1;
      linked[model.source[e]] = 1;
      linked[model.target[e]] = 1;
    }
    const focus = state.focus === null ? null : lineage(model, state.focus, shown, 220).distance;
    const included = Uint8Array.from({ length: model.n }, (_, v) =>
      Number(focus ? focus.has(v) : state.levels.has(model.level[v]) && (!state.joined || everLinked[v] === 1)),
    );
    readout.textContent = `${count.format(kept)} of ${plural(model.m, "edge")}`;
    map.update({ shown, included, rearrange });
  }

  // Which concepts have any edge at all; sliders must not make the others jump about.
  const everLinked = new Uint8Array(model.n);
  for (let e = 0; e < model.m; e += 1) {
    everLinked[model.source[e]] = 1;
    everLinked[model.target[e]] = 1;
  }
  const lonely = everLinked.reduce((sum, value) => sum + (value === 0 ? 1 : 0), 0);

  function slider(label, format, onSlide) {
    const value = el("span", { class: "cut", "aria-hidden": "true" }, format(0));
    const input = el("input", {
      type: "range", min: "0", max: "100", value: "0", "aria-label": label, "aria-valuetext": format(0),
      oninput: () => {
        onSlide(Number(input.value) / 100);
        value.textContent = format(Number(input.value) / 100);
        input.setAttribute("aria-valuetext", value.textContent);
        apply(false);
      },
    });
    return el("div", { class: "slider" }, el("span", { "aria-hidden": "true" }, label), value, input);
  }

  function choice(label, options, onChoose) {
    const select = el("select", { onchange: () => { onChoose(select.value); apply(false); } },
      options.map(([value, text]) => el("option", { value }, text)));
    return el("label", { class: "choice" }, el("span", {}, label), select);
  }

  function box(label, checked, onToggle, colour) {
    const input = el("input", { type: "checkbox", checked, onchange: () => { onToggle(input.checked); apply(true); } });
    return el("label", { class: "check" }, input, colour ? el("span", { class: "dot", "--level": colour }) : null, el("span", {}, label));
  }

  const judged = model.verdict.some((verdict) => VERDICTS[verdict] !== null);
  const card = el(
    "details",
    { class: "filters" },
    el("summary", {}, el("span", {}, "Filter"), readout),
    el(
      "div",
      { class: "filter-body" },
      slider("Strength", (share) => (share === 0 ? "all" : `top ${Math.round(100 * (1 - share))} %`), (share) => { state.strength = share; }),
      slider("Confidence", (share) => (share === 0 ? "all" : `≥ ${share.toFixed(2)}`), (share) => { state.confidence = share; }),
      el(
        "div",
        { class: "choices" },
        choice("Sign", [["both", "both"], ["1", "raises (+)"], ["-1", "lowers (−)"]], (value) => { state.sign = value; }),
        judged ? choice("Verdict", [["all", "all"], ["confirmed", "confirmed"], ["refuted", "refuted"], ["untested", "untested"]], (value) => { state.verdict = value; }) : null,
      ),
      el(
        "fieldset",
        {},
        el("legend", {}, "Levels"),
        model.levels.slice().reverse().map(({ level }) =>
          box(level === 0 ? "Observed" : `${level} · ${levelName(model, level)}`, true, (on) => state.levels[on ? "add" : "delete"](level), levelColour(model, level)),
        ),
      ),
      lonely > 0 && model.m > 0 ? box(`Hide the ${count.format(lonely)} without edges`, true, (on) => { state.joined = on; }) : null,
    ),
  );
  const unfocus = el("button", { type: "button", class: "unfocus", hidden: true, onclick: () => { location.hash = withHash({ focus: null }); } }, "");
  byId("map-view").append(el("div", { class: "map-tools" }, unfocus, card), legend(judged));
  apply(false);

  return {
    state,
    focus(node) {
      if (node === state.focus) return;
      state.focus = node;
      unfocus.hidden = node === null;
      if (node !== null) unfocus.textContent = `Only “${shortened(model.label[node], 28)}” and its kin  ✕`;
      apply(true);
    },
  };
}

function legend(judged) {
  const stroke = (name, dash) => svg("svg", { viewBox: "0 0 28 8", "aria-hidden": "true", class: "key" },
    svg("line", { x1: 1, x2: 27, y1: 4, y2: 4, class: name, "stroke-dasharray": dash }));
  const item = (mark, text) => el("span", { class: "legend-item" }, mark, text);
  return el("p", { class: "legend" },
    item(stroke("key-plus", null), "raises"),
    item(stroke("key-minus", "6 4"), "lowers"),
    judged ? item(stroke("key-refuted", "1.5 4"), "refuted") : null,
    item(svg("svg", { viewBox: "0 0 24 10", "aria-hidden": "true", class: "key" }, svg("circle", { cx: 5, cy: 5, r: 2 }), svg("circle", { cx: 16, cy: 5, r: 4.5 })), "rarer · more frequent"));
}
