// The diagram: only what is on the screen, and a little more on both sides, is ever drawn.
"use strict";

const SVG = "http://www.w3.org/2000/svg";
const TOP = 46, BOTTOM = 26;
// Left of it stand the names, shortened to what fits.
const NAME = 20, GUTTER = 32 + 7.4 * Math.min(NAME, log.nodes.reduce((most, name) => Math.max(most, name.length), 3));
// More events than this on the screen are drawn as bars of their number.
const MOST_EVENTS = 9000;
const MOST_BOLD = 220, MOST_CUTS = 60, MOST_LABELS = 90, MOST_FLYING = 1500;
const GLYPHS = {
  timer: "M-4 3.5L0 -4L4 3.5Z", command: "M-4 -3.5L0 4L4 -3.5Z", output: "M-3.5 -3.5H3.5V3.5H-3.5Z",
  log: "M-4.5 -2.5H4.5V2.5H-4.5Z", refused: "M-3.5 0L0 -4.5L3.5 0L0 4.5Z", dropped: "M-2 -6V6M2 -6V6",
  restored: "M-3 -6V6L5 0Z",
  died: "M-5 -5L5 5M-5 5L5 -5", other: "M-2 0A2 2 0 1 0 2 0A2 2 0 1 0 -2 0Z",
};
const DIAMOND = "M-6 0L0 -6.5L6 0L0 6.5Z";
const AT_ARROWS = new Set(["sent", "received", "marker sent", "marker received", "recorded", "closed", "reported"]);

const diagram = document.getElementById("diagram");
const map = document.getElementById("map");
const view = { axis: "order", scale: 20, left: 0, top: 0, width: 800, height: 400, gap: 60 };
const show = { messages: true, markers: true, values: true };
let selected = log.selected;
let picked = null, hovered = null;
let drawn = null;

function make(parent, tag, attributes, text) {
  const element = document.createElementNS(SVG, tag);
  for (const name in attributes) element.setAttribute(name, attributes[name]);
  if (text !== undefined) element.textContent = text;
  parent.append(element);
  return element;
}

const layers = {};
for (const name of ["world", "axis", "names"]) layers[name] = make(diagram, "g", { id: name });

const round = (x) => Math.round(x * 10) / 10;
const X = (unit) => (unit - drawn.left) * drawn.scale + GUTTER;
const Y = (which) => TOP + view.gap * (which + 0.5);
const worldX = (rank) => X(positions[view.axis][rank]);

function measure() {
  const box = diagram.getBoundingClientRect();
  view.width = Math.max(200, box.width);
  view.height = Math.max(150, box.height);
  view.gap = Math.min(210, Math.max(lanes > 14 ? 30 : 44, (view.height - TOP - BOTTOM) / Math.max(1, lanes)));
}

const screenWidth = () => view.width - GUTTER;
const limits = () => {
  const [low, high] = extents[view.axis];
  const fit = screenWidth() / (high - low);
  return [Math.min(fit, 40), view.axis === "order" ? 160 : ticks ? 900 : 4e7];
};

function clamp() {
  const [least, most] = limits(), [low, high] = extents[view.axis];
  view.scale = Math.min(most, Math.max(least, view.scale));
  const shown = screenWidth() / view.scale;
  view.left = shown >= high - low ? low : Math.min(high - shown, Math.max(low, view.left));
  view.top = Math.max(0, Math.min(view.top, TOP + lanes * view.gap + BOTTOM - view.height));
}

const laneAt = (y) => Math.max(0, Math.min(lanes - 1, Math.floor((y + view.top - TOP) / view.gap)));
const drawnTop = () => TOP + drawn.first * view.gap;
const drawnBottom = () => TOP + (drawn.last + 1) * view.gap;

// Draw anew, or only move what is drawn.
let due = 0;
function refresh(anew = true) {
  if (anew) drawn = null;
  if (!due) due = requestAnimationFrame(() => { due = 0; paint(); });
}

function paint() {
  clamp();
  const shown = screenWidth() / view.scale;
  const [first, last] = [laneAt(TOP), laneAt(view.height)];
  if (!drawn || drawn.scale !== view.scale || view.left < drawn.from || view.left + shown > drawn.to || first < drawn.first || last > drawn.last) {
    drawn = { left: view.left, scale: view.scale, from: view.left - shown * 0.6, to: view.left + shown * 1.6 };
    // As many node lines above and below as are in view.
    const more = last - first + 1;
    [drawn.first, drawn.last] = [Math.max(0, first - more), Math.min(lanes - 1, last + more)];
    drawWorld();
    drawAxis();
    drawNames();
  }
  const dx = round((drawn.left - view.left) * view.scale);
  layers.world.setAttribute("transform", `translate(${dx} ${-view.top})`);
  layers.axis.firstChild.setAttribute("transform", `translate(${dx} 0)`);
  layers.names.lastChild.setAttribute("transform", `translate(0 ${-view.top})`);
  Object.assign(diagram.dataset, { axis: view.axis, scale: view.scale, left: view.left });
  drawMap();
}

