// One snapshot, opened: the states of all nodes, the messages in flight, and how another one differs.

import {
  attr, brief, button, byId, bytes, clock, count, draw, enable, entries, leftOutOf, line, listed, make, NONE, plural, pretty, put, show,
} from "./dom.js";
import { difference } from "./difference.js";
import { ask, path, told } from "./link.js";
import { digestOf, fromText, isOpen, model, nameOf } from "./model.js";
import { verdict, waitingText } from "./snapshots.js";

// More nodes or channels than these begin folded.
const UNFOLDED_NODES = 12, UNFOLDED_CHANNELS = 30, UNFOLDED_MESSAGES = 200;

export class Cut {
  constructor({ replay, back }) {
    Object.assign(this, { where: null, content: null, other: null, replay, asked: 0 });
    this.parts = Object.fromEntries(["title", "mark", "facts", "error", "other", "compare", "difference", "states", "channels", "replay", "unfold"].map((name) => [name, byId(`cut-${name}`)]));
    byId("cut-back").addEventListener("click", back);
    this.parts.replay.addEventListener("click", () => this.digest && replay(this.digest));
    this.parts.compare.addEventListener("click", () => this.compare());
    this.parts.unfold.addEventListener("click", () => {
      for (const fold of this.parts.states.querySelectorAll("details")) fold.open = true;
    });
  }

  // ---------------------------------------------------------------- opening

  async open(where) {
    const mine = ++this.asked, { parts } = this;
    Object.assign(this, { where, content: null, digest: null });
    for (const name of ["states", "channels", "difference", "facts"]) parts[name].replaceChildren();
    for (const name of ["error", "replay", "unfold"]) show(parts[name], false);
    put(parts.title, where.number === null ? where.id : `Snapshot ${where.number}`);
    put(parts.mark, "");
    parts.title.focus();
    this.update();
    let number = where.number ?? digestOf(where)?.number ?? null;
    if (number === null) return;
    let found = null, problem = null;
    try {
      found = await ask(path("snapshots", number) + "?short=1");
    } catch (error) {
      problem = error;
    }
    if (mine !== this.asked) return;
    if (found) this.tell(found);
    this.update();
    if (problem && !this.digest?.error) {
      put(parts.error, told(problem));
      show(parts.error, true);
    }
  }

  close() {
    this.asked++;
    this.where = null;
  }

