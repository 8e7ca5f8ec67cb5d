// What the reader does: moving, zooming, choosing a snapshot, looking at one thing.
"use strict";

const byId = (id) => document.getElementById(id);

function text(parent, tag, content, kind) {
  const element = document.createElement(tag);
  if (kind) element.className = kind;
  element.textContent = content;
  parent.append(element);
  return element;
}

// ---------------------------------------------------------------- moving

function zoom(factor, x = GUTTER + screenWidth() / 2) {
  const unit = view.left + (x - GUTTER) / view.scale, [least, most] = limits();
  view.scale = Math.min(most, Math.max(least, view.scale * factor));
  view.left = unit - (x - GUTTER) / view.scale;
  refresh();
}

function pan(pixels) {
  view.left += pixels / view.scale;
  refresh(false);
}

function fit() {
  [view.scale, view.left] = [0, extents[view.axis][0]];
  refresh();
}

function center(unit) {
  view.left = unit - screenWidth() / view.scale / 2;
  refresh();
}

// From where to where a cut goes; the other way round if nobody recorded.
function spanOfCut(cut) {
  let low = Infinity, high = -Infinity;
  for (const rank of cut.recorded) {
    if (rank < 0) continue;
    low = Math.min(low, positions[view.axis][rank]);
    high = Math.max(high, positions[view.axis][rank]);
  }
  return [low, high];
}

// Show the cut with a little around it, at a scale at which it can be read if there is one.
function toCut() {
  if (selected < 0) return;
  const [low, high] = spanOfCut(log.cuts[selected]);
  if (low > high) return;
  const margin = view.axis === "order" ? 10 : (high - low) * 0.3;
  const best = screenWidth() / (high - low + 2 * margin || 1);
  view.scale = view.axis === "order" ? Math.min(26, Math.max(5, best)) : best;
  center((low + high) / 2);
}

function setAxis(axis) {
  const middle = view.left + screenWidth() / view.scale / 2, old = positions[view.axis];
  let nearest = -1;
  for (let rank = 0; rank < lane.length; rank++) {
    if (lane[rank] >= 0 && (nearest < 0 || Math.abs(old[rank] - middle) < Math.abs(old[nearest] - middle))) nearest = rank;
  }
  const share = screenWidth() / view.scale / (extents[view.axis][1] - extents[view.axis][0]);
  view.axis = axis;
  view.scale = screenWidth() / (share * (extents[axis][1] - extents[axis][0]));
  byId("order").setAttribute("aria-pressed", axis === "order");
  byId("time").setAttribute("aria-pressed", axis === "time");
  if (nearest >= 0) center(positions[axis][nearest]);
  refresh();
}

// ---------------------------------------------------------------- snapshots

function select(index, move = true) {
  selected = index;
  byId("cuts").value = String(index);
  const cut = index >= 0 ? log.cuts[index] : null, about = byId("about");
  about.replaceChildren();
  if (cut) {
    const from = cut.initiators.length ? ` from ${cut.initiators.join(", ")}` : "";
    text(about, "span", `${nameOfCut(cut)}${from}: ${cut.about}, `);
    text(about, "span", `${cut.total} in flight`, "swatch flies");
    if (cut.error) text(about, "div", cut.error);
    if (cut.recorded.some((rank) => rank < 0)) text(about, "div", "Not every node has recorded within this log.");
  } else text(about, "span", log.cuts.length ? "No cut is drawn." : "There is no snapshot in this log.");
  byId("previous").disabled = index <= 0;
  byId("next").disabled = index >= log.cuts.length - 1;
  byId("none").disabled = index < 0;
  if (move && cut && !cutInView(cut)) toCut();
  refresh();
}

function cutInView(cut) {
  const [low, high] = spanOfCut(cut);
  return low >= view.left && high <= view.left + screenWidth() / view.scale;
}

function fillCuts() {
  const list = byId("cuts");
  log.cuts.forEach((cut, i) => {
    const name = cut.number === null ? cut.id : cut.number;
    const from = cut.initiators.length > 2 ? `${cut.initiators.length} nodes` : cut.initiators.join(", ");
    const option = text(list, "option", `${name}${from ? " from " + from : ""}: ${cut.about}, ${cut.total} in flight`);
    option.value = String(i);
  });
  const none = text(list, "option", log.cuts.length ? "none" : "none in this log");
  none.value = "-1";
  list.size = Math.min(6, Math.max(2, log.cuts.length + 1));
  list.addEventListener("change", () => select(Number(list.value)));
}

