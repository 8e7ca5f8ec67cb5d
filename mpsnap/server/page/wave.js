// How a snapshot spreads: which nodes have recorded, which have all their channels closed, what is still waited for.
// Live while it is open, and again in slow motion afterwards, over the drawing of the topology.

import { attr, brief, byId, count, draw, enable, make, put, show, visible } from "./dom.js";
import { fromText, isOpen, model, nameOf, newest } from "./model.js";

const PLAY_MS = 3500, STAYS_MS = 2500, MOST_LINES = 400, MOST_LISTED = 40;
const still = matchMedia("(prefers-reduced-motion: reduce)");

// What each node has done at a time after the beginning; `Infinity` is what is known last.
export function progress(digest, time) {
  const nodes = new Map();
  for (const [name, { recorded_s: recorded, closed_s: closed }] of Object.entries(digest.nodes)) {
    nodes.set(name, recorded === null || time < recorded ? "before" : closed !== null && time >= closed ? "closed" : "recorded");
  }
  return nodes;
}

// The moments at which something happens.
export function moments(digest) {
  const times = new Set([0]);
  for (const { recorded_s: recorded, closed_s: closed } of Object.values(digest.nodes)) {
    for (const time of [recorded, closed]) if (time !== null) times.add(time);
  }
  return [...times].sort((a, b) => a - b);
}

export class Wave {
  // `details` fetches the digest of a snapshot with all its nodes.
  constructor(graph, details) {
    Object.assign(this, { graph, details, shown: null, time: Infinity, playing: 0, leaving: 0 });
    this.awaited = draw("path", { class: "awaited" });
    this.underway = draw("path", { class: "underway" });
    graph.layers.wave.append(this.underway, this.awaited);
    graph.rebuilt = () => this.paint();
    for (const name of ["of", "play", "at", "text", "hide"]) this[name] = byId(`wave-${name}`);
    this.clock = byId("wave-time");
    this.of.addEventListener("change", () => this.choose(this.of.value));
    this.of.addEventListener("blur", () => this.list());
    this.play.addEventListener("click", () => this.start());
    this.hide.addEventListener("click", () => this.clear());
    this.at.addEventListener("input", () => {
      this.stop();
      this.time = this.at.value / 1000 * this.length();
      this.paint();
    });
    still.addEventListener("change", () => this.paint());
  }

  // ---------------------------------------------------------------- which one

  async choose(id) {
    this.stop();
    const digest = model.snapshots.get(id) ?? null;
    if (!digest) return this.clear();
    this.shown = digest;
    this.time = Infinity;
    this.paint();
    if (!Object.keys(digest.nodes).length && digest.kept) {
      const told = await this.details(digest);
      if (told && this.shown === digest) this.shown = told;
      this.paint();
    }
  }

  // Show a snapshot from its beginning on; where nothing is to move, as it ended.
  async replay(digest, leaves = false) {
    await this.choose(digest.id);
    if (!this.shown || still.matches) return;
    this.leaves = leaves;
    this.time = 0;
    this.start();
  }

  clear() {
    this.stop();
    this.shown = null;
    this.paint();
  }

  update() {
    const latest = newest();
    // What is chosen stays; otherwise the newest is shown as long as it is under way.
    if (this.shown && this.live && !isOpen(model.snapshots.get(this.shown.id) ?? this.shown)) this.shown = null;
    this.live = this.live && this.shown !== null;
    if ((!this.shown || this.live) && latest && isOpen(latest)) {
      this.shown = latest;
      this.live = true;
      this.time = Infinity;
    } else if (this.shown) {
      const now = model.snapshots.get(this.shown.id);
      if (now && Object.keys(now.nodes).length) this.shown = now;
    }
    this.list();
    this.paint();
  }

  list() {
    if (document.activeElement === this.of) return;
    const wanted = [...model.snapshots.values()].reverse().slice(0, MOST_LISTED);
    if (this.shown && !wanted.some(({ id }) => id === this.shown.id)) wanted.push(this.shown);
    const key = wanted.map(({ id, number }) => `${id} ${number}`).join("|");
    if (key !== this.listed) {
      this.listed = key;
      this.of.replaceChildren(make("option", { value: "" }, "as they are taken"),
        ...wanted.map((digest) => make("option", { value: digest.id }, `${nameOf(digest)}, from ${fromText(digest)}`)));
    }
    this.of.value = this.shown && !this.live ? this.shown.id : "";
  }

  // ---------------------------------------------------------------- motion

  length() {
    return Math.max(1e-9, ...moments(this.shown));
  }

