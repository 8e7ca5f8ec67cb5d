// The page as a whole: it opens the link, keeps the picture up to date and carries out what is asked for.

import { attr, brief, byId, count, enable, lasting, put, rate, show } from "./dom.js";
import { Chart } from "./chart.js";
import { Cut } from "./cut.js";
import { Graph } from "./graph.js";
import { ask, follow, hasToken, order, path, takeToken, told } from "./link.js";
import { alive, digestOf, forReload, isOpen, model, nameOf, routeOf, snapshotAt, takeSnapshot, takeStatus } from "./model.js";
import { Nodes } from "./nodes.js";
import { Panel } from "./panel.js";
import { Snapshots } from "./snapshots.js";
import { Trouble, Why } from "./trouble.js";
import { Wave } from "./wave.js";

// The picture changes this often at most, or the page would take from the run what it shows of it.
const EVERY_MS = 1000;
// A page that nobody sees lets go of the stream after so long.
const UNSEEN_MS = 15_000;
const SAID_MS = 8000;

// ---------------------------------------------------------------- what is said and asked

let saying = 0;

function say(words, bad = false) {
  const notice = byId("notice");
  clearTimeout(saying);
  // What went well need not be waved away.
  if (words && !bad) saying = setTimeout(() => say(""), SAID_MS);
  attr(notice, "class", bad ? "bad" : null);
  put(byId("told"), words);
  show(notice, words !== "");
}

byId("notice-close").addEventListener("click", () => say(""));

async function act(words, ordered) {
  try {
    await ordered();
    say(words);
  } catch (error) {
    say(told(error), true);
  }
}

let answered = null;
const question = byId("ask");
question.addEventListener("close", () => answered?.(question.returnValue === "yes"));
byId("ask-yes").addEventListener("click", () => question.close("yes"));
byId("ask-no").addEventListener("click", () => question.close("no"));

function confirm(title, words, yes) {
  put(byId("ask-title"), title);
  put(byId("ask-words"), words);
  put(byId("ask-yes"), yes);
  question.returnValue = "no";
  question.showModal();
  byId("ask-no").focus();
  return new Promise((done) => { answered = done; });
}

// ---------------------------------------------------------------- parts

// Ids of the snapshots that were asked for here, until it is said what became of them.
const mine = new Set();

async function snapshot(nodes) {
  try {
    const { digest } = await order("snapshot", { nodes });
    mine.add(digest.id);
    takeSnapshot(digest);
    say(`${nodes.length ? `From ${nodes.join(", ")}` : "From the nodes needed"}: ${nameOf(digest)} is being taken`);
    settle();
    refresh();
  } catch (error) {
    say(told(error), true);
  }
}

const upper = (words) => words[0].toUpperCase() + words.slice(1);

// Say what became of the snapshots that were asked for here.
function settle() {
  for (const id of mine) {
    const digest = model.snapshots.get(id);
    if (!digest || isOpen(digest)) continue;
    mine.delete(id);
    const good = digest.phase === "completed";
    say(good ? `${upper(nameOf(digest))} from ${digest.initiators.join(", ")} completed in ${brief(digest.duration_s)}${digest.verified ? ", verified" : ""}`
      : `${upper(nameOf(digest))} was abandoned. ${told(digest.error)}`, !good);
    if (good && !byId("live").hidden) wave.replay(digest, true);
  }
}

const panel = new Panel({ snapshot, act, confirm, chosen: (name) => graph.select(name) });
const open = (name, opener) => panel.open(name, opener);
const graph = new Graph(byId("stage"), open);
const wave = new Wave(graph, async ({ number }) => {
  try {
    return (await ask(path("snapshots", number) + "?short=1")).digest;
  } catch (error) {
    say(told(error), true);
    return null;
  }
});
const nodes = new Nodes(byId("nodes"), byId("nodes-head"), { snapshot, open });
const snapshots = new Snapshots(byId("snapshots"), byId("snapshots-more"), byId("snapshots-none"));
const chart = new Chart(byId("timeline"));
const trouble = new Trouble(byId("events"), byId("events-none"));
const cut = new Cut({
  back: () => { location.hash = ""; },
  replay: async (digest) => {
    location.hash = "";
    route();
    byId("wave-play").focus();
    byId("stage").scrollIntoView({ block: "nearest" });
    await wave.replay(digest);
  },
});
new Why();

byId("take").addEventListener("click", () => snapshot([]));
byId("pause").addEventListener("click", () => {
  const paused = everyPaused();
  act(paused ? "All nodes go on" : "All nodes are paused", () => order(paused ? "unpause" : "pause", { nodes: [] }));
});
byId("stop").addEventListener("click", async () => {
  const words = "All nodes come to an orderly end, and this page ends with the run.";
  if (await confirm("Stop the run?", words, "Stop it")) await act("The run is asked to end", () => order("stop", { node: null }));
});
byId("again").addEventListener("click", () => stream?.again());

const everyPaused = () => Boolean(model.status?.nodes.length) && model.status.nodes.every(({ paused }) => paused);

// ---------------------------------------------------------------- the head

