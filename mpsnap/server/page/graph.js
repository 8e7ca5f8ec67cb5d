// The topology, drawn: nodes with what they do, channels with what flows. What is drawn anew each second are the few
// attributes that have changed.

import { attr, bytes, count, draw, few, make, NONE, percent, put, rate, shortened, show } from "./dom.js";
import { edge, ordered, place, uncrowded } from "./layout.js";

// More channels than the first are not all told by text, more than the second not all drawn.
const MOST_TOLD = 26, MOST_DRAWN = 300, BUSIEST = 90, MOST_COUNTS = 16, MOST_OWN_TOLD = 44;

// How far along a channel the number of its messages stands: nearer to where they will be handled.
const COUNT_AT = 0.78;

const shapes = {
  starting: (r) => ring(r), running: (r) => ring(r), waiting: (r) => ring(r), paused: (r) => ring(r),
  blocked: (r) => polygon(r * 1.26, 4, Math.PI / 4),
  frozen: (r) => polygon(r * 1.16, 6),
  dead: (r) => polygon(r * 1.12, 4),
};
const ring = (r) => `M${-r} 0A${r} ${r} 0 1 0 ${r} 0A${r} ${r} 0 1 0 ${-r} 0Z`;
const polygon = (r, n, turned = 0) => "M" + Array.from({ length: n }, (_, k) => {
  const angle = turned + 2 * Math.PI * k / n;
  return `${(r * Math.sin(angle)).toFixed(1)} ${(-r * Math.cos(angle)).toFixed(1)}`;
}).join("L") + "Z";
// A mark in the corner of the shape, for those that see no colours.
const marks = { paused: "M-2 -3V3M2 -3V3", dead: "M-2.5 -2.5L2.5 2.5M-2.5 2.5L2.5 -2.5", blocked: "M-3 0H3", frozen: "M0 -4V4M-3.4 -2L3.4 2M-3.4 2L3.4 -2" };

export class Graph {
  // `chosen` is called with the name of a node that is clicked.
  constructor(stage, chosen) {
    this.stage = stage;
    this.chosen = chosen;
    this.svg = draw("svg", { role: "group", "aria-label": "Topology" });
    // Its own picture, which nothing that changes lies in: it is not drawn anew each second.
    this.web = draw("svg", { class: "web", "aria-hidden": "true" });
    this.layers = {};
    for (const name of ["edges", "wave", "nodes", "labels"]) this.svg.append(this.layers[name] = draw("g", { class: name }));
    attr(this.layers.edges, "aria-hidden", "true");
    this.tip = make("div", { class: "tip", hidden: true, "aria-hidden": "true" });
    this.note = make("p", { class: "quiet", hidden: true });
    stage.append(this.web, this.svg, this.tip);
    stage.after(this.note);
    this.names = [];
    this.pairs = [];
    this.near = null;
    this.busy = new Set();
    this.averages = [];
    new ResizeObserver(() => this.measure()).observe(stage);
  }

  measure() {
    if (this.fitted !== this.topology) {
      this.fitted = this.topology;
      this.stage.style.height = "";
    }
    const box = this.stage.getBoundingClientRect();
    if (!box.width || (this.width === Math.round(box.width) && this.height === Math.round(box.height))) return;
    [this.width, this.height] = [Math.round(box.width), Math.round(box.height)];
    if (this.status) this.build();
  }

  // ---------------------------------------------------------------- what stands still

  update(status) {
    const fresh = !this.status || status.nodes.length !== this.names.length || status.channels.length !== this.pairs.length ||
      status.run.topology !== this.topology || status.nodes.some(({ name }) => !this.index.has(name)) ||
      status.channels.some(({ src, dst }, i) => this.pairs[i][0] !== this.index.get(src) || this.pairs[i][1] !== this.index.get(dst));
    this.status = status;
    if (fresh) {
      this.names = ordered(status.nodes.map(({ name }) => name));
      this.index = new Map(this.names.map((name, i) => [name, i]));
      this.pairs = status.channels.map(({ src, dst }) => [this.index.get(src), this.index.get(dst)]);
      this.topology = status.run.topology;
      this.averages = this.pairs.map(() => 0);
      this.busy.clear();
      this.near = null;
      this.width = null;
      this.measure();
    } else this.paint();
  }

