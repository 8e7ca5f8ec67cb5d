// The table of nodes; on a narrow screen the style sheet makes cards of its rows.

import { attr, brief, button, byId, bytes, count, enable, keyed, make, NONE, percent, put, rate, shortened, show, visible } from "./dom.js";
import { alive } from "./model.js";
import { ordered } from "./layout.js";

const BUSY = 1;
const COLUMNS = [
  ["name", "Node", null], ["status", "Status", ({ status }) => status],
  ["handled_per_s", "Handled/s", (node) => node.handled_per_s ?? -1], ["backlog", "Backlog", ({ backlog }) => backlog],
  ["cpu_percent", "CPU", (node) => node.cpu_percent ?? -1], ["memory_bytes", "Memory", (node) => node.memory_bytes ?? -1],
  ["last_snapshot", "Snapshot", (node) => node.last_snapshot ?? -1],
];

export class Nodes {
  // `snapshot` and `open` are called with the name of a node and the button that was pressed.
  constructor(body, head, { snapshot, open }) {
    Object.assign(this, { body, rows: new Map(), by: "name", down: false, snapshot, open, names: [] });
    this.heads = new Map(COLUMNS.map(([name, words]) => {
      const sorter = button(words, () => this.sort(name), { class: "sorter" });
      const cell = make("th", { scope: "col", class: name === "name" || name === "status" ? null : "number" }, sorter);
      head.append(cell);
      return [name, cell];
    }));
    head.append(make("th", { scope: "col" }, make("span", { class: "unseen" }, "Orders")));
    this.mark();
  }

  sort(name) {
    this.down = this.by === name ? !this.down : name !== "name" && name !== "status";
    this.by = name;
    this.mark();
    if (this.status) this.update(this.status, true);
  }

  mark() {
    for (const [name, cell] of this.heads) attr(cell, "aria-sort", name === this.by ? (this.down ? "descending" : "ascending") : null);
  }

  update(status, asked = false) {
    this.status = status;
    put(byId("nodes-count"), count(status.nodes.length));
    const place = new Map(ordered(status.nodes.map(({ name }) => name)).map((name, i) => [name, i]));
    const value = COLUMNS.find(([name]) => name === this.by)[2] ?? ((node) => place.get(node.name));
    const compare = (a, b) => (value(a) < value(b) ? -1 : value(a) > value(b) ? 1 : 0) * (this.down ? -1 : 1) || place.get(a.name) - place.get(b.name);
    // Rows do not move away under a hand.
    const order = asked || this.by === "name" || !(this.body.contains(document.activeElement) || this.body.matches(":hover"));
    keyed(this.body, this.rows, [...status.nodes].sort(compare), { key: ({ name }) => name, create: (node) => this.create(node), update, order });
  }

  create({ name }) {
    const cells = {};
    const figure = (name, label) => cells[name] = make("td", { class: `number ${name}`, "data-label": label });
    const summary = make("span", { class: "summary" }), state = make("span", { class: "status" }), phase = make("span", { class: "phase" });
    const title = make("th", { scope: "row" }, make("span", { class: "nodename", title: name }, name), summary);
    const take = button("Snapshot from here", () => this.snapshot([name], take), { "aria-label": `Snapshot from here: ${name}`, class: "take" });
    const more = button("More", () => this.open(name, more), { "aria-label": `More about ${name}`, "aria-haspopup": "dialog" });
    const element = make("tr", {}, title, make("td", { class: "doing" }, state, phase), figure("rate", "handled/s"), figure("backlog", "backlog"),
      figure("cpu", "CPU"), figure("memory", "memory"), figure("last", "snapshot"), make("td", { class: "orders" }, take, more));
    element.dataset.node = name;
    return { element, summary, state, phase, take, ...cells };
  }
}

export const phaseText = ({ status, phase, phase_s: since }) => {
  // That a node waits is for its status to say: between two looks at it both may have changed.
  const words = phase && phase !== status && phase !== "waiting" ? phase : "";
  // A turn is noteworthy once it takes longer than turns do.
  return since !== null && since >= BUSY && status !== "waiting" ? `${words || status} for ${brief(since)}` : words;
};

function update(row, node) {
  attr(row.element, "class", node.status);
  put(row.summary, node.summary ? shortened(visible(node.summary), 160) : "");
  show(row.summary, Boolean(node.summary));
  put(row.state, node.status);
  attr(row.state, "class", `status ${node.status}`);
  put(row.phase, phaseText(node));
  put(row.rate, rate(node.handled_per_s));
  put(row.backlog, count(node.backlog));
  put(row.cpu, percent(node.cpu_percent));
  put(row.memory, bytes(node.memory_bytes));
  put(row.last, node.last_snapshot === null ? NONE : `#${node.last_snapshot}`);
  enable(row.take, alive() && node.status !== "dead");
}