const LINKS = {
  connecting: "connecting", live: "live", reconnecting: "reconnecting", resting: "resting", ended: "run has ended", refused: "no access",
};

function head() {
  const { status, link } = model, ended = model.end !== null;
  const shown = ended ? "ended" : link;
  put(byId("link"), LINKS[shown]);
  attr(byId("link"), "class", `pill ${shown}`);
  show(byId("again"), link === "reconnecting" || link === "refused");
  banner(ended);
  for (const name of ["take", "pause", "stop"]) enable(byId(name), alive());
  if (!status) return;
  const { run, totals } = status;
  put(byId("title"), `${run.app} on ${run.topology}`);
  put(byId("run"), run.name);
  const title = `${run.app} on ${run.topology} \u00b7 mpsnap`;
  if (document.title !== title) document.title = title;
  const facts = [`up ${lasting(run.uptime_s)}`, `${run.start_method}`, `seed ${run.seed}`, run.incarnation ? `incarnation ${run.incarnation}` : null,
    run.store ? `keeps in ${run.store}` : "keeps no recovery points"];
  put(byId("facts"), facts.filter(Boolean).join(" \u00b7 "));
  const state = ended ? "ended" : run.state;
  put(byId("state"), state);
  attr(byId("state"), "class", `pill ${state}`);
  put(byId("pause"), everyPaused() ? "Unpause all" : "Pause all");
  put(byId("total-rate"), rate(totals.handled_per_s));
  put(byId("total-handled"), count(totals.handled));
  put(byId("total-sent"), count(totals.sent));
  put(byId("total-flight"), count(totals.in_flight));
  tellSnapshots();
  put(byId("total-deaths"), `${count(status.deaths.length)} / ${count(status.recoveries.length)}`);
}

function tellSnapshots() {
  const done = [...model.snapshots.values()].filter(({ phase }) => phase === "completed"), last = done.at(-1);
  put(byId("total-snapshots"), last ? brief(last.duration_s) : "none yet");
}

// What stands in the way of all else.
function banner(ended) {
  const { link, problem, end } = model, area = byId("banner");
  let words = "";
  if (ended) words = end.error ? `The run has ended: ${told(end.error)}` : "The run has ended in good order. What is shown is how it was.";
  else if (!hasToken() || link === "refused") {
    words = "This page needs the token of a run that is going on: open the link that `mpsnap serve` has printed" +
      (hasToken() && problem ? ` (${told(problem)})` : "") + ".";
  } else if (link === "reconnecting") words = `The server does not answer; trying again. ${model.status ? "What is shown is how it was." : ""}`;
  put(area, words);
  show(area, words !== "");
  attr(area, "class", ended && !end.error ? "calm" : null);
  attr(document.body, "data-link", ended ? "ended" : link);
}

// ---------------------------------------------------------------- keeping it up to date

let due = 0, painted = -Infinity, stream = null, unseen = 0;

// Of what comes by itself: at most once a second, and not while nobody looks.
function arrive() {
  if (due || document.hidden) return;
  due = setTimeout(refresh, Math.max(0, painted + EVERY_MS - performance.now()));
}

// At once, for what somebody here has done.
function refresh() {
  clearTimeout(due);
  due = 0;
  painted = performance.now();
  head();
  if (!model.status) return;
  panel.update();
  if (byId("live").hidden) return cut.update();
  graph.update(model.status);
  wave.update();
  nodes.update(model.status);
  snapshots.update();
  chart.update();
  trouble.update(model.status);
  attr(document.body, "data-ready", true);
}

function take(event, data) {
  if (event === "status") takeStatus(data);
  else if (event === "snapshot") takeSnapshot(data);
  // After "lost" a whole status follows by itself.
  settle();
  if (model.ready) arrive();
  else refresh();
  model.ready ||= model.status !== null;
}

function linkChanged(state, problem) {
  if (state === model.link && state === "live") return;
  model.link = state;
  model.problem = problem ?? null;
  if (state === "ended") model.end = { error: problem ?? null };
  head();
  if (state === "ended" || state === "refused") refresh();
}

function route() {
  const where = snapshotAt(location.hash), before = byId("live").hidden;
  show(byId("live"), where === null);
  show(byId("cut"), where !== null);
  if (where === null) {
    const left = cut.where;
    cut.close();
    refresh();
    if (before && left) byId("snapshots").querySelector(`a[href="${CSS.escape(routeOf(digestOf(left) ?? left))}"]`)?.focus();
    return;
  }
  wave.stop(true);
  if (cut.where?.number !== where.number || cut.where?.id !== where.id) cut.open(where);
}

function connect() {
  head();
  if (hasToken()) stream = follow(take, linkChanged);
}

window.addEventListener("hashchange", () => {
  // A new link was opened in this tab.
  if (takeToken()) {
    if (stream) stream.again();
    else connect();
  }
  route();
});
window.addEventListener("pagehide", forReload);
document.addEventListener("visibilitychange", () => {
  clearTimeout(unseen);
  if (document.hidden) {
    forReload();
    unseen = setTimeout(() => stream?.rest(), UNSEEN_MS);
  } else {
    stream?.back();
    arrive();
  }
});

takeToken();
connect();
route();