  build() {
    const { width, height } = this, size = this.names.length;
    for (const svg of [this.svg, this.web]) attr(svg, "viewBox", `0 0 ${width} ${height}`);
    for (const name of ["edges", "nodes", "labels"]) this.layers[name].replaceChildren();
    this.drawn = new Map();
    Object.assign(this, { hub: null }, place(this.names, this.pairs, this.topology, width, height));
    // No more room than is of use; drawn anew when it has been taken.
    if (this.enough < height) this.stage.style.height = `${this.enough}px`;
    const there = new Set(this.pairs.map(([src, dst]) => src * size + dst));
    this.bends = this.pairs.map(([src, dst]) => there.has(dst * size + src) ? 1 : 0);
    this.own = this.names.map(() => []);
    this.pairs.forEach(([src, dst], i) => {
      this.own[src].push(i);
      this.own[dst].push(i);
    });
    this.nodes = this.names.map((name, i) => this.node(name, i));
    this.thin();
    this.weave();
    attr(this.svg, "aria-label", `Topology ${this.topology}: ${count(size)} nodes, ${count(this.pairs.length)} channels`);
    this.rebuilt?.();
    this.paint();
  }

  node(name, i) {
    const point = this.points[i], r = this.radius;
    const body = draw("path", { class: "body" }), mark = draw("g", { class: "mark" }, draw("circle", { r: 7 }), draw("path", {}));
    const backlog = r >= 12 ? draw("text", { class: "backlog", y: 4 }) : null;
    const halo = draw("path", { class: "halo", d: ring(r + Math.max(3, r * 0.24)) });
    const check = draw("path", { class: "check", d: r >= 12 ? "M-4 0L-1 3L4.5 -3.5" : "M-2.5 0L-.6 2L3 -2.2" });
    attr(check, "transform", `translate(${r * 0.82 + 2} ${-r * 0.82 - 2})`);
    attr(mark, "transform", `translate(${-r * 0.78 - 3} ${-r * 0.78 - 3})${r < 12 ? " scale(.75)" : ""}`);
    // Shape and colour must do where there is no room.
    if (r < 6) attr(mark, "class", "mark thin");
    if (r < 12) attr(check, "class", "check thin");
    const hit = draw("circle", { class: "hit", r: Math.max(12, r + 6) });
    const group = draw("g", { class: "node", transform: `translate(${point.x} ${point.y})`, tabindex: "0", role: "button" },
      hit, halo, body, backlog, mark, check);
    group.dataset.node = name;
    const label = draw("text", { class: "name", x: point.lx, y: point.ly, "text-anchor": point.anchor });
    const lines = this.roomy && point.up ? -13 : 13;
    const told = draw("text", { class: "told", x: point.lx, y: point.ly + Math.max(0, lines), "text-anchor": point.anchor });
    if (lines < 0) attr(label, "y", point.ly + lines);
    if (this.roomy && point.up) attr(told, "y", point.ly);
    put(label, shortened(name, this.roomy ? 12 : 9));
    group.addEventListener("click", () => this.chosen(name, group));
    group.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" && event.key !== " ") return;
      event.preventDefault();
      this.chosen(name, group);
    });
    for (const [enter, leave] of [["pointerenter", "pointerleave"], ["focus", "blur"]]) {
      group.addEventListener(enter, () => this.approach(i));
      group.addEventListener(leave, () => this.approach(null));
    }
    this.layers.nodes.append(group);
    this.layers.labels.append(label, told);
    return { group, body, mark, backlog, label, told };
  }

  // Names that would stand on one another are left out; pointing at a node tells its name.
  thin() {
    const fits = uncrowded(this.names.map((name, i) => ({
      ...this.points[i], x: this.points[i].lx, y: this.points[i].ly,
      width: Math.min(name.length, this.roomy ? 12 : 9) * 7 + 2, height: this.roomy ? 26 : 13,
    })));
    this.nodes.forEach(({ label, told }, i) => {
      attr(label, "class", fits[i] ? "name" : "name thin");
      attr(told, "class", this.roomy && fits[i] ? "told" : "told thin");
    });
  }

  // Too many channels to draw one by one are at least a texture.
  weave() {
    const { pairs, points } = this;
    this.web.replaceChildren();
    if (pairs.length <= MOST_DRAWN) return;
    const once = pairs.filter(([src, dst], i) => src < dst || !this.bends[i]);
    const d = once.map(([src, dst]) => `M${points[src].x.toFixed(0)} ${points[src].y.toFixed(0)}L${points[dst].x.toFixed(0)} ${points[dst].y.toFixed(0)}`);
    this.web.append(draw("path", { d: d.join("") }));
  }

  // ---------------------------------------------------------------- what changes

  paint() {
    if (!this.nodes || !this.width) return;
    for (const node of this.status.nodes) this.paintNode(node, this.nodes[this.index.get(node.name)]);
    this.paintEdges();
    if (this.near !== null) this.tell();
  }

  paintNode(node, { group, body, mark, backlog, label, told }) {
    attr(group, "class", `node ${node.status}${node.name === this.selected ? " selected" : ""}`);
    const words = `${node.name}: ${node.status}, ${rate(node.handled_per_s)} handled per second, ${count(node.backlog)} waiting for it`;
    attr(group, "aria-label", words);
    const d = (shapes[node.status] ?? shapes.running)(this.radius).replace(/(\.\d)\d+/g, "$1");
    attr(body, "d", d);
    attr(mark.lastChild, "d", marks[node.status] ?? "");
    attr(mark, "display", node.status in marks ? null : "none");
    if (backlog) put(backlog, node.backlog > 0 ? few(node.backlog) : "");
    const odd = !["running", "waiting"].includes(node.status);
    put(told, odd ? node.status : node.handled_per_s === null ? "" : `${rate(node.handled_per_s)}/s`);
    if (odd !== label.classList.contains("odd")) for (const text of [label, told]) text.classList.toggle("odd", odd);
  }

  // Which channels are drawn: all, or the busiest and those of the node that is pointed at. One that is drawn stays
  // until it is clearly no longer among the busiest, or they would flicker.
  wanted() {
    const { channels } = this.status, all = channels.length <= MOST_DRAWN;
    if (all) return channels.keys();
    channels.forEach((channel, i) => {
      const now = (channel.handled_per_s ?? 0) + channel.in_flight + (channel.full ? 1e9 : 0);
      this.averages[i] = this.averages[i] * 0.7 + now * 0.3;
    });
    const order = [...channels.keys()].sort((a, b) => this.averages[b] - this.averages[a]);
    const may = new Set(order.slice(0, 2 * BUSIEST).filter((i) => this.averages[i] > 0));
    const stay = [...this.busy].filter((i) => may.has(i));
    this.busy = new Set(stay);
    for (const i of order) {
      if (this.busy.size >= BUSIEST || !may.has(i)) break;
      this.busy.add(i);
    }
    return this.near === null ? this.busy : new Set([...this.own[this.near], ...this.busy]);
  }

  paintEdges() {
    const { channels } = this.status, many = channels.length > MOST_DRAWN;
    const wanted = [...this.wanted()];
    const mine = new Set(this.near === null ? [] : this.own[this.near]);
    const told = new Set(mine.size && mine.size <= MOST_OWN_TOLD ? mine : channels.length <= MOST_TOLD ? wanted : []);
    const counted = new Set(wanted.filter((i) => channels[i].in_flight > 0 || channels[i].full)
      .sort((a, b) => channels[b].full - channels[a].full || channels[b].in_flight - channels[a].in_flight)
      .slice(0, channels.length <= MOST_TOLD ? MOST_TOLD : many ? 0 : MOST_COUNTS));
    if (channels.length > MOST_TOLD) this.spread(counted);
    for (const i of mine) if (told.has(i) && channels[i].in_flight > 0) counted.add(i);
    const gone = new Set(this.drawn.keys());
    for (const i of wanted) {
      gone.delete(i);
      this.paintEdge(i, channels[i], mine, told.has(i), counted.has(i));
    }
    for (const i of gone) {
      for (const part of Object.values(this.drawn.get(i))) if (part instanceof Element) part.remove();
      this.drawn.delete(i);
    }
    attr(this.layers.edges, "class", mine.size ? "edges apart" : "edges");
    show(this.note, many);
    if (many) put(this.note, `the ${count(this.busy.size)} busiest of ${count(channels.length)} channels; point at a node for its own`);
  }

  shapeOf(i) {
    const [src, dst] = this.pairs[i];
    return edge(this.points[src], this.points[dst], this.radius, this.bends[i]);
  }

  paintEdge(i, channel, mine, told, counted) {
    let parts = this.drawn.get(i);
    if (!parts) {
      const shape = this.shapeOf(i);
      parts = { shape, path: draw("path", { d: shape.d }), head: draw("path", {}) };
      this.layers.edges.append(parts.path, parts.head);
      this.drawn.set(i, parts);
    }
    const flow = channel.handled_per_s ?? 0, dense = this.pairs.length > MOST_DRAWN ? 0.2 : this.pairs.length > MOST_TOLD ? 0.55 : 1;
    const kind = channel.full ? "full" : flow > 0 || channel.in_flight > 0 ? "busy" : "idle";
    const width = kind === "idle" ? 1 : Math.round((1 + dense * (this.width < 520 ? 0.7 : 1.3) * Math.log10(1 + flow)) * 4) / 4;
    const own = mine.has(i) ? " own" : "";
    attr(parts.path, "class", `edge ${kind}${own}`);
    attr(parts.path, "stroke-width", width);
    attr(parts.head, "class", `head ${kind}${own}`);
    if (parts.width !== width) attr(parts.head, "d", parts.shape.head(Math.min(this.radius * 0.7, 3.6 + width)));
    parts.width = width;
    this.label(parts, "rate", told, () => parts.shape.at(this.share(i, 0.5), this.bends[i] ? 9 : -9), kind === "idle" ? "" : `${rate(flow)}/s`, "flow");
    const text = channel.full ? `${count(channel.in_flight)} full` : count(channel.in_flight);
    this.label(parts, "count", counted, () => parts.shape.at(this.share(i, COUNT_AT), this.bends[i] ? 4 : 0), text, "flight");
  }

  // Only those counts that do not stand on one another.
  spread(counted) {
    const which = [...counted], fits = uncrowded(which.map((i) => {
      const [x, y] = this.shapeOf(i).at(COUNT_AT, this.bends[i] ? 4 : 0);
      return { x, y: y + 4, anchor: "middle", width: 8 * String(this.status.channels[i].in_flight).length, height: 12 };
    }));
    which.forEach((i, k) => fits[k] || counted.delete(i));
  }

  // At a star's hub there is no room for what is told of all its channels.
  share(i, usual) {
    const [src, dst] = this.pairs[i];
    return src === this.hub ? Math.max(0.66, usual) : dst === this.hub ? usual - 0.26 : usual;
  }

  label(parts, name, wanted, where, text, kind) {
    if (wanted && !parts[name]) {
      const [x, y] = where();
      this.layers.edges.append(parts[name] = draw("text", { class: kind, x, y: y + 4 }));
    } else if (!wanted && parts[name]) {
      parts[name].remove();
      parts[name] = null;
    }
    if (wanted) put(parts[name], text);
  }

  // ---------------------------------------------------------------- a closer look

  approach(i) {
    if (this.near === i) return;
    this.near = i;
    show(this.tip, i !== null);
    if (!this.status) return;
    this.paintEdges();
    if (i !== null) this.tell();
  }

  tell() {
    const name = this.names[this.near], node = this.status.nodes.find((one) => one.name === name), point = this.points[this.near];
    if (!node) return;
    const rows = [[node.status + (node.phase && node.phase !== node.status ? `, ${node.phase}` : ""), ""],
      ["handled", `${rate(node.handled_per_s)}/s`], ["waiting for it", count(node.backlog)],
      ["CPU", percent(node.cpu_percent)], ["memory", bytes(node.memory_bytes)]];
    if (node.summary) rows.push([shortened(node.summary, 60), ""]);
    this.tip.replaceChildren(make("b", {}, shortened(name, 40)),
      ...rows.filter(([, value]) => value !== NONE).map(([what, value]) => make("span", {}, value ? `${what} ${value}` : what)));
    const left = point.x < this.width / 2;
    this.tip.style.left = left ? `${Math.round(point.x + this.radius + 10)}px` : "auto";
    this.tip.style.right = left ? "auto" : `${Math.round(this.width - point.x + this.radius + 10)}px`;
    this.tip.style.top = `${Math.round(Math.max(4, Math.min(point.y - 20, this.height - 130)))}px`;
  }

  select(name) {
    this.selected = name;
    for (const { group } of this.nodes ?? []) group.classList.toggle("selected", group.dataset.node === name);
  }
}
