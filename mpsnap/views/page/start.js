// Mouse, fingers and keys, and the first view.
"use strict";

const fingers = new Map();
let dragged = 0, spread = 0;

const place = (event) => {
  const box = diagram.getBoundingClientRect();
  return [event.clientX - box.left, event.clientY - box.top];
};

diagram.addEventListener("pointerdown", (event) => {
  diagram.setPointerCapture(event.pointerId);
  fingers.set(event.pointerId, place(event));
  dragged = 0;
  spread = 0;
});

diagram.addEventListener("pointermove", (event) => {
  const [x, y] = place(event), before = fingers.get(event.pointerId);
  if (!before) return hover(x, y);
  fingers.set(event.pointerId, [x, y]);
  if (fingers.size === 2) {
    const [[ax], [bx]] = [...fingers.values()], width = Math.abs(ax - bx);
    if (spread && width) zoom(width / spread, (ax + bx) / 2);
    spread = width;
    dragged = 99;
    return;
  }
  dragged += Math.abs(x - before[0]) + Math.abs(y - before[1]);
  if (dragged < 4) return;
  view.top += before[1] - y;
  pan(before[0] - x);
});

function lift(event) {
  const clicked = fingers.delete(event.pointerId) && dragged < 4 && event.type === "pointerup";
  if (!clicked) return;
  const [x, y] = place(event), cut = event.target.dataset ? elementCut(event) : null;
  if (cut !== null) select(cut);
  else pick(thingAt(x, y));
}

// A pointer that is captured reports the diagram as its target, not the label under it.
function elementCut(event) {
  const found = document.elementsFromPoint(event.clientX, event.clientY).find((element) => element.matches("text[data-cut]"));
  return found ? Number(found.dataset.cut) : null;
}

diagram.addEventListener("pointerup", lift);
diagram.addEventListener("pointercancel", lift);
diagram.addEventListener("pointerleave", () => { byId("tip").hidden = true; });

function hover(x, y) {
  const thing = thingAt(x, y), tip = byId("tip");
  tip.hidden = !thing;
  if (!thing) return;
  tip.textContent = summary(thing);
  const left = x + 14 + tip.offsetWidth > view.width ? x - tip.offsetWidth - 10 : x + 14;
  tip.style.left = `${Math.max(4, left)}px`;
  tip.style.top = `${Math.max(4, Math.min(y + 14, view.height - tip.offsetHeight - 6))}px`;
}

diagram.addEventListener("wheel", (event) => {
  event.preventDefault();
  // Lines or pages to pixels.
  const unit = event.deltaMode === 1 ? 24 : event.deltaMode === 2 ? 400 : 1;
  if (event.shiftKey || Math.abs(event.deltaX) > Math.abs(event.deltaY)) return pan((event.deltaX || event.deltaY) * unit);
  zoom(Math.exp(-Math.max(-200, Math.min(200, event.deltaY * unit)) * 0.0022), place(event)[0]);
}, { passive: false });

function fromMap(event) {
  if (!event.buttons && event.type === "pointermove") return;
  const box = map.getBoundingClientRect(), [low, high] = extents[view.axis];
  view.left = low + (event.clientX - box.left) / box.width * (high - low) - screenWidth() / view.scale / 2;
  refresh(false);
}
map.addEventListener("pointerdown", (event) => { map.setPointerCapture(event.pointerId); fromMap(event); });
map.addEventListener("pointermove", fromMap);

// ---------------------------------------------------------------- keys

function step(direction) {
  if (!picked || picked.arrows) return pickNear();
  const own = entriesOf[lane[picked.id]], column = log.column[picked.id];
  let at = own.indexOf(picked.id) + direction;
  // What stands at one point is one stop.
  while (own[at] !== undefined && log.column[own[at]] === column) at += direction;
  if (own[at] !== undefined) pick({ id: mainOf(own[at]) }, true);
}

function cross(direction) {
  if (!picked || picked.arrows) return pickNear();
  for (let next = lane[picked.id] + direction; next >= 0 && next < lanes; next += direction) {
    const found = nearestOn(next, positions[view.axis][picked.id]);
    if (found >= 0) return pick({ id: mainOf(found) }, true);
  }
}

const mainOf = (rank) => samePoint(rank).find((other) => eventOf(other) === "recorded") ?? rank;

function nearestOn(which, unit) {
  let best = -1;
  for (const rank of entriesOf[which]) {
    if (best < 0 || Math.abs(positions[view.axis][rank] - unit) < Math.abs(positions[view.axis][best] - unit)) best = rank;
  }
  return best;
}