// ---------------------------------------------------------------- looking at one thing

function pick(thing, follow = false) {
  picked = thing;
  const details = byId("details");
  details.replaceChildren();
  if (!thing) {
    text(details, "h2", "Details");
    text(details, "p", "Nothing is selected.", "quiet");
  } else if (thing.arrows) tellArrow(details, thing.arrows, thing.id);
  else tellEntry(details, thing.id);
  if (follow && thing) {
    const at = thing.arrows ? thing.arrows.span(view.axis).from[thing.id] : positions[view.axis][thing.id];
    const high = view.left + screenWidth() / view.scale;
    if (at < view.left + 20 / view.scale || at > high - 40 / view.scale) center(at);
    if (!thing.arrows) {
      const y = TOP + view.gap * (lane[thing.id] + 0.5) - view.top;
      if (y < TOP + 10 || y > view.height - 10) view.top += y - view.height / 2;
    }
  }
  refresh();
}

function facts(parent, rows) {
  const list = text(parent, "dl", "");
  for (const [name, value] of rows) {
    if (value === null || value === undefined || value === "") continue;
    text(list, "dt", name);
    text(list, "dd", String(value));
  }
}

function tellArrow(details, arrows, i) {
  const kind = arrows.kind, [src, dst] = [log.nodes[arrows.src[i]], log.nodes[arrows.dst[i]]];
  const when = (rank, missing) => rank >= 0 ? timeText(log.time[rank]) : rank === BEYOND ? "outside the part on this page" : missing;
  text(details, "h2", `${kind === "message" ? "Message" : "Marker"} ${src} \u2192 ${dst}`);
  const cut = selected >= 0 ? log.cuts[selected] : null;
  if (kind === "message" && cut && cut.flying.includes(i)) text(details, "span", `in flight at the cut of ${nameOfCut(cut)}`, "swatch flies");
  facts(details, [
    [kind === "message" ? "number" : "snapshot", kind === "message" ? arrows.number[i] : cutOfMarker(arrows.cut[i])],
    ["after message", kind === "marker" ? arrows.number[i] : null],
    ["sent", when(arrows.sent[i], "not in this log")],
    ["received", when(arrows.received[i], "not in this log: in flight at its end, or lost")],
  ]);
  const payload = arrows.sent[i] >= 0 ? (log.detail[arrows.sent[i]] || {}).payload : undefined;
  if (payload !== undefined) tellValue(details, "payload", payload);
  const links = text(details, "div", "", "links");
  if (arrows.sent[i] >= 0) link(links, "where it was sent", { id: arrows.sent[i] });
  if (arrows.received[i] >= 0) link(links, "where it was received", { id: arrows.received[i] });
}

function tellEntry(details, rank) {
  const event = eventOf(rank), name = log.nodes[lane[rank]], detail = log.detail[rank] || {};
  const arrow = { message: arrowAt.message[rank], marker: arrowAt.marker[rank] };
  text(details, "h2", `${name}: ${event}`);
  const rows = [[ticks ? "tick" : "time", timeText(log.time[rank])], ["entry", `${log.index[rank]} of ${name}`]];
  if (arrow.message >= 0) {
    const i = arrow.message, to = event === "sent";
    rows.push([to ? "to" : "from", log.nodes[to ? messages.dst[i] : messages.src[i]]], ["number", messages.number[i]]);
  }
  for (const field in detail) {
    if (field === "snapshot") rows.push([field, snapshotText(detail[field])]);
    else if (!(field in VALUE_FIELDS)) rows.push([field, detail[field]]);
  }
  facts(details, rows);
  const sent = arrow.message >= 0 ? messages.sent[arrow.message] : -1;
  const payload = event === "received" && sent >= 0 ? (log.detail[sent] || {}).payload : undefined;
  if (payload !== undefined) tellValue(details, "payload", payload);
  for (const field in detail) if (field in VALUE_FIELDS) tellValue(details, VALUE_FIELDS[field], detail[field]);
  const links = text(details, "div", "", "links");
  for (const arrows of [messages, markers]) {
    if (arrow[arrows.kind] >= 0) link(links, `the ${arrows.kind}`, { arrows, id: arrow[arrows.kind] });
  }
  const others = samePoint(rank).filter((other) => other !== rank);
  if (others.length) text(details, "p", "In the same step:", "quiet");
  const more = text(details, "div", "", "links");
  for (const other of others.slice(0, 40)) link(more, stepText(other), { id: other });
}

