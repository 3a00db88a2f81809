// Strongest examples: text with its tokens shaded by activation, images with their patches.

// One token as people should see it: spaces inside a token stay spaces, but a token made of nothing else,
// a line break or a tab gets a faint sign of its own.
function tokenText(token) {
  if (token === "") return [el("span", { class: "blank" }, "∅")];
  if (/^ +$/.test(token)) return [el("span", { class: "blank" }, "␣".repeat(Math.min(token.length, 12)))];
  return token
    .split(/(\r?\n|\t)/)
    .filter((piece) => piece !== "")
    .map((piece) => {
      if (piece === "\t") return el("span", { class: "blank" }, "⇥ ");
      if (piece.endsWith("\n")) return [el("span", { class: "blank" }, "↵"), el("br", { class: "break" })];
      return piece.replace(UNSEEN, named);
    });
}

// `around` keeps only that many tokens on either side of the peak; null keeps all.
function tokenStrip(example, scale, around = null) {
  const { tokens, values, peak } = example;
  const from = around === null ? 0 : Math.max(0, peak - around);
  const to = around === null ? tokens.length : Math.min(tokens.length, peak + around + 1);
  const top = scale || Math.max(...values) || 1;
  const strip = el("p", { class: "tokens" }, from > 0 ? el("span", { class: "blank" }, "… ") : null);
  for (let i = from; i < to; i += 1) {
    const heat = clamp(values[i] / top, 0, 1);
    const classes = `t${heat > 0 ? " on" : ""}${heat > 0.55 ? " hot" : ""}${i === peak ? " peak" : ""}`;
    // A leading space stays outside the shade, so that shade and outline hug the word and break with it.
    const gap = /^ \S/.test(tokens[i]) ? " " : "";
    strip.append(i > from ? gap : "", el("span", { class: classes, "--heat-at": heat > 0 ? (0.12 + 0.88 * heat).toFixed(3) : null, "data-value": heat > 0 ? number(values[i]) : null }, tokenText(tokens[i].slice(gap.length))));
  }
  if (to < tokens.length) strip.append(el("span", { class: "blank" }, " …"));
  return strip;
}

function textExample(example, scale, whole) {
  return el(
    "li",
    { class: "example" },
    el("div", { class: "example-head" },
      el("span", { class: "activation" }, number(example.activation)),
      el("span", { class: "unseen" }, ` activation, peak at “${readable(example.tokens[example.peak])}”. `),
      el("span", { class: "source" }, seen(example.source))),
    tokenStrip(example, scale, whole ? null : WINDOW),
  );
}

function imageExample(example) {
  const rows = example.patches.length;
  const columns = rows > 0 ? example.patches[0].length : 0;
  const top = Math.max(...example.patches.flat(), 0) || 1;
  const veil = rows === 0 ? null : svg("svg", { viewBox: `0 0 ${columns} ${rows}`, preserveAspectRatio: "none", class: "patches", "aria-hidden": "true" },
    example.patches.flatMap((row, r) => row.map((value, c) =>
      value > 0 ? svg("rect", { x: c, y: r, width: 1, height: 1, class: value >= 0.5 * top ? "patch strong" : "patch", "fill-opacity": (0.5 * value / top).toFixed(3) }) : null)));
  return el("li", { class: "picture" },
    el("div", { class: "frame" }, el("img", { src: example.image, alt: `Example image, activation ${number(example.activation)}` }), veil),
    el("div", { class: "example-head" }, el("span", { class: "activation" }, number(example.activation)), el("span", { class: "source" }, seen(example.source))));
}

const FIRST_EXAMPLES = 6;
const WINDOW = 12;

function exampleSection(examples, scale) {
  const texts = examples.filter((example) => example.tokens);
  const images = examples.filter((example) => example.image);
  const section = el("section", { class: "card" });
  const list = el("div", {});
  const show = (on) => {
    list.replaceChildren(...[growing("ol", "examples", texts, (example) => textExample(example, scale, on), FIRST_EXAMPLES)].flat());
    section.classList.toggle("whole", on);
    whole.setAttribute("aria-pressed", String(on));
  };
  const whole = el("button", { type: "button", class: "quiet", onclick: () => show(!section.classList.contains("whole")) }, "Full context");
  section.append(el("div", { class: "card-head" }, el("h3", {}, "Strongest examples"), texts.length > 0 ? whole : null));
  if (images.length > 0) section.append(growing("ul", "pictures", images, imageExample, 9));
  if (texts.length > 0) {
    section.append(heatScale(scale), list);
    show(false);
  }
  return section;
}

function heatScale(scale) {
  return el("div", { class: "heat-scale", "aria-hidden": "true" }, el("span", {}, "0"), el("span", { class: "heat-bar" }), el("span", {}, number(scale)), el("span", { class: "heat-peak" }, "peak"));
}

// A list that starts short and opens in full on request.
function growing(tag, name, items, draw, first) {
  const list = el(tag, { class: name }, items.slice(0, first).map(draw));
  if (items.length <= first) return list;
  const more = el("button", { type: "button", class: "quiet more", onclick: () => {
    const rest = items.slice(first).map(draw);
    list.append(...rest);
    more.remove();
    const target = rest[0].querySelector("a, button");
    target?.focus();
  } }, `Show all ${count.format(items.length)}`);
  return [list, more];
}