  start() {
    const latest = newest();
    if (!this.shown && latest) this.shown = latest;
    if (!this.shown) return;
    this.live = false;
    const wasPlaying = this.playing !== 0;
    this.stop(true);
    if (wasPlaying) return this.paint();
    if (this.time >= this.length()) this.time = still.matches ? -1 : 0;
    if (still.matches) {
      // One step instead of a motion.
      this.time = moments(this.shown).find((time) => time > this.time) ?? Infinity;
      return this.paint();
    }
    const begun = performance.now(), from = this.time, length = this.length();
    let last = 0;
    const frame = (now) => {
      this.playing = requestAnimationFrame(frame);
      // A step that nobody could tell from the one before is left out.
      if (now - last < 40) return;
      last = now;
      this.time = from + (now - begun) / PLAY_MS * length;
      if (this.time >= length) {
        this.time = Infinity;
        this.stop(true);
        if (this.leaves) this.leaving = setTimeout(() => this.clear(), STAYS_MS);
      }
      this.paint();
    };
    this.playing = requestAnimationFrame(frame);
    this.paint();
  }

  stop(keep = false) {
    cancelAnimationFrame(this.playing);
    clearTimeout(this.leaving);
    this.playing = 0;
    if (!keep) this.leaves = this.live = false;
  }

  // ---------------------------------------------------------------- drawing

  paint() {
    const { shown, graph } = this;
    show(byId("wave-controls"), shown !== null);
    // Of one that is under way there is only now.
    for (const part of [this.at, this.clock, this.play]) show(part, !(this.live && shown));
    graph.svg.classList.toggle("waving", shown !== null);
    put(this.play, still.matches ? "Next step" : this.playing ? "Pause" : "Play");
    enable(this.play, shown !== null || newest() !== null);
    this.list();
    if (!shown) {
      for (const { group } of graph.nodes ?? []) attr(group, "data-wave", null);
      for (const path of [this.awaited, this.underway]) attr(path, "d", "");
      put(this.text, newest() ? "Play shows in slow motion how the latest snapshot has spread." : "No snapshot has been taken yet.");
      return;
    }
    const nodes = progress(shown, this.time);
    for (const { group } of graph.nodes ?? []) attr(group, "data-wave", nodes.get(group.dataset.node) ?? "before");
    this.lines(nodes);
    this.tellText(nodes);
  }

  lines(nodes) {
    const { graph, shown } = this;
    if (!graph.nodes) return;
    const final = this.time === Infinity, awaited = [], underway = [];
    const waits = new Set(shown.waiting?.channels?.map(([src, dst]) => `${src} ${dst}`) ?? []);
    graph.pairs.forEach(([src, dst], i) => {
      const [from, to] = [graph.names[src], graph.names[dst]], [here, there] = [nodes.get(from), nodes.get(to)];
      const named = final && (waits.has(`${from} ${to}`) || shown.nodes[to]?.awaits?.includes(from));
      if (named || (!final && there === "recorded" && here === "before")) awaited.push(i);
      else if (!final && there !== "closed" && (here === "recorded" || here === "closed")) underway.push(i);
    });
    // Of too many every second one, or every third, so that they come from everywhere.
    const path = (which) => which.filter((_, k) => k % Math.ceil(which.length / MOST_LINES) === 0).map((i) => graph.shapeOf(i).d).join("");
    attr(this.awaited, "d", path(awaited));
    attr(this.underway, "d", path(underway));
    const lines = awaited.length + underway.length;
    attr(graph.layers.wave, "class", lines > 240 ? "wave dense denser" : lines > 60 ? "wave dense" : "wave");
  }

  tellText(nodes) {
    const { shown } = this, values = [...nodes.values()], length = this.length();
    const recorded = values.filter((one) => one !== "before").length, closed = values.filter((one) => one === "closed").length;
    const time = Math.min(this.time, length);
    let text = `${nameOf(shown)}, from ${fromText(shown)}: ${count(recorded)} of ${count(values.length)} recorded, ${count(closed)} closed`;
    const channels = this.time === Infinity ? shown.waiting?.channels ?? [] : [];
    if (channels.length && isOpen(shown)) {
      const few = channels.slice(0, 4).map(([src, dst]) => `${src} \u2192 ${dst}`).join(", ");
      text += `; waits for ${few}${channels.length > 4 ? ` and ${count(channels.length - 4)} more` : ""}`;
    }
    put(this.text, text);
    put(this.clock, `${brief(time)} of ${brief(length)}`);
    const at = String(Math.round(time / length * 1000));
    if (this.at.value !== at) this.at.value = at;
    attr(this.at, "aria-valuetext", visible(`${brief(time)}: ${recorded} recorded, ${closed} closed`));
  }
}
