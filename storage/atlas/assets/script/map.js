// The map: camera, pointer, touch and keyboard on the canvases, and what the pointer is told.

function createMap(model, onOpen) {
  const root = byId("map-view");
  const canvases = ["ground", "web", "front"].map((name) => el("canvas", { class: `layer ${name}`, "aria-hidden": "true" }));
  const surface = el("div", {
    class: "surface",
    tabindex: "0",
    role: "application",
    "aria-roledescription": "map",
    "aria-label":
      "Concept hierarchy, one band per level. Arrow keys walk between concepts, Enter opens one, plus and minus zoom, 0 shows everything.",
  });
  surface.append(...canvases);
  root.append(surface);
  const pens = canvases.map((canvas) => canvas.getContext("2d"));
  const scene = {
    model,
    camera: { k: 1, x: 0, y: 0 },
    width: 0,
    height: 0,
    shown: new Uint8Array(model.m).fill(1),
    included: new Uint8Array(model.n).fill(1),
    linked: new Int32Array(model.n),
    place: null,
    home: 1,
    ink: inks(),
    lit: null,
    selected: null,
    hovered: null,
    cursor: null,
    matches: [],
  };
  let frame = 0;
  let rest = 0;
  let moved = false;
  let flight = 0;

  function paint(moving) {
    cancelAnimationFrame(frame);
    frame = requestAnimationFrame(() => {
      if (!scene.place || scene.width === 0) return;
      drawGround(pens[0], scene);
      drawWeb(pens[1], scene, moving);
      drawForeground(pens[2], scene);
      if (!moving) return;
      clearTimeout(rest);
      rest = setTimeout(() => paint(false), 110);
    });
  }

  function paintFront() {
    surface.classList.toggle("dimmed", scene.lit !== null);
    requestAnimationFrame(() => scene.place && scene.width > 0 && drawForeground(pens[2], scene));
  }

  function resize() {
    const { width, height } = surface.getBoundingClientRect();
    if (width === 0 || height === 0 || (width === scene.width && height === scene.height)) return;
    const first = scene.width === 0;
    [scene.width, scene.height] = [width, height];
    const ratio = Math.min(devicePixelRatio || 1, 2);
    canvases.forEach((canvas, i) => {
      canvas.width = Math.round(width * ratio);
      canvas.height = Math.round(height * ratio);
      pens[i].setTransform(ratio, 0, 0, ratio, 0, 0);
    });
    if (first || !moved) relayout(false);
    else paint(false);
  }

  function relayout(animate) {
    if (scene.width === 0) return;
    const before = scene.place;
    const free = room();
    scene.place = arrange(model, scene.included, scene.shown, clamp(free.height / free.width, 0.3, 2.2));
    if (animate && before && !calm.matches) glide(before);
    else fit(false);
  }

  // The part of the canvas that neither the legend nor the navigation of a phone covers.
  function room() {
    return { width: scene.width - 32, height: scene.height - (narrow.matches ? 102 : 40) };
  }

  function home() {
    const free = room();
    const k = Math.min(free.width / WORLD, free.height / scene.place.height);
    scene.home = k;
    return { k, x: (scene.width - k * WORLD) / 2, y: (free.height - k * scene.place.height) / 2 + 6 };
  }

  function fit(animate) {
    moved = false;
    fly(home(), animate);
  }

  function fly(to, animate) {
    cancelAnimationFrame(flight);
    if (!animate || calm.matches) {
      Object.assign(scene.camera, to);
      paint(false);
      return;
    }
    const from = { ...scene.camera };
    tween(360, (share) => {
      for (const key of ["k", "x", "y"]) scene.camera[key] = from[key] + share * (to[key] - from[key]);
      paint(share < 1);
    });
  }

  function tween(milliseconds, step) {
    const start = performance.now();
    const tick = (now) => {
      const share = clamp((now - start) / milliseconds, 0, 1);
      step(1 - (1 - share) ** 3);
      if (share < 1) flight = requestAnimationFrame(tick);
    };
    flight = requestAnimationFrame(tick);
  }

  // Concepts travel from their old places to the new ones while the camera settles.
  function glide(before) {
    cancelAnimationFrame(flight);
    const after = { x: scene.place.x.slice(), y: scene.place.y.slice() };
    const from = { ...scene.camera };
    const to = home();
    moved = false;
    tween(420, (share) => {
      for (let v = 0; v < model.n; v += 1) {
        const known = !Number.isNaN(before.x[v]);
        scene.place.x[v] = known ? before.x[v] + share * (after.x[v] - before.x[v]) : after.x[v];
        scene.place.y[v] = known ? before.y[v] + share * (after.y[v] - before.y[v]) : after.y[v];
      }
      for (const key of ["k", "x", "y"]) scene.camera[key] = from[key] + share * (to[key] - from[key]);
      paint(share < 1);
    });
  }

  function zoom(factor, x = scene.width / 2, y = scene.height / 2, animate = false) {
    const { camera } = scene;
    const least = 0.6 * home().k;
    // Closer than a hundred and fifty pixels between neighbours there is nothing more to see.
    const closest = Math.max(2 * least, ...scene.place.bands.map((band) => 150 / Math.min(band.wide, band.high)));
    const k = clamp(camera.k * factor, least, closest);
    moved = true;
    const share = k / camera.k;
    const to = { k, x: x - (x - camera.x) * share, y: y - (y - camera.y) * share };
    if (animate) fly(to, true);
    else {
      Object.assign(camera, to);
      paint(true);
    }
  }

  function pan(dx, dy) {
    moved = true;
    scene.camera.x += dx;
    scene.camera.y += dy;
    paint(true);
  }

  function pick(event) {
    const box = surface.getBoundingClientRect();
    const { camera } = scene;
    const reach = (event.pointerType === "touch" ? 22 : 12) / camera.k;
    return nodeAt(scene.place, (event.clientX - box.left - camera.x) / camera.k, (event.clientY - box.top - camera.y) / camera.k, reach);
  }

  function light(node) {
    scene.lit = node === null ? null : lineage(model, node, scene.shown);
    paintFront();
  }

  function hover(node, event) {
    if (node !== scene.hovered) {
      scene.hovered = node;
      light(node ?? scene.selected);
      surface.style.cursor = node === null ? "" : "pointer";
    }
    if (node === null) hideTip();
    else showTip(model, node, event.clientX, event.clientY);
  }

  const pointers = new Map();
  let travelled = 0;
  surface.addEventListener("pointerdown", (event) => {
    surface.setPointerCapture(event.pointerId);
    pointers.set(event.pointerId, [event.clientX, event.clientY]);
    travelled = 0;
    cancelAnimationFrame(flight);
    hideTip();
  });
  surface.addEventListener("pointermove", (event) => {
    if (!scene.place) return;
    const last = pointers.get(event.pointerId);
    if (!last) {
      hover(pick(event), event);
      return;
    }
    const here = [event.clientX, event.clientY];
    travelled += Math.hypot(here[0] - last[0], here[1] - last[1]);
    if (pointers.size === 2) pinch(event.pointerId, last, here);
    else if (travelled > 4) pan(here[0] - last[0], here[1] - last[1]);
    pointers.set(event.pointerId, here);
  });
  function pinch(id, last, here) {
    const [, other] = [...pointers].find(([key]) => key !== id);
    const box = surface.getBoundingClientRect();
    const apart = (point) => Math.hypot(point[0] - other[0], point[1] - other[1]) || 1;
    zoom(apart(here) / apart(last), (here[0] + other[0]) / 2 - box.left, (here[1] + other[1]) / 2 - box.top);
    pan((here[0] - last[0]) / 2, (here[1] - last[1]) / 2);
  }
  const release = (event) => {
    const clicked = event.type === "pointerup" && pointers.size === 1 && travelled <= 4;
    pointers.delete(event.pointerId);
    if (!clicked) return;
    const node = pick(event);
    if (node !== null) onOpen(node);
  };
  surface.addEventListener("pointerup", release);
  surface.addEventListener("pointercancel", release);
  surface.addEventListener("pointerleave", () => hover(null));
  surface.addEventListener("dblclick", (event) => {
    const box = surface.getBoundingClientRect();
    if (pick(event) === null) zoom(2, event.clientX - box.left, event.clientY - box.top, true);
  });
  surface.addEventListener(
    "wheel",
    (event) => {
      event.preventDefault();
      const box = surface.getBoundingClientRect();
      const speed = event.deltaMode === 1 ? 0.05 : event.ctrlKey ? 0.01 : 0.0018;
      zoom(Math.exp(-event.deltaY * speed), event.clientX - box.left, event.clientY - box.top);
    },
    { passive: false },
  );

  // Left and right walk along a level, up and down follow the strongest shown edge.
  function walk(key) {
    const from = scene.cursor ?? scene.selected;
    if (from === null || Number.isNaN(scene.place.x[from])) return model.nodeOrder.find((v) => !Number.isNaN(scene.place.x[v])) ?? null;
    if (key === "ArrowLeft" || key === "ArrowRight") {
      const { nodes } = scene.place.bands.find((band) => band.level === model.level[from]);
      return nodes[clamp(nodes.indexOf(from) + (key === "ArrowRight" ? 1 : -1), 0, nodes.length - 1)];
    }
    const [side, far] = key === "ArrowUp" ? [model.up, model.target] : [model.down, model.source];
    const edge = edgesAt(side, from).find((e) => scene.shown[e] && scene.included[far[e]]);
    return edge === undefined ? from : far[edge];
  }
  surface.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key.startsWith("Arrow")) {
      const node = walk(event.key);
      if (node === null) return;
      scene.cursor = node;
      scene.hovered = node;
      light(node);
      reveal(node);
      announce(`${describe(model, node)}, level ${model.level[node]}`);
    } else if (event.key === "Enter" && scene.cursor !== null) onOpen(scene.cursor);
    else if (event.key === "+" || event.key === "=") zoom(1.5, undefined, undefined, true);
    else if (event.key === "-") zoom(1 / 1.5, undefined, undefined, true);
    else if (event.key === "0") fit(true);
    else return;
    event.preventDefault();
  });
  surface.addEventListener("blur", () => {
    scene.cursor = null;
    scene.hovered = null;
    light(scene.selected);
  });

  // Bring a concept into view without losing the zoom the reader has chosen.
  function reveal(node) {
    if (!scene.place || Number.isNaN(scene.place.x[node])) return;
    const { camera, width, height } = scene;
    const x = scene.place.x[node] * camera.k + camera.x;
    const y = scene.place.y[node] * camera.k + camera.y;
    if (x > 60 && x < width - 60 && y > 50 && y < height - 50) return;
    fly({ k: camera.k, x: camera.x + width / 2 - x, y: camera.y + height / 2 - y }, true);
  }

  root.append(
    el(
      "div",
      { class: "zoom", role: "group", "aria-label": "Zoom" },
      el("button", { type: "button", "aria-label": "Zoom in", onclick: () => zoom(1.6, undefined, undefined, true) }, "+"),
      el("button", { type: "button", "aria-label": "Zoom out", onclick: () => zoom(1 / 1.6, undefined, undefined, true) }, "−"),
      el("button", { type: "button", "aria-label": "Show everything", onclick: () => fit(true) }, "⤢"),
    ),
  );
  new ResizeObserver(resize).observe(surface);

  return {
    scene,
    select(node) {
      scene.selected = node;
      scene.cursor = node;
      light(node);
      if (node !== null) reveal(node);
    },
    match(nodes) {
      scene.matches = nodes;
      paintFront();
    },
    update({ shown, included, rearrange }) {
      Object.assign(scene, { shown, included });
      scene.linked.fill(0);
      for (let e = 0; e < model.m; e += 1) {
        if (!shown[e]) continue;
        scene.linked[model.source[e]] += 1;
        scene.linked[model.target[e]] += 1;
      }
      scene.lit = scene.selected === null ? null : lineage(model, scene.selected, shown);
      if (rearrange) relayout(true);
      else paint(false);
      surface.classList.toggle("dimmed", scene.lit !== null);
    },
    repaint() {
      scene.ink = inks();
      paint(false);
    },
    resize,
  };
}