// ---------------------------------------------------------------- the world

function drawWorld() {
  const world = layers.world;
  world.replaceChildren();
  const points = visiblePoints();
  const crowded = points.length > MOST_EVENTS;
  const cut = selected >= 0 ? log.cuts[selected] : null;
  const line = cut ? lineOf(cut) : [];
  if (cut && line.length && cut.status === "completed") {
    make(world, "path", { class: "past", d: curve(line) + `H${round(X(drawn.from))}V${drawnTop()}Z` });
  }
  for (let i = drawn.first; i <= drawn.last; i++) {
    make(world, "path", { class: "lane", d: `M${round(X(drawn.from))} ${Y(i)}H${round(X(drawn.to))}` });
  }
  drawOtherCuts(world);
  if (cut && line.length) {
    const kind = cut.status === "completed" ? "cut" : "cut open";
    make(world, "path", { id: "cut", class: kind, "data-snapshot": cut.id, d: curve(line) });
  }
  const flying = new Set(cut ? cut.flying : []);
  if (picked && picked.arrows) drawPicked(world);
  if (crowded) drawBars(world, points);
  else {
    if (show.markers) drawArrows(world, markers, (i) => cut && markers.cut[i] !== selected ? "marker faint" : "marker", "markerhead");
    if (show.messages) drawArrows(world, messages, (i) => flying.has(i) ? null : "message", "head");
  }
  const crossings = cut ? drawFlying(world, cut, line) : [];
  if (!crowded) drawEvents(world, points);
  drawRecorded(world, cut);
  if (picked && !picked.arrows) {
    make(world, "circle", { class: "pickedpoint", cx: round(worldX(picked.id)), cy: Y(lane[picked.id]), r: 9 });
  }
  if (show.values && cut) drawValues(world, cut, line, crossings);
  hint(crowded ? `${points.length.toLocaleString("en")} events here, drawn as bars of their number: zoom in for the single ones` : "");
}

function visiblePoints() {
  const at = positions[view.axis], found = [];
  for (let rank = 0; rank < lane.length; rank++) {
    if (lane[rank] >= drawn.first && lane[rank] <= drawn.last && at[rank] >= drawn.from && at[rank] <= drawn.to) found.push(rank);
  }
  return found;
}

const inLanes = (arrows, i) =>
  Math.max(arrows.src[i], arrows.dst[i]) >= drawn.first && Math.min(arrows.src[i], arrows.dst[i]) <= drawn.last;

function* visibleArrows(arrows) {
  const { from, to } = arrows.span(view.axis);
  for (let i = 0; i < arrows.length; i++) if (to[i] >= drawn.from && from[i] <= drawn.to && inLanes(arrows, i)) yield i;
}

function endsOf(arrows, i) {
  const { from, to } = arrows.span(view.axis);
  const down = Math.sign(arrows.dst[i] - arrows.src[i]);
  // Of an arrow whose sending the log lacks only what is next to its end is drawn.
  const y0 = arrows.sent[i] === MISSING ? Y(arrows.dst[i]) - down * view.gap * 0.5 : Y(arrows.src[i]);
  return [X(from[i]), y0, X(to[i]), Y(arrows.dst[i])];
}

// One path for all arrows of a kind: a browser draws thousands of lines at once as fast as a few one by one.
function drawArrows(world, arrows, kindOf, head) {
  const parts = {};
  let count = 0;
  for (const i of visibleArrows(arrows)) {
    const kind = kindOf(i);
    if (!kind) continue;
    count++;
    const part = parts[kind + (arrows.received[i] === MISSING ? " unended" : "")] ||= { lines: [], heads: [], ends: [] };
    addArrow(part, arrows, i);
  }
  const dense = count > MOST_BOLD ? " dense" : "";
  for (const kind in parts) {
    const { lines, heads, ends } = parts[kind];
    make(world, "path", { class: kind + dense, d: lines.join("") });
    make(world, "path", { class: kind.includes("faint") ? head + " faint" : head, d: heads.join("") });
    if (ends.length) make(world, "path", { class: "end", d: ends.join("") });
  }
}

