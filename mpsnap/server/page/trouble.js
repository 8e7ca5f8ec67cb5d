// What went wrong and what may be: deaths and recoveries, and what every node is doing when one asks why.

import { attr, brief, byId, clock, count, keyed, make, put, show } from "./dom.js";
import { ask, path, told } from "./link.js";

export class Trouble {
  constructor(list, empty) {
    Object.assign(this, { list, empty, rows: new Map() });
  }

  update({ deaths, recoveries }) {
    const events = [...deaths.map((death) => ({ kind: "death", ...death })), ...recoveries.map((one) => ({ kind: "recovery", ...one }))];
    events.sort((a, b) => b.time - a.time);
    keyed(this.list, this.rows, events, {
      key: ({ kind, time, node, incarnation }) => `${kind} ${time} ${node ?? incarnation}`, create: line, update() {},
    });
    show(this.empty, !events.length);
  }
}

function line(event) {
  const death = event.kind === "death";
  const words = death ? told(event)
    : `${event.number === null ? "from the beginning" : `to snapshot ${event.number}`}, in ${brief(event.seconds)}; incarnation ${event.incarnation}`;
  return { element: make("li", { class: event.kind }, make("span", { class: "time" }, clock(event.time)),
    make("b", {}, death ? `${event.node} died` : "recovered"), make("span", { class: "words" }, words)) };
}

// ---------------------------------------------------------------- why

export class Why {
  constructor() {
    this.asked = 0;
    byId("why-ask").addEventListener("click", () => this.ask());
  }

  async ask() {
    const mine = ++this.asked, target = byId("why-answer"), asker = byId("why-ask");
    put(byId("why-verdict"), "Looking\u2026");
    asker.disabled = true;
    let found, verdict;
    try {
      const document = await ask(path("why"));
      verdict = document.verdict;
      found = report(document);
    } catch (error) {
      verdict = told(error);
      found = [];
    }
    asker.disabled = false;
    if (mine !== this.asked) return;
    put(byId("why-verdict"), verdict);
    attr(byId("why-verdict"), "class", "said");
    target.replaceChildren(...found);
  }
}

function report({ nodes, waits, cycle }) {
  const made = [];
  if (cycle?.length) made.push(make("p", { class: "error" }, `A cycle: ${[...cycle, cycle[0]].join(" \u2192 ")}`));
  for (const node of nodes) {
    const summary = make("summary", {}, make("b", {}, node.node), make("span", { class: `status ${node.doing}` }, node.doing),
      make("span", { class: "brief" }, node.text));
    const details = [];
    if (node.channels?.length) details.push(make("p", { class: "quiet" }, `Channels: ${node.channels.map(([src, dst]) => `${src} \u2192 ${dst}`).join(", ")}`));
    const mine = (waits ?? []).filter((wait) => wait.node === node.node);
    if (mine.length) details.push(make("p", { class: "quiet" }, `Waits for ${mine.map((wait) => `${wait.for} (${wait.channel.join(" \u2192 ")} is ${wait.kind})`).join(", ")}`));
    if (node.stack?.length) details.push(make("pre", {}, node.stack.join("\n")));
    const element = details.length ? make("details", {}, summary, ...details) : make("p", { class: "line" }, ...summary.childNodes);
    element.dataset.node = node.node;
    made.push(element);
  }
  made.push(make("p", { class: "quiet" }, `${count(nodes.length)} nodes were looked at.`));
  return made;
}