  update() {
    if (!this.where) return;
    const { parts } = this, digest = digestOf(this.where) ?? this.content?.digest ?? null;
    this.list();
    this.digest = digest;
    if (!digest) return;
    const [kind, words] = verdict(digest);
    attr(parts.mark, "class", `pill ${kind}`);
    put(parts.mark, words);
    const rows = [["from", fromText(digest)], ["taken at", clock(digest.began)], ["took", brief(digest.duration_s)],
      ["in flight", digest.in_flight === null ? NONE : plural(digest.in_flight, "message")], ["size", bytes(digest.bytes)], ["id", digest.id],
      ["recovery point", digest.recovery_point ? "yes" : "no"]];
    const key = JSON.stringify(rows);
    if (this.told !== key || !parts.facts.children.length) {
      this.told = key;
      parts.facts.replaceChildren(...rows.map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, value))));
    }
    const error = told(digest.error) || waitingText(digest) || (digest.kept || isOpen(digest) ? "" : "Its content is no longer kept.");
    if (error) put(parts.error, error);
    if (error) show(parts.error, true);
    show(parts.replay, !isOpen(digest));
  }

  // ---------------------------------------------------------------- content

  tell(found) {
    const { parts } = this, { snapshot } = found;
    this.content = found;
    const names = Object.keys(snapshot.nodes), longest = Math.max(0, ...Object.values(found.digest.nodes ?? {}).map(({ closed_s: at }) => at ?? 0));
    parts.states.replaceChildren(...names.map((name) => this.state(name, snapshot.nodes[name], found.digest.nodes?.[name], longest, names.length <= UNFOLDED_NODES)));
    show(parts.unfold, names.length > UNFOLDED_NODES);
    this.channels(snapshot);
  }

  state(name, node, wave, longest, open) {
    // Of counts that are not all there the sum is not known.
    const total = (name, counts) => leftOutOf(counts) ? null : `${name} ${count(entries(counts).reduce((sum, [, number]) => sum + number, 0))}`;
    const facts = [total("sent", node.sent), total("received", node.received), node.passive ? "passive" : null, node.finished ? "finished" : null].filter(Boolean);
    const value = make("pre", {}), whole = "state" in node ? node.state : null;
    const fold = make("details", { open }, make("summary", {}, make("b", {}, name), make("span", { class: "brief" }, line(whole))), value);
    const tell = () => {
      if (fold.open && !value.textContent) put(value, pretty(whole));
    };
    fold.addEventListener("toggle", tell);
    tell();
    const element = make("li", {}, fold, make("p", { class: "quiet span" }, wave && longest ? this.course(wave, longest) : null, make("span", {}, facts.join(" \u00b7 "))));
    element.dataset.node = name;
    return element;
  }

  // When a node has recorded, and until when it took its channels' messages into the snapshot.
  course({ recorded_s: recorded, closed_s: closed }, longest) {
    if (recorded === null) return null;
    const from = 160 * recorded / longest, to = 160 * (closed ?? longest) / longest;
    const words = `recorded after ${brief(recorded)}, closed after ${brief(closed)}`;
    return make("span", { class: "span" }, draw("svg", { viewBox: "0 0 164 10", role: "img", "aria-label": words, class: "course" },
      draw("path", { class: "axis", d: "M0 5H164" }), draw("path", { class: closed === null ? "open" : "taking", d: `M${from.toFixed(1)} 5H${Math.max(to, from + 1).toFixed(1)}` }),
      draw("path", { class: "recorded", d: `M${from.toFixed(1)} 5l3.5 -4.5l3.5 4.5l-3.5 4.5Z` })), words);
  }

  channels(snapshot) {
    const full = snapshot.channels.filter(({ messages }) => messages.length).sort((a, b) => b.messages.length - a.messages.length);
    const amount = ({ messages }) => listed(messages).length + leftOutOf(messages);
    const all = full.reduce((sum, channel) => sum + amount(channel), 0);
    const empty = snapshot.channels.length - full.length;
    const rows = full.map((channel) => {
      const first = snapshot.nodes[channel.dst]?.received?.[channel.src] ?? null;
      return this.channel(channel, amount(channel), first, full.length <= UNFOLDED_CHANNELS && all <= UNFOLDED_MESSAGES);
    });
    const words = full.length ? `${plural(all, "message")} on ${plural(full.length, "channel")}; ${empty === 1 ? "1 is" : `${count(empty)} are`} empty.` : "No message was in flight.";
    this.parts.channels.replaceChildren(make("p", { class: "quiet" }, words), ...rows);
  }

  channel({ src, dst, messages }, amount, received, open) {
    const list = received === null ? make("ul", {}) : make("ol", { start: received + 1 });
    const fold = make("details", { open }, make("summary", {}, make("b", {}, `${src} \u2192 ${dst}`), make("span", { class: "brief" }, plural(amount, "message"))), list);
    fold.dataset.channel = `${src} ${dst}`;
    const tell = () => {
      if (!fold.open || list.children.length) return;
      for (const message of listed(messages)) list.append(make("li", {}, make("pre", {}, pretty(message, 60))));
      if (leftOutOf(messages)) list.append(make("li", { class: "more" }, make("pre", {}, pretty(messages.at(-1)))));
    };
    fold.addEventListener("toggle", tell);
    tell();
    return fold;
  }

  // ---------------------------------------------------------------- comparing

  list() {
    const { parts, where } = this;
    const others = [...model.snapshots.values()].reverse().filter(({ number, kept }) => kept && number !== null && number !== where.number);
    const key = others.map(({ number }) => number).join();
    if ((key === this.listed && parts.other.children.length === others.length) || document.activeElement === parts.other) return;
    const chosen = parts.other.value;
    this.listed = key;
    parts.other.replaceChildren(...others.map((digest) => make("option", { value: digest.number }, `${nameOf(digest)}, from ${fromText(digest)}`)));
    if (others.some(({ number }) => String(number) === chosen)) parts.other.value = chosen;
    enable(parts.compare, others.length > 0);
  }

  async compare() {
    const mine = ++this.asked, number = this.where.number ?? this.digest?.number, other = Number(this.parts.other.value);
    if (number === null || number === undefined) return;
    // Always from the earlier to the later one, in which direction time runs.
    const [old, late] = number < other ? [number, other] : [other, number];
    const target = this.parts.difference;
    target.replaceChildren(make("p", { class: "quiet" }, "Waiting for the difference\u2026"));
    let found;
    try {
      const document = await ask(path("diff", old, late) + "?short=1");
      found = difference(document.diff ?? document);
    } catch (error) {
      found = [make("p", { class: "error" }, told(error))];
    }
    if (mine !== this.asked) return;
    target.replaceChildren(...found, button("Close the comparison", () => target.replaceChildren()));
  }
}