function addArrow(part, arrows, i) {
  const [x0, y0, x1, y1] = endsOf(arrows, i);
  if (arrows.received[i] < 0) {
    part.lines.push(`M${round(x0)} ${round(y0)}L${round(x1)} ${round(y1)}`);
    if (arrows.received[i] === MISSING) part.ends.push(`M${round(x1 - 3)} ${y1}a3 3 0 1 0 6 0a3 3 0 1 0 -6 0Z`);
    return;
  }
  const length = Math.hypot(x1 - x0, y1 - y0) || 1, size = Math.min(8, length);
  const ux = (x1 - x0) / length, uy = (y1 - y0) / length, bx = x1 - size * ux, by = y1 - size * uy;
  part.lines.push(`M${round(x0)} ${round(y0)}L${round(bx)} ${round(by)}`);
  part.heads.push(`M${round(x1)} ${round(y1)}L${round(bx - 3.4 * uy)} ${round(by + 3.4 * ux)}L${round(bx + 3.4 * uy)} ${round(by - 3.4 * ux)}Z`);
}

function drawBars(world, points) {
  const at = positions[view.axis], width = 3, bins = Math.ceil((drawn.to - drawn.from) * drawn.scale / width) + 1;
  const counts = Array.from({ length: drawn.last - drawn.first + 1 }, () => new Uint32Array(bins));
  let most = 1;
  for (const rank of points) {
    const bin = Math.floor((at[rank] - drawn.from) * drawn.scale / width);
    most = Math.max(most, ++counts[lane[rank] - drawn.first][bin]);
  }
  const start = X(drawn.from);
  counts.forEach((row, k) => {
    const d = [], y = Y(drawn.first + k);
    row.forEach((n, bin) => {
      if (!n) return;
      const height = Math.max(1, view.gap * 0.4 * n / most);
      d.push(`M${round(start + bin * width)} ${round(y - height)}h${width - 0.6}v${round(2 * height)}h${0.6 - width}Z`);
    });
    make(world, "path", { class: "bars", d: d.join("") });
  });
}

function drawEvents(world, points) {
  const dots = [], glyphs = {};
  for (const rank of points) {
    const event = eventOf(rank), x = round(worldX(rank)), y = Y(lane[rank]);
    if (event === "sent" || event === "received") {
      const r = event === "sent" ? 2.3 : 1.7;
      dots.push(`M${round(x - r)} ${y}a${r} ${r} 0 1 0 ${2 * r} 0a${r} ${r} 0 1 0 ${-2 * r} 0Z`);
    } else if (!AT_ARROWS.has(event)) {
      make(world, "path", {
        class: event === "died" || event === "dropped" ? "died" : "glyph", "data-event": event,
        transform: `translate(${x} ${y})`, d: GLYPHS[event] || GLYPHS.other,
      });
    }
  }
  make(world, "path", { class: "dot", d: dots.join("") });
}

// ---------------------------------------------------------------- cuts

// The points where the nodes that are drawn recorded, from the first to the last: [x, y, lane, rank].
function lineOf(cut) {
  const line = [];
  for (let i = drawn.first; i <= drawn.last; i++) {
    const rank = cut.recorded[i];
    if (rank >= 0) line.push([worldX(rank), Y(i), i, rank]);
  }
  return line;
}

function curve(line) {
  let d = `M${round(line[0][0])} ${drawnTop()}V${round(line[0][1])}`;
  for (let i = 1; i < line.length; i++) {
    const [x0, y0] = line[i - 1], [x1, y1] = line[i], bend = (y1 - y0) / 2;
    d += `C${round(x0)} ${round(y0 + bend)} ${round(x1)} ${round(y1 - bend)} ${round(x1)} ${round(y1)}`;
  }
  return d + `V${round(drawnBottom())}`;
}

function outlineOf(line) {
  const found = [[line[0][0], drawnTop()]];
  for (let i = 1; i < line.length; i++) {
    const [x0, y0] = line[i - 1], [x1, y1] = line[i];
    for (let step = 0; step < 16; step++) {
      const t = step / 16, s = 1 - t;
      found.push([x0 + (x1 - x0) * t * t * (3 - 2 * t), y0 + (y1 - y0) * (1.5 * t * s * s + 1.5 * t * t * s + t * t * t)]);
    }
  }
  const [x, y] = line[line.length - 1];
  return [...found, [x, y], [x, drawnBottom()]];
}

function crossingOf(outline, [x0, y0, x1, y1]) {
  let best = null;
  for (let i = 1; i < outline.length; i++) {
    const [ax, ay] = outline[i - 1], [bx, by] = outline[i];
    const across = (x1 - x0) * (by - ay) - (y1 - y0) * (bx - ax);
    if (!across) continue;
    const along = ((ax - x0) * (by - ay) - (ay - y0) * (bx - ax)) / across;
    const other = ((ax - x0) * (y1 - y0) - (ay - y0) * (x1 - x0)) / across;
    if (along >= 0 && along <= 1 && other >= 0 && other <= 1 && (best === null || along < best)) best = along;
  }
  return best === null ? null : [x0 + (x1 - x0) * best, y0 + (y1 - y0) * best];
}

