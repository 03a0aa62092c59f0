"use strict";
// Boxes over pictures, filtered live, and a viewer that enlarges one. No library and no network.
(() => {
  const byId = (id) => document.getElementById(id);

  // Theme: as the system has it, or one of both.
  const themes = ["auto", "light", "dark"];
  let theme = "auto";
  try { theme = localStorage.getItem("resobj-theme") || "auto"; } catch { /* opened from disk */ }
  const setTheme = (name) => {
    theme = themes.includes(name) ? name : "auto";
    if (theme === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
    byId("theme").textContent = `Theme: ${theme}`;
    try { localStorage.setItem("resobj-theme", theme); } catch { /* opened from disk */ }
  };
  setTheme(theme);
  byId("theme").addEventListener("click", () => setTheme(themes[(themes.indexOf(theme) + 1) % 3]));

  if (!byId("data")) return;
  const data = JSON.parse(byId("data").textContent);
  const controls = {};
  for (const name of ["run", "step", "class", "threshold"]) controls[name] = byId(name);
  const shown = {};
  for (const name of ["objects", "missed", "right", "wrong"]) shown[name] = byId(`show-${name}`);
  const state = { run: 0, step: data.runs[0].steps - 1 };
  const plural = (n, one) => `${n} ${one}${n === 1 ? "" : "s"}`;

  const make = (name, attributes, parent) => {
    const node = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    parent.append(node);
    return node;
  };

  const drawBox = (svg, box, kind, text) => {
    const group = make("g", { class: kind }, svg);
    const [x, y, width, height] = box;
    make("rect", { class: "halo", x, y, width, height }, group);
    make("rect", { class: "box", x, y, width, height }, group);
    make("title", {}, group).textContent = text;
    return group;
  };

  // One drawing of a picture: its boxes of one run and step, switched on and off as asked.
  class View {
    constructor(svg, tally) { this.svg = svg; this.tally = tally; this.key = ""; this.items = []; }

    fill(picture, run, step) {
      const key = `${picture}/${run}/${step}`;
      if (key === this.key) return;
      this.key = key;
      this.svg.replaceChildren();
      this.items = [];
      const one = data.pictures[picture];
      const found = one.runs[run][step];
      const foundAt = new Map();
      for (const [, , , , , score, kind, object] of found)
        if (kind === data.right) foundAt.set(object, Math.max(score, foundAt.get(object) ?? 0));
      one.objects.forEach(([x, y, w, h, label, ignored], i) => {
        const text = `${data.classes[label]}${ignored ? " (ignored)" : ""}`;
        const group = drawBox(this.svg, [x, y, w, h], "object", text);
        this.items.push({ group, object: true, ignored: !!ignored, label, text, at: foundAt.get(i) ?? -1 });
      });
      for (const [x, y, w, h, label, score, kind] of found) {
        const right = kind === data.right, ignored = kind === data.ignored;
        const name = right ? "right" : ignored ? "ignored" : "wrong";
        const text = `${data.classes[label]} ${score.toFixed(2)}`;
        const about = data.kinds[kind];
        const group = drawBox(this.svg, [x, y, w, h], name, `${text}: ${about}`);
        this.items.push({ group, object: false, name, label, score, text, about });
      }
    }

    update(threshold, chosen) {
      const counts = { right: 0, wrong: 0, missed: 0, shown: 0 };
      for (const item of this.items) {
        let visible = chosen < 0 || item.label === chosen;
        if (item.object) {
          const missed = !item.ignored && item.at < threshold;
          item.missed = missed;
          if (visible && missed) counts.missed += 1;
          item.group.setAttribute("class", item.ignored ? "ignored" : missed ? "missed" : "object");
          visible = visible && (missed ? shown.missed : shown.objects).checked;
        } else {
          visible = visible && item.score >= threshold;
          if (visible && item.name !== "ignored") counts[item.name] += 1;
          visible = visible && (item.name === "right" ? shown.right : shown.wrong).checked;
          if (visible) counts.shown += 1;
        }
        item.visible = visible;
        item.group.classList.toggle("off", !visible);
      }
      if (this.tally)
        this.tally.textContent = `${counts.right} right, ${counts.wrong} wrong, ${counts.missed} missed`;
      return counts;
    }
  }

  const cards = [...document.querySelectorAll(".card")].map((card) => {
    const picture = Number(card.dataset.picture);
    const image = card.querySelector("img");
    const fixed = card.dataset.step !== undefined;
    if (fixed && image)
      image.src = document.querySelector(`#pictures [data-picture="${picture}"] img`)?.src ?? "";
    const view = new View(card.querySelector("svg"), card.querySelector(".tally"));
    const entry = { card, picture, fixed, view, step: Number(card.dataset.step), run: Number(card.dataset.run) };
    card.querySelector("button").addEventListener("click", () => open(entry));
    return entry;
  });

  const percent = (part, whole) => (whole ? `${(100 * part / whole).toFixed(1)} %` : "-");

  const refresh = () => {
    const threshold = Number(controls.threshold.value);
    const chosen = Number(controls.class.value);
    byId("threshold-value").textContent = threshold.toFixed(2);
    let boxes = 0;
    for (const entry of cards) {
      entry.view.fill(entry.picture, entry.fixed ? entry.run : state.run, entry.fixed ? entry.step : state.step);
      const counts = entry.view.update(threshold, chosen);
      if (!entry.fixed) boxes += counts.shown;
    }
    const curve = data.runs[state.run].curves[state.step];
    const at = Math.round(threshold * 100);
    const right = curve.right[at], wrong = curve.wrong[at], missed = curve.objects - right;
    byId("counts").textContent =
      `${plural(boxes, "detection")} shown. On all ${plural(data.images, "image")}, all classes: ` +
      `${right} right, ${wrong} wrong, ${missed} missed: ` +
      `precision ${percent(right, right + wrong)}, recall ${percent(right, curve.objects)}`;
    if (viewer.open) fillViewer();
  };

  const fillSteps = () => {
    const steps = data.runs[state.run].steps;
    byId("step-label").hidden = steps < 2;
    controls.step.replaceChildren();
    for (let t = 0; t < steps; t += 1)
      controls.step.append(new Option(t === 0 ? "0 (base)" : t === steps - 1 ? `${t} (final)` : `${t}`, t));
    state.step = steps - 1;
    controls.step.value = state.step;
  };

  // The viewer.
  const viewer = byId("viewer"), stage = byId("stage"), large = byId("large"), list = byId("list");
  const picture = large.querySelector("img");
  const enlarged = new View(large.querySelector("svg"), null);
  let current = null, place = { x: 0, y: 0, scale: 1 }, base = { width: 1, height: 1 };

  const move = () => { large.style.transform = `translate(${place.x}px, ${place.y}px) scale(${place.scale})`; };
  const fit = () => {
    const one = data.pictures[current.picture];
    const scale = Math.min(stage.clientWidth / one.width, stage.clientHeight / one.height);
    base = { width: one.width * scale, height: one.height * scale };
    large.style.width = `${base.width}px`;
    large.style.height = `${base.height}px`;
    place = { x: 0, y: 0, scale: 1 };
    move();
  };
  const zoom = (factor, clientX, clientY) => {
    const box = large.getBoundingClientRect();
    const x = (clientX ?? box.left + box.width / 2) - box.left;
    const y = (clientY ?? box.top + box.height / 2) - box.top;
    const scale = Math.min(40, Math.max(0.5, place.scale * factor));
    const real = scale / place.scale;
    place = { x: place.x + x * (1 - real), y: place.y + y * (1 - real), scale };
    move();
  };

  const mark = (item, button) => {
    for (const other of enlarged.items) other.group.classList.remove("marked");
    for (const other of list.querySelectorAll("button")) other.setAttribute("aria-pressed", "false");
    item.group.classList.add("marked");
    item.group.classList.remove("off");
    button.setAttribute("aria-pressed", "true");
  };

  const fillViewer = () => {
    const one = data.pictures[current.picture];
    const run = current.fixed ? current.run : state.run;
    const step = current.fixed ? current.step : state.step;
    byId("viewer-name").textContent = one.name + (data.runs[run].steps > 1 ? `, step ${step}` : "");
    enlarged.svg.setAttribute("viewBox", `0 0 ${one.width} ${one.height}`);
    enlarged.fill(current.picture, run, step);
    enlarged.update(Number(controls.threshold.value), Number(controls.class.value));
    list.replaceChildren();
    const rows = enlarged.items.filter((item) => (item.object ? item.missed : item.visible) && !item.group.classList.contains("off"));
    rows.sort((a, b) => (b.score ?? -1) - (a.score ?? -1));
    for (const item of rows) {
      const button = document.createElement("button");
      button.type = "button";
      const what = document.createElement("span"), kind = document.createElement("span");
      what.textContent = item.text;
      kind.textContent = item.object ? "missed" : item.about;
      kind.className = `kind ${item.object ? "missed" : item.name}`;
      button.append(what, kind);
      button.addEventListener("click", () => mark(item, button));
      list.append(button);
    }
    if (!rows.length) list.textContent = "Nothing at this score.";
  };

  function open(entry) {
    current = entry;
    const source = entry.card.querySelector("img");
    picture.hidden = !source;
    if (source) picture.src = source.src;
    if (!viewer.open) viewer.showModal();
    fillViewer();
    fit();
    stage.focus();
  }
  const step = (by) => {
    const same = cards.filter((entry) => entry.fixed === current.fixed);
    open(same[(same.indexOf(current) + by + same.length) % same.length]);
  };
  const actions = {
    previous: () => step(-1), next: () => step(1), in: () => zoom(1.4), out: () => zoom(1 / 1.4),
    fit, close: () => viewer.close(),
  };
  viewer.querySelectorAll("[data-do]").forEach((button) =>
    button.addEventListener("click", () => actions[button.dataset.do]()));
  const keys = { ArrowLeft: "previous", ArrowRight: "next", "+": "in", "=": "in", "-": "out", 0: "fit" };
  viewer.addEventListener("keydown", (event) => {
    if (!keys[event.key] || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    actions[keys[event.key]]();
  });
  viewer.addEventListener("close", () => current?.card.querySelector("button").focus());
  stage.addEventListener("wheel", (event) => {
    event.preventDefault();
    zoom(Math.exp(-event.deltaY / 400), event.clientX, event.clientY);
  }, { passive: false });
  // Drag with one pointer, pinch with two.
  const pointers = new Map();
  stage.addEventListener("pointerdown", (event) => {
    pointers.set(event.pointerId, event);
    stage.setPointerCapture(event.pointerId);
  });
  stage.addEventListener("pointermove", (event) => {
    const before = pointers.get(event.pointerId);
    if (!before) return;
    if (pointers.size === 1) {
      place.x += event.clientX - before.clientX;
      place.y += event.clientY - before.clientY;
      move();
    } else if (pointers.size === 2) {
      const other = [...pointers.values()].find((one) => one.pointerId !== event.pointerId);
      const apart = (a) => Math.hypot(a.clientX - other.clientX, a.clientY - other.clientY) || 1;
      zoom(apart(event) / apart(before), (event.clientX + other.clientX) / 2, (event.clientY + other.clientY) / 2);
    }
    pointers.set(event.pointerId, event);
  });
  for (const name of ["pointerup", "pointercancel"])
    stage.addEventListener(name, (event) => pointers.delete(event.pointerId));
  addEventListener("resize", () => { if (viewer.open) fit(); });

  controls.run?.addEventListener("change", () => {
    state.run = Number(controls.run.value);
    fillSteps();
    refresh();
  });
  controls.step.addEventListener("change", () => { state.step = Number(controls.step.value); refresh(); });
  controls.class.addEventListener("change", refresh);
  controls.threshold.addEventListener("input", refresh);
  Object.values(shown).forEach((box) => box.addEventListener("change", refresh));
  byId("controls").addEventListener("submit", (event) => event.preventDefault());
  fillSteps();
  refresh();
})();
