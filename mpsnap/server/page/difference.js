// How two snapshots differ, as tables: values of states by their paths, messages that left channels or entered them.

import { count, make, NONE, plural, pretty } from "./dom.js";

const MOST_ROWS = 300;

// Returns elements. A document's `null` means that there is no difference there.
export function difference(document) {
  const { old, new: late } = document;
  const title = make("h3", {}, `From snapshot ${old.number} to snapshot ${late.number}`);
  if (!document.differ) return [title, make("p", {}, "They do not differ.")];
  return [title, ...only(document), ...states(document), ...channels(document)];
}

function only({ only_in_old: gone, only_in_new: come }) {
  const words = (part, when) => part && (part.nodes.length || part.channels.length)
    ? [make("p", {}, `Only in the ${when}: ${[...part.nodes, ...part.channels.map(([src, dst]) => `${src} \u2192 ${dst}`)].join(", ")}`)] : [];
  return [...words(gone, "earlier one"), ...words(come, "later one")];
}

const value = (change, side) => make("td", { class: side, "data-label": side }, side in change ? make("pre", {}, pretty(change[side], 40)) : NONE);

function row(change) {
  return make("tr", { class: change.what }, make("th", { scope: "row" }, change.path || "(all of it)"), value(change, "old"), value(change, "new"));
}

function growth(name, pairs) {
  const grown = Object.values(pairs ?? {}).reduce((sum, [before, now]) => sum + (now ?? 0) - (before ?? 0), 0);
  return Object.keys(pairs ?? {}).length ? `${name} ${grown < 0 ? "\u2212" : "+"}${count(Math.abs(grown))}` : null;
}

function flags(node) {
  const turned = ["passive", "finished"].map((name) => node[name] && `${name}: ${node[name][0] ? "yes" : "no"} \u2192 ${node[name][1] ? "yes" : "no"}`);
  const emitted = node.emitted && `emitted ${count(node.emitted[0])} \u2192 ${count(node.emitted[1])}`;
  const timers = node.timers?.length ? plural(node.timers.length, "timer") + " changed" : null;
  return [growth("sent", node.sent), growth("received", node.received), ...turned, emitted, timers].filter(Boolean).join(" \u00b7 ");
}

function states({ nodes }) {
  const names = Object.keys(nodes);
  const made = names.map((name) => {
    const changes = nodes[name].state, cut = changes.at(-1)?.$more, real = typeof cut === "number" ? changes.slice(0, -1) : changes;
    const left = real.length - MOST_ROWS + (cut ?? 0);
    const table = real.length ? make("table", { class: "changes" },
      make("thead", {}, make("tr", {}, ...["what", "old", "new"].map((word) => make("th", { scope: "col" }, word)))),
      make("tbody", {}, ...real.slice(0, MOST_ROWS).map(row))) : null;
    const summary = make("summary", {}, make("b", {}, name), make("span", { class: "brief" }, real.length ? plural(real.length + (cut ?? 0), "change") : "the same state"));
    const fold = make("details", { open: names.length <= 16 && real.length > 0 }, summary, table,
      real.length > MOST_ROWS || cut ? make("p", { class: "quiet" }, `\u2026 ${count(Math.max(left, cut ?? 0))} more`) : null, make("p", { class: "quiet" }, flags(nodes[name])));
    fold.dataset.node = name;
    return fold;
  });
  return made.length ? [make("h4", {}, "States"), ...made] : [];
}

function channels({ channels: list }) {
  if (!list.length) return [];
  const many = list.length > 24;
  return [make("h4", {}, "Channels"), ...list.map(({ src, dst, left, entered, changed }) => {
    const parts = [[left, "left it"], [entered, "entered it"], [changed, "changed"]].filter(([messages]) => messages?.length);
    const brief = parts.map(([messages, words]) => `${count(amount(messages))} ${words}`).join(", ");
    const fold = make("details", { open: !many }, make("summary", {}, make("b", {}, `${src} \u2192 ${dst}`), make("span", { class: "brief" }, brief)),
      ...parts.map(([messages, words]) => make("div", {}, make("p", { class: "quiet" }, `Messages that ${words}`), make("ul", { class: "messages" }, ...messages.map(message)))));
    fold.dataset.channel = `${src} ${dst}`;
    return fold;
  })];
}

const amount = (messages) => messages.length + (typeof messages.at(-1)?.$more === "number" ? messages.at(-1).$more - 1 : 0);

function message(one) {
  if (typeof one.$more === "number") return make("li", { class: "more" }, `\u2026 ${count(one.$more)} more`);
  const content = "message" in one ? pretty(one.message, 60) : `${pretty(one.old, 60)} \u2192 ${pretty(one.new, 60)}`;
  return make("li", {}, make("span", { class: "number" }, one.number), make("pre", {}, content));
}