function pickNear() {
  const middle = view.left + screenWidth() / view.scale / 2;
  const recorded = selected >= 0 ? log.cuts[selected].recorded.find((rank) => rank >= 0) : undefined;
  const rank = picked ? picked.arrows.sent[picked.id] : recorded ?? log.nodes.map((_, i) => nearestOn(i, middle)).find((found) => found >= 0) ?? -1;
  if (rank >= 0) pick({ id: rank }, true);
}

function otherEnd() {
  if (!picked) return pickNear();
  if (picked.arrows) return;
  for (const arrows of [messages, markers]) {
    const i = arrowAt[arrows.kind][picked.id];
    if (i < 0) continue;
    const other = arrows.sent[i] === picked.id ? arrows.received[i] : arrows.sent[i];
    if (other >= 0) pick({ id: other }, true);
    return;
  }
}

const anywhere = {
  n: () => selected < log.cuts.length - 1 && select(selected + 1),
  p: () => selected > 0 && select(selected - 1),
  x: () => select(-1),
  c: toCut,
  a: () => setAxis(view.axis === "order" ? "time" : "order"),
  "+": () => zoom(1.4),
  "=": () => zoom(1.4),
  "-": () => zoom(1 / 1.4),
  0: fit,
  Escape: () => pick(null),
};
const inDiagram = {
  ArrowLeft: () => step(-1),
  ArrowRight: () => step(1),
  ArrowUp: () => cross(-1),
  ArrowDown: () => cross(1),
  Enter: otherEnd,
  Home: () => center(extents[view.axis][0]),
  End: () => center(extents[view.axis][1]),
  PageUp: () => pan(-0.8 * screenWidth()),
  PageDown: () => pan(0.8 * screenWidth()),
};

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const own = document.activeElement === diagram;
  // In a list letters and arrows are its own.
  if (document.activeElement && /^(SELECT|INPUT|TEXTAREA)$/.test(document.activeElement.tagName) && event.key !== "Escape") return;
  const moves = { ArrowLeft: -120, ArrowRight: 120 };
  const action = own && event.shiftKey && event.key in moves ? () => pan(moves[event.key]) : (own && inDiagram[event.key]) || anywhere[event.key];
  if (!action) return;
  event.preventDefault();
  action();
});

// ---------------------------------------------------------------- first view

for (const [id, action] of Object.entries({
  in: () => zoom(1.4), out: () => zoom(1 / 1.4), all: fit, tocut: toCut,
  order: () => setAxis("order"), time: () => setAxis("time"),
  previous: anywhere.p, next: anywhere.n, none: anywhere.x,
})) byId(id).addEventListener("click", action);
for (const id of ["messages", "markers", "values"]) {
  byId(id).addEventListener("change", (event) => { show[id] = event.target.checked; refresh(); });
}

function tellHead() {
  const { driver, unit } = log.head, plural = (n, noun) => `${n.toLocaleString("en")} ${noun}${n === 1 ? "" : "s"}`;
  const entries = log.total === lane.length ? `${log.total.toLocaleString("en")} entries` : `${lane.length.toLocaleString("en")} of ${log.total.toLocaleString("en")} entries`;
  const times = log.span ? `, ${ticks ? "ticks " : ""}${timeText(log.span[0])} to ${timeText(log.span[1])}` : "";
  byId("facts").textContent = `${driver}, ${plural(lanes, "node")}, ${plural(log.channels, "channel")}, ${plural(log.cuts.length, "snapshot")}, ${entries}${times}`;
  const unended = messages.received.filter((rank) => rank === MISSING).length;
  const told = unended ? `, ${plural(unended, "message")} not received in this log` : "";
  byId("facts").textContent += told + (unit === "ticks" || unit === "seconds" ? "" : `, times in ${unit}`);
  const notices = byId("notices");
  notices.hidden = !log.notices.length;
  for (const notice of log.notices) text(notices, "li", notice);
}

function start() {
  measure();
  tellHead();
  fillCuts();
  diagram.setAttribute("aria-label", `Space-time diagram of ${log.head.app} on ${log.head.topology}`);
  const [low, high] = extents.order;
  view.scale = screenWidth() / (high - low);
  view.left = low;
  select(selected, false);
  // All of it if that can be read, else the cut, else the beginning.
  if (view.scale < 9) {
    if (selected >= 0 && log.cuts[selected].recorded.some((rank) => rank >= 0)) toCut();
    else view.scale = 20;
  }
  paint();
  new ResizeObserver(() => { measure(); refresh(); }).observe(diagram);
}

start();
