// One node, closely: its figures, its state now, a command to it, and the orders that are not for every day. It lies
// over the page and lets the page be used.

import { attr, brief, byId, bytes, count, enable, make, NONE, percent, pretty, put, rate, show } from "./dom.js";
import { ask, order, path, told } from "./link.js";
import { phaseText } from "./nodes.js";
import { alive, model } from "./model.js";

const part = (name) => byId(`panel-${name}`);

export class Panel {
  // `act(words, order)` carries out an order and says how it went; `confirm` asks first.
  constructor({ snapshot, act, confirm, chosen }) {
    Object.assign(this, { node: null, opener: null, chosen, asked: 0 });
    this.sheet = byId("panel");
    const orders = {
      snapshot: () => snapshot([this.node], part("snapshot")),
      state: () => this.state(),
      pause: () => act(this.paused ? `${this.node} goes on` : `${this.node} is paused`, () => order(this.paused ? "unpause" : "pause", { nodes: [this.node] })),
      finish: async () => {
        const node = this.node, words = "It has no idle calls and timers any more; it still handles messages and relays markers. This cannot be undone.";
        if (await confirm(`Let ${node} finish?`, words, "Let it finish")) await act(`${node} finishes`, () => order("stop", { node }));
      },
      kill: async () => {
        const node = this.node, words = model.status?.run.store
          ? "Its process is killed. The run goes back to its last recovery point and on from there."
          : "Its process is killed. This run keeps no snapshots to recover from, so it will end.";
        if (await confirm(`Kill ${node}?`, words, "Kill it")) await act(`${node} is killed`, () => order("kill", { node }));
      },
      send: () => this.command(),
      close: () => this.close(),
    };
    for (const name in orders) part(name).addEventListener("click", orders[name]);
    this.sheet.addEventListener("keydown", (event) => {
      if (event.key === "Escape") this.close();
      if (event.key === "Enter" && event.target === part("command")) this.command();
    });
  }

  open(node, opener) {
    if (this.node !== node) {
      this.forget();
      part("command").value = "";
    }
    this.node = node;
    this.opener = opener;
    put(part("title"), node);
    this.update();
    show(this.sheet, true);
    this.chosen(node);
    part("title").focus();
  }

  close() {
    show(this.sheet, false);
    this.node = null;
    this.chosen(null);
    if (this.opener?.isConnected) this.opener.focus();
    this.opener = null;
  }

  forget() {
    this.asked++;
    show(part("answer"), false);
    put(part("value"), "");
  }

  update() {
    const node = model.status?.nodes.find(({ name }) => name === this.node);
    if (!node) return;
    this.paused = node.paused;
    put(part("pause"), node.paused ? "Unpause" : "Pause");
    put(part("status"), node.status);
    attr(part("status"), "class", `status ${node.status}`);
    const rows = [["doing", phaseText(node) || node.status], ["in this turn for", brief(node.phase_s)], ["handled", count(node.handled)],
      ["sent", count(node.sent)], ["waiting for it", count(node.backlog)], ["handled/s", rate(node.handled_per_s)], ["CPU", percent(node.cpu_percent)],
      ["memory", bytes(node.memory_bytes)], ["process", node.pid], ["last snapshot", node.last_snapshot], ["summary", node.summary]];
    const facts = part("facts");
    while (facts.children.length < rows.length * 2) facts.append(make("dt", {}), make("dd", {}));
    rows.forEach(([name, value], i) => {
      const [term, told] = [facts.children[2 * i], facts.children[2 * i + 1]];
      put(term, name);
      put(told, value ?? NONE);
      for (const one of [term, told]) show(one, value !== null && value !== undefined && value !== NONE);
    });
    for (const name of ["snapshot", "state", "pause", "finish", "kill", "send"]) {
      enable(part(name), alive() && node.status !== "dead");
    }
  }

  // ---------------------------------------------------------------- answers

  async state() {
    await this.fetched("its state", () => ask(path("state", this.node)), ({ state, bytes: size }) => [`State now, ${bytes(size)}`, pretty(state, 48)]);
  }

  async command() {
    let command;
    try {
      command = JSON.parse(part("command").value);
    } catch (error) {
      this.answer("This is not JSON", error.message, true);
      return;
    }
    await this.fetched("its answer", () => order("command", { node: this.node, command }), ({ reply }) => ["Answer", pretty(reply, 48)]);
  }

  async fetched(what, question, words) {
    const mine = ++this.asked;
    this.answer(`Waiting for ${what}\u2026`, "");
    let found;
    try {
      found = words(await question());
    } catch (error) {
      found = [`There is no answer`, told(error), true];
    }
    if (mine === this.asked) this.answer(...found);
  }

  answer(title, text, bad = false) {
    put(part("about"), title);
    put(part("value"), text);
    show(part("value"), text !== "");
    attr(part("value"), "class", bad ? "error" : null);
    show(part("answer"), true);
  }
}
