// The log as arrays, and where things are. Nothing here touches the page but to read the log from it.
"use strict";

const log = JSON.parse(document.getElementById("log").textContent);
const lanes = log.nodes.length;
const ticks = log.head.unit === "ticks";
const lane = Int32Array.from(log.lane);
const positions = { order: Float64Array.from(log.column), time: Float64Array.from(log.place) };
// An end of an arrow that is not an entry: the log lacks it, or it is beyond the part of the log on this page.
const MISSING = -1, BEYOND = -2;

class Arrows {
  constructor(kind, columns) {
    this.kind = kind;
    this.length = columns.src.length;
    for (const name of ["src", "dst", "number", "sent", "received"]) this[name] = columns[name];
    this.cut = columns.cut;
    this.spans = {};
  }

  // From and to where each arrow runs on this axis.
  span(axis) {
    if (this.spans[axis]) return this.spans[axis];
    const at = positions[axis], [low, high] = extent(axis), stub = axis === "order" ? 1.5 : (high - low) / 200;
    const from = new Float64Array(this.length), to = new Float64Array(this.length);
    for (let i = 0; i < this.length; i++) {
      const sent = this.sent[i], received = this.received[i];
      to[i] = received >= 0 ? at[received] : received === BEYOND ? high + stub : high - stub / 3;
      from[i] = sent >= 0 ? at[sent] : sent === BEYOND ? low - stub : to[i] - stub;
    }
    return (this.spans[axis] = { from, to });
  }
}

function extent(axis) {
  if (axis === "order") return [-0.8, Math.max(1, log.columns) + 0.4];
  let low = Infinity, high = -Infinity;
  for (let rank = 0; rank < lane.length; rank++) {
    if (lane[rank] < 0) continue;
    low = Math.min(low, positions.time[rank]);
    high = Math.max(high, positions.time[rank]);
  }
  if (low > high) [low, high] = [0, 1];
  const margin = Math.max((high - low) * 0.03, ticks ? 0.6 : 1e-5);
  return [low - margin, high + margin];
}

const extents = { order: extent("order"), time: extent("time") };
const messages = new Arrows("message", log.messages);
const markers = new Arrows("marker", log.markers);

// Of each entry, the arrow that begins or ends there.
const arrowAt = { message: new Int32Array(lane.length).fill(-1), marker: new Int32Array(lane.length).fill(-1) };
for (const arrows of [messages, markers]) {
  for (let i = 0; i < arrows.length; i++) {
    if (arrows.sent[i] >= 0) arrowAt[arrows.kind][arrows.sent[i]] = i;
    if (arrows.received[i] >= 0) arrowAt[arrows.kind][arrows.received[i]] = i;
  }
}

// Of each column, the earliest time in it: for the labels of the axis by cause.
const columnTime = new Float64Array(Math.max(1, log.columns)).fill(NaN);
for (let rank = 0; rank < lane.length; rank++) {
  const column = log.column[rank];
  if (lane[rank] >= 0 && !(columnTime[column] <= log.time[rank])) columnTime[column] = log.time[rank];
}

// By node, the ranks of its entries in their order.
const entriesOf = log.nodes.map(() => []);
for (let rank = 0; rank < lane.length; rank++) if (lane[rank] >= 0) entriesOf[lane[rank]].push(rank);

const eventOf = (rank) => log.events[log.event[rank]];
const nameOfCut = (cut) => "snapshot " + (cut.number === null ? cut.id : cut.number);
// The log may have lost all else of a snapshot.
const cutOfMarker = (index) => (index < 0 ? "a snapshot that this log does not tell of" : nameOfCut(log.cuts[index]));

function timeText(time) {
  if (ticks) return String(time);
  return time < 1 ? (time * 1000).toFixed(3) + " ms" : time.toFixed(6) + " s";
}

// ---------------------------------------------------------------- values
// A value is kept as its JSON text and never as numbers of JavaScript's, which would round what is large.

const tokensOf = (text) => text.match(/"(?:[^"\\]|\\.)*"|[{}\[\],:]|[^\s{}\[\],:"]+/g) || [];

function brief(text, width) {
  const parts = tokensOf(text);
  let line = "";
  for (let i = 0; i < parts.length && line.length < width + 40; i++) {
    const key = parts[i][0] === '"' && parts[i + 1] === ":";
    line += key ? parts[i].slice(1, -1) : parts[i] === "," || parts[i] === ":" ? parts[i] + " " : parts[i];
  }
  line = line.replace(/^\{([^$].*)\}$/, "$1");
  line = line.replace(/\{\$size: (\d+)\}/g, "<$1 bytes>").replace(/\{\$(?:tuple): \[([^\[\]{}]*)\]\}/g, "($1)");
  return line.length > width ? line.slice(0, width - 3) + "..." : line;
}

function pretty(text) {
  const parts = tokensOf(text);
  const closing = { "{": "}", "[": "]" };
  let at = 0;
  function block(indent) {
    const part = parts[at++];
    if (!(part in closing)) return part;
    const items = [];
    while (at < parts.length && parts[at] !== closing[part]) {
      let item = block(indent + "  ");
      if (parts[at] === ":") { at++; item += ": " + block(indent + "  "); }
      items.push(item);
      if (parts[at] === ",") at++;
    }
    at++;
    const line = part + items.join(", ") + closing[part];
    if (line.length + indent.length < 44 && !line.includes("\n")) return line;
    return part + "\n" + items.map((item) => indent + "  " + item).join(",\n") + "\n" + indent + closing[part];
  }
  // A value nested a thousand times would exhaust the stack.
  try { return block(""); } catch { return text; }
}
