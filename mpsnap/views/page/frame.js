// What stands around the diagram and does not move with it: axis, names, map, hints.
"use strict";

function drawAxis() {
  const axis = layers.axis;
  axis.replaceChildren();
  const moving = make(axis, "g", {});
  make(moving, "rect", { class: "cover", x: X(drawn.from) - 10, y: 0, width: (drawn.to - drawn.from) * drawn.scale + 20, height: TOP - 6 });
  let free = -Infinity;
  const label = (x, text) => {
    if (x < free) return false;
    make(moving, "text", { x: round(x), y: 34, "text-anchor": "middle" }, text);
    free = x + 6.2 * text.length + 16;
    return true;
  };
  if (view.axis === "order") {
    const first = Math.max(0, Math.ceil(drawn.from)), last = Math.min(log.columns - 1, Math.floor(drawn.to));
    let before = first > 0 ? columnTime[first - 1] : NaN;
    const lines = [];
    for (let column = first; column <= last; column++) {
      const time = columnTime[column];
      if (Number.isNaN(time) || time <= before) continue;
      before = time;
      if (ticks && drawn.scale > 3) lines.push(`M${round(X(column - 0.5))} ${TOP - 6}V${drawnBottom()}`);
      label(X(ticks ? column - 0.5 : column) + (ticks ? 8 : 0), ticks ? timeText(time) : timeText(time));
    }
    if (lines.length) prepend("path", { class: "grid", d: lines.join("") });
  } else {
    const raw = 96 / drawn.scale, power = 10 ** Math.floor(Math.log10(raw));
    let step = power * [1, 2, 5, 10].find((factor) => factor * power >= raw);
    if (ticks) step = Math.max(1, Math.round(step));
    const lines = [];
    for (let k = Math.ceil(Math.max(0, drawn.from) / step); k * step <= drawn.to; k++) {
      lines.push(`M${round(X(k * step))} ${TOP - 6}V${drawnBottom()}`);
      label(X(k * step), ticks ? String(k * step) : axisTime(k * step, step));
    }
    prepend("path", { class: "grid", d: lines.join("") });
  }
  drawCutLabels(moving);
  make(axis, "rect", { class: "cover", x: 0, y: 0, width: GUTTER - 6, height: TOP - 6 });
  make(axis, "text", { x: 12, y: 34 }, ticks ? "tick" : "time");
}

function axisTime(time, step) {
  const [factor, unit] = step >= 1 ? [1, "s"] : step >= 1e-3 ? [1e3, "ms"] : [1e6, "\u00b5s"];
  const digits = Math.max(0, -Math.floor(Math.log10(step * factor) + 1e-9));
  return (time * factor).toFixed(digits) + " " + unit;
}

function prepend(tag, attributes) {
  layers.world.prepend(make(layers.world, tag, attributes));
}

// Numbers of the cuts in view, on the line above the times; the selected one's first, for where there is room.
function drawCutLabels(moving) {
  const taken = [];
  let count = 0;
  const order = log.cuts.map((_, i) => i).sort((a, b) => (b === selected) - (a === selected));
  for (const i of order) {
    const cut = log.cuts[i], first = cut.recorded.find((rank) => rank >= 0);
    if (first === undefined || count > MOST_CUTS) continue;
    const x = worldX(first);
    if (x < X(drawn.from) || x > X(drawn.to)) continue;
    const text = i === selected ? nameOfCut(cut) : String(cut.number === null ? cut.id : cut.number);
    const half = 3.4 * text.length + 6;
    if (taken.some(([low, high]) => x - half < high && low < x + half)) continue;
    taken.push([x - half, x + half]);
    count++;
    make(moving, "text", { class: i === selected ? "cutlabel" : "otherlabel", x: round(x), y: 15, "text-anchor": "middle", "data-cut": i }, text);
  }
}

function drawNames() {
  const names = layers.names;
  names.replaceChildren();
  const clip = make(names, "g", {});
  make(clip, "rect", { class: "cover", x: 0, y: TOP - 6, width: GUTTER - 6, height: view.height });
  make(clip, "path", { class: "edge", d: `M${GUTTER - 6.5} ${TOP - 6}V${view.height}M0 ${TOP - 6.5}H${view.width}` });
  const moving = make(names, "g", {});
  log.nodes.slice(drawn.first, drawn.last + 1).forEach((name, k) => {
    const i = drawn.first + k;
    const short = name.length > NAME ? name.slice(0, NAME - 1) + "\u2026" : name;
    const text = make(moving, "text", { class: "name", x: GUTTER - 14, y: Y(i) + 4, "text-anchor": "end" }, short);
    make(text, "title", {}, name);
  });
  // Above what slides under it.
  diagram.append(layers.names, layers.axis);
}

// ---------------------------------------------------------------- the map

let mapped = null;
function drawMap() {
  const width = view.width, height = 36, [low, high] = extents[view.axis], scale = width / (high - low);
  const key = [view.axis, width, selected].join();
  if (mapped !== key) {
    mapped = key;
    map.replaceChildren();
    const bins = new Uint32Array(Math.ceil(width / 2) + 1), at = positions[view.axis];
    for (let rank = 0; rank < lane.length; rank++) if (lane[rank] >= 0) bins[Math.floor((at[rank] - low) * scale / 2)]++;
    const most = bins.reduce((a, b) => Math.max(a, b), 1), d = [];
    bins.forEach((n, bin) => { if (n) d.push(`M${bin * 2} ${height - 2}v${round(-Math.max(1, (height - 8) * n / most))}h1.5v${height}`); });
    make(map, "path", { class: "bars faint", d: d.join("") });
    const marks = log.cuts.slice(0, 2000).flatMap((cut, i) => i === selected ? [] : cut.recorded.find((rank) => rank >= 0) ?? []);
    make(map, "path", { class: "other", d: marks.map((rank) => `M${round((at[rank] - low) * scale)} 0V${height}`).join("") });
    if (selected >= 0) {
      const [from, to] = spanOfCut(log.cuts[selected]);
      const start = log.cuts[selected].recorded.find((rank) => rank >= 0);
      if (from <= to) make(map, "path", { class: "cut", d: `M${round((from - low) * scale)} 4H${round((to - low) * scale + 1)}M${round((at[start] - low) * scale)} 0V${height}` });
    }
    make(map, "rect", { class: "frame", y: 1, height: height - 3, rx: 3 });
  }
  map.lastChild.setAttribute("x", round((view.left - low) * scale));
  map.lastChild.setAttribute("width", Math.max(4, round(Math.min(screenWidth() / view.scale, high - low) * scale)));
}

function hint(text) {
  const element = document.getElementById("hint");
  element.hidden = !text;
  element.textContent = text;
}
