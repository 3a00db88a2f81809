// Small pictures of numbers.

function histogramChart({ edges, counts }) {
  const [wide, high] = [320, 74];
  const most = Math.max(...counts, 1);
  const [low, top] = [edges[0], edges.at(-1)];
  const x = (value) => ((value - low) / (top - low)) * wide;
  // Counts fall off over decades; on a linear axis the strong activations, which people look for, would be invisible.
  const tall = (value) => (value === 0 ? 0 : Math.max(1.5, (Math.log1p(value) / Math.log1p(most)) * high));
  const bars = counts.map((value, i) =>
    svg("rect", { x: x(edges[i]) + 0.5, y: high - tall(value), width: Math.max(0.5, x(edges[i + 1]) - x(edges[i]) - 1), height: tall(value), rx: 1 },
      svg("title", {}, `${number(edges[i])} to ${number(edges[i + 1])}: ${count.format(value)}`)));
  const total = counts.reduce((sum, value) => sum + value, 0);
  return el("figure", { class: "histogram" },
    svg("svg", { viewBox: `0 0 ${wide} ${high}`, preserveAspectRatio: "none", role: "img", "aria-label": `Histogram of ${plural(total, "activation")} between ${number(low)} and ${number(top)}` }, bars),
    el("figcaption", {}, el("span", {}, number(low)), el("span", {}, `activation, counts on a log scale · n = ${count.format(total)}`), el("span", {}, number(top))));
}

function bar(share, attributes = {}) {
  return el("span", { class: "bar", "aria-hidden": "true", ...attributes }, el("span", { class: "fill", "--share": clamp(share, 0, 1).toFixed(4) }));
}

function verdictBadge(verdict, effect) {
  const [sign, text] = { confirmed: ["✓", "confirmed"], refuted: ["✕", "refuted"], untested: ["–", "untested"] }[verdict];
  return el("span", { class: `verdict ${verdict}`, title: text }, el("span", { "aria-hidden": "true" }, sign), el("span", { class: "unseen" }, text),
    effect === null || effect === undefined ? null : el("span", { class: "effect" }, ` ${effect > 0 ? "+" : ""}${number(effect)}`));
}