function drawOtherCuts(world) {
  let count = 0;
  log.cuts.forEach((cut, i) => {
    if (i === selected || count > MOST_CUTS) return;
    const line = lineOf(cut);
    if (!line.some(([x]) => x >= X(drawn.from) && x <= X(drawn.to))) return;
    count++;
    make(world, "path", { class: "other", "data-cut": i, d: curve(line) });
    for (const [x, y] of line) {
      make(world, "path", { class: "recorded small", transform: `translate(${round(x)} ${y}) scale(.6)`, d: DIAMOND });
    }
  });
}

function drawRecorded(world, cut) {
  if (!cut) return;
  for (const [x, y, i, rank] of lineOf(cut)) {
    make(world, "path", {
      class: "recorded", "data-lane": i, "data-rank": rank, transform: `translate(${round(x)} ${y})`, d: DIAMOND,
    });
  }
}

function drawFlying(world, cut, line) {
  const outline = line.length ? outlineOf(line) : [], { from, to } = messages.span(view.axis), found = [];
  let count = 0;
  for (const i of cut.flying) {
    if (to[i] < drawn.from || from[i] > drawn.to || !inLanes(messages, i)) continue;
    if (++count > MOST_FLYING) break;
    const part = { lines: [], heads: [], ends: [] }, lost = messages.received[i] === MISSING;
    addArrow(part, messages, i);
    make(world, "path", { class: lost ? "flying unended" : "flying", "data-message": i, d: part.lines.join("") });
    make(world, "path", { class: lost ? "end" : "flyinghead", d: lost ? part.ends.join("") : part.heads.join("") });
    const at = crossingOf(outline, endsOf(messages, i));
    if (at) found.push([i, ...at]);
  }
  for (const [i, x, y] of found) {
    make(world, "path", { class: "crossing", "data-message": i, transform: `translate(${round(x)} ${round(y)})`, d: "M-4 -4H4V4H-4Z" });
  }
  return found;
}

// States beside the points of the cut, then payloads beside the crossings, each only where there is room.
function drawValues(world, cut, line, crossings) {
  const taken = [];
  for (const [x, y] of line) taken.push([x - 7, y - 7, x + 7, y + 7]);
  for (const [, x, y] of crossings) taken.push([x - 5, y - 5, x + 5, y + 5]);
  const onScreen = ([x]) => x >= X(drawn.from) && x <= X(drawn.to);
  for (const [x, y, , rank] of line.filter(onScreen).slice(0, MOST_LABELS)) {
    const state = (log.detail[rank] || {}).state;
    if (state !== undefined) chip(world, taken, x, y, brief(state, 30), [[10, -21], [-10, -21], [10, 8], [-10, 8]], true);
  }
  for (const [i, x, y] of crossings.slice(0, MOST_LABELS)) {
    const payload = (log.detail[messages.sent[i]] || {}).payload;
    if (payload !== undefined) chip(world, taken, x, y, brief(payload, 22), [[9, -7], [-9, -7], [9, -20], [9, 6], [-9, -20], [-9, 6]]);
  }
}

function chip(world, taken, x, y, text, places, must) {
  const width = 6.05 * text.length + 9;
  let fits = null;
  for (const [dx, dy] of places) {
    const left = dx > 0 ? x + dx : x + dx - width;
    const box = [left, y + dy, left + width, y + dy + 14];
    // What stands beyond the edge now is told once more when the view has moved so far.
    const cropped = x >= GUTTER && x <= view.width && (box[0] < GUTTER || box[2] > view.width);
    if (!cropped && !taken.some((other) => box[0] < other[2] && other[0] < box[2] && box[1] < other[3] && other[1] < box[3])) {
      fits = box;
      break;
    }
    if (must && (!fits || (!cropped && fits.cropped))) fits = Object.assign(box, { cropped });
  }
  if (!fits) return;
  taken.push(fits);
  make(world, "rect", { class: "chip", x: round(fits[0]), y: round(fits[1]), width: round(width), height: 14, rx: 3 });
  make(world, "text", { class: "value", x: round(fits[0] + 4.5), y: round(fits[1] + 10.5) }, text);
}

function drawPicked(world) {
  const [x0, y0, x1, y1] = endsOf(picked.arrows, picked.id);
  make(world, "path", { class: "picked", d: `M${round(x0)} ${round(y0)}L${round(x1)} ${round(y1)}` });
}
