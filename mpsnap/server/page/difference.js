// How two snapshots differ, as tables: values of states by their paths, messages that left channels or entered them.

import { count, entries, leftOutOf, listed, make, NONE, plural, pretty } from "./dom.js";

const MOST_ROWS = 300, UNFOLDED_NODES = 16, UNFOLDED_CHANNELS = 24;

// Returns elements. A document's `null` means that there is no difference there.
export function difference(document) {
  const { old, new: late } = document;
  const title = make("h3", {}, `From snapshot ${old.number} to snapshot ${late.number}`);
  if (!document.differ) return [title, make("p", {}, "They do not differ.")];
  return [title, ...only(document), ...states(document), ...channels(document)];
}

const more = (amount) => amount ? make("p", { class: "quiet" }, `\u2026 ${count(amount)} more`) : null;
const arrow = (src, dst) => `${src} \u2192 ${dst}`;

function only({ only_in_old: gone, only_in_new: come }) {
  const words = (part, when) => part && (part.nodes?.length || part.channels?.length)
    ? [make("p", {}, `Only in the ${when}: ${[...listed(part.nodes), ...listed(part.channels).map(([src, dst]) => arrow(src, dst))].join(", ")}`)] : [];
  return [...words(gone, "earlier one"), ...words(come, "later one")];
}

// ---------------------------------------------------------------- states

const value = (change, side) => make("td", { class: side, "data-label": side }, side in change ? make("pre", {}, pretty(change[side], 40)) : NONE);

function row(change) {
  return make("tr", { class: change.what }, make("th", { scope: "row" }, change.path || "(all of it)"), value(change, "old"), value(change, "new"));
}

function growth(name, pairs) {
  if (!entries(pairs).length || leftOutOf(pairs)) return null;
  const grown = entries(pairs).reduce((sum, [, [before, now]]) => sum + (now ?? 0) - (before ?? 0), 0);
  return `${name} ${grown < 0 ? "\u2212" : "+"}${count(Math.abs(grown))}`;
}

function flags(node) {
  const turned = ["passive", "finished"].map((name) => node[name] && `${name}: ${node[name][0] ? "yes" : "no"} \u2192 ${node[name][1] ? "yes" : "no"}`);
  const emitted = node.emitted && `emitted ${count(node.emitted[0])} \u2192 ${count(node.emitted[1])}`;
  const timers = node.timers?.length ? plural(node.timers.length, "timer") + " changed" : null;
  return [growth("sent", node.sent), growth("received", node.received), ...turned, emitted, timers].filter(Boolean).join(" \u00b7 ");
}

function states({ nodes }) {
  const all = entries(nodes), changed = all.filter(([, node]) => node.state.length), same = all.filter(([, node]) => !node.state.length);
  if (!all.length) return [];
  return [make("h4", {}, "States"), ...changed.map(([name, node]) => state(name, node, changed.length <= UNFOLDED_NODES)),
    make("div", { class: "tiles" }, ...same.map(([name, node]) => {
      const element = make("p", { class: "quiet" }, make("b", {}, name), ` the same state${flags(node) ? "; " + flags(node) : ""}`);
      element.dataset.node = name;
      return element;
    })), more(leftOutOf(nodes))].filter(Boolean);
}

function state(name, node, open) {
  const changes = listed(node.state), missing = leftOutOf(node.state);
  const table = make("table", { class: "changes" },
    make("thead", {}, make("tr", {}, ...["what", "old", "new"].map((word) => make("th", { scope: "col" }, word)))),
    make("tbody", {}, ...changes.slice(0, MOST_ROWS).map(row)));
  const summary = make("summary", {}, make("b", {}, name), make("span", { class: "brief" }, plural(changes.length + missing, "change")));
  const fold = make("details", { open }, summary, table, more(Math.max(0, changes.length - MOST_ROWS) + missing), make("p", { class: "quiet" }, flags(node)));
  fold.dataset.node = name;
  return fold;
}

// ---------------------------------------------------------------- channels

const amount = (messages) => listed(messages).length + leftOutOf(messages);

function channels({ channels: list }) {
  const known = listed(list);
  if (!known.length) return [];
  const tiles = known.map((channel) => tile(channel, known.length <= UNFOLDED_CHANNELS));
  return [make("h4", {}, "Channels"), make("div", { class: "tiles" }, ...tiles), more(leftOutOf(list))].filter(Boolean);
}

function tile({ src, dst, left, entered, changed }, open) {
  const parts = [[left, "left it"], [entered, "entered it"], [changed, "changed"]].filter(([messages]) => messages?.length);
  const brief = parts.map(([messages, words]) => `${count(amount(messages))} ${words}`).join(", ");
  const fold = make("details", { open }, make("summary", {}, make("b", {}, arrow(src, dst)), make("span", { class: "brief" }, brief)),
    ...parts.map(([messages, words]) => make("div", {}, make("p", { class: "quiet" }, `Messages that ${words}`),
      make("ul", { class: "messages" }, ...listed(messages).map(message)), more(leftOutOf(messages)))));
  fold.dataset.channel = `${src} ${dst}`;
  return fold;
}

function message(one) {
  const content = "message" in one ? pretty(one.message, 60) : `${pretty(one.old, 60)} \u2192 ${pretty(one.new, 60)}`;
  return make("li", {}, make("span", { class: "number" }, one.number), make("pre", {}, content));
}
