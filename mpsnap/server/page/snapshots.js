// The list of snapshots, newest first, with what became of each.

import { attr, brief, bytes, count, keyed, make, put, show, visible } from "./dom.js";
import { told } from "./link.js";
import { fromText, isOpen, model, routeOf } from "./model.js";

const MOST = 40;

export class Snapshots {
  constructor(list, more, empty) {
    Object.assign(this, { list, more, empty, rows: new Map(), most: MOST });
    more.addEventListener("click", () => {
      this.most = Infinity;
      this.update();
    });
  }

  update() {
    const all = [...model.snapshots.values()].reverse();
    keyed(this.list, this.rows, all.slice(0, this.most), { key: ({ id }) => id, create, update });
    show(this.more, all.length > this.most);
    put(this.more, `Show ${count(all.length - this.most)} older`);
    show(this.empty, !all.length);
  }
}

export function verdict(digest) {
  if (digest.phase === "abandoned") return ["bad", "abandoned"];
  if (isOpen(digest)) return ["open", digest.phase];
  if (digest.verified === true) return ["good", "\u2713 verified"];
  return digest.verified === false ? ["bad", "not verified"] : ["open", digest.phase];
}

export function waitingText(digest) {
  const { nodes = [], channels = [] } = digest.waiting ?? {};
  if (!isOpen(digest) || (!nodes.length && !channels.length)) return "";
  const few = (list) => list.slice(0, 4).join(", ") + (list.length > 4 ? ` and ${count(list.length - 4)} more` : "");
  const told = channels.length ? few(channels.map(([src, dst]) => `${src} \u2192 ${dst}`)) : few(nodes);
  return `waits for ${told}`;
}

function create(digest) {
  const name = make("a", { class: "number", href: routeOf(digest) }), from = make("span", { class: "from" });
  const mark = make("span", { class: "pill" }), figures = make("span", { class: "figures" }), error = make("span", { class: "error" });
  return { element: make("li", {}, name, from, mark, figures, error), name, from, mark, figures, error };
}

function update(row, digest) {
  const [kind, words] = verdict(digest);
  put(row.name, digest.number === null ? digest.id : `#${digest.number}`);
  attr(row.name, "href", routeOf(digest));
  attr(row.name, "aria-label", visible(digest.number === null ? `Snapshot ${digest.id}` : `Snapshot ${digest.number}`));
  put(row.from, `from ${fromText(digest)}`);
  attr(row.from, "title", digest.initiators.join(", "));
  attr(row.mark, "class", `pill ${kind}`);
  put(row.mark, words);
  const figures = [digest.duration_s === null ? null : brief(digest.duration_s),
    digest.in_flight === null ? null : `${count(digest.in_flight)} in flight`,
    digest.bytes === null ? null : bytes(digest.bytes),
    digest.recovery_point ? "recovery" : null];
  put(row.figures, figures.filter(Boolean).join(" \u00b7 "));
  const error = told(digest.error) || waitingText(digest);
  put(row.error, error);
  show(row.error, Boolean(error));
}