let tipTimer = 0;

function showTip(model, node, x, y) {
  const tip = byId("tooltip");
  if (tip.dataset.node !== String(node)) {
    tip.dataset.node = String(node);
    const parts = edgesAt(model.down, node).length;
    const wholes = edgesAt(model.up, node).length;
    tip.replaceChildren(
      el("strong", {}, model.label[node]),
      el("span", { class: "tip-meta" }, `${model.id[node]} · ${levelName(model, model.level[node])} · active on ${percent(model.frequency[node])}`),
      el("span", { class: "tip-meta" }, `${plural(parts, "part")} · part of ${count.format(wholes)}`),
    );
    clearTimeout(tipTimer);
    tipTimer = setTimeout(async () => {
      const { examples } = await detailOf(model, node);
      const text = examples?.find((example) => example.tokens);
      if (text && tip.dataset.node === String(node)) tip.append(tokenStrip(text, model.max[node], 7));
    }, 90);
  }
  tip.hidden = false;
  const { width, height } = tip.getBoundingClientRect();
  tip.style.left = `${clamp(x + 16, 8, innerWidth - width - 8)}px`;
  tip.style.top = `${y + 18 + height > innerHeight ? y - height - 14 : y + 18}px`;
}

function hideTip() {
  const tip = byId("tooltip");
  tip.hidden = true;
  tip.dataset.node = "";
  clearTimeout(tipTimer);
}