const VALUE_FIELDS = { state: "the state recorded here", payload: "payload", record: "record", value: "value", error: "error", channels: "in flight to this node, by sender: first number, how many", sent: "sent before, by receiver" };

// Its number, which people use, and its id, which the log has everywhere.
function snapshotText(id) {
  const cut = log.cuts.find((one) => one.id === id);
  return cut && cut.number !== null ? `${cut.number} (${id})` : id;
}

function stepText(rank) {
  const i = arrowAt.marker[rank], event = eventOf(rank);
  if (event === "marker sent" && i >= 0) return `marker to ${log.nodes[markers.dst[i]]}`;
  if (event === "marker received" && i >= 0) return `marker from ${log.nodes[markers.src[i]]}`;
  return event;
}

function tellValue(details, name, value) {
  text(details, "p", name, "quiet");
  text(details, "pre", pretty(value));
}

function link(parent, words, thing) {
  text(parent, "button", words).addEventListener("click", () => pick(thing, true));
}

function samePoint(rank) {
  const own = entriesOf[lane[rank]], at = own.indexOf(rank), found = [];
  for (let k = at; k >= 0 && log.column[own[k]] === log.column[rank]; k--) found.unshift(own[k]);
  for (let k = at + 1; k < own.length && log.column[own[k]] === log.column[rank]; k++) found.push(own[k]);
  return found;
}

// What is nearest to a place on the screen, within reach of a finger.
function thingAt(x, y) {
  if (!drawn || x < GUTTER - 6 || y < TOP - 6) return null;
  const unit = view.left + (x - GUTTER) / view.scale, reach = 10 / view.scale, at = positions[view.axis];
  const wx = X(unit), wy = y + view.top;
  let best = null, least = 81;
  if (!byId("hint").hidden) return null;
  for (let rank = 0; rank < lane.length; rank++) {
    if (lane[rank] < 0 || Math.abs(at[rank] - unit) > reach) continue;
    let distance = (X(at[rank]) - wx) ** 2 + (Y(lane[rank]) - wy) ** 2;
    if (eventOf(rank) === "recorded") distance -= 1;
    if (distance < least) [best, least] = [{ id: rank }, distance];
  }
  if (best) return best;
  const flying = new Set(selected >= 0 ? log.cuts[selected].flying : []);
  least = 40;
  for (const arrows of [messages, markers]) {
    if (!show[arrows.kind + "s"] && arrows === markers) continue;
    for (const i of visibleArrows(arrows)) {
      if (arrows === messages && !show.messages && !flying.has(i)) continue;
      const [x0, y0, x1, y1] = endsOf(arrows, i);
      if (wx < Math.min(x0, x1) - 6 || wx > Math.max(x0, x1) + 6) continue;
      const length = (x1 - x0) ** 2 + (y1 - y0) ** 2 || 1;
      const t = Math.max(0, Math.min(1, ((wx - x0) * (x1 - x0) + (wy - y0) * (y1 - y0)) / length));
      let distance = (x0 + t * (x1 - x0) - wx) ** 2 + (y0 + t * (y1 - y0) - wy) ** 2;
      if (arrows === messages && flying.has(i)) distance -= 6;
      if (distance < least) [best, least] = [{ arrows, id: i }, distance];
    }
  }
  return best;
}

function summary(thing) {
  if (!thing.arrows) {
    const rank = thing.id, i = arrowAt.message[rank], event = eventOf(rank);
    if (i >= 0) return `${log.nodes[lane[rank]]} ${event} ` + summary({ arrows: messages, id: i });
    const value = (log.detail[rank] || {}).state;
    return `${log.nodes[lane[rank]]} ${event}, ${timeText(log.time[rank])}` + (value === undefined ? "" : `: ${brief(value, 80)}`);
  }
  const { arrows, id } = thing, ends = `${log.nodes[arrows.src[id]]} \u2192 ${log.nodes[arrows.dst[id]]}`;
  if (arrows === markers) return `marker of ${cutOfMarker(arrows.cut[id])}, ${ends}`;
  const payload = arrows.sent[id] >= 0 ? (log.detail[arrows.sent[id]] || {}).payload : undefined;
  return `message ${arrows.number[id]}, ${ends}` + (payload === undefined ? "" : `: ${brief(payload, 80)}`);
}
