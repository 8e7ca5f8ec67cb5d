// What is known of the run, put together from the documents as they come. It draws nothing.

import { encoded } from "./dom.js";

export const SPAN_S = 300;
const ORDER = { recording: 0, committing: 1, completed: 2, abandoned: 2 };
const KEPT = "mpsnap.history";

export const model = {
  status: null,
  // By id, oldest first.
  snapshots: new Map(),
  // [server's time, messages handled per second], the last five minutes of them.
  handled: [],
  // By id: [server's time, seconds it took, phase], as long; the status forgets earlier.
  taken: new Map(),
  link: "connecting",
  problem: null,
  // Why the run has ended, once it has: {error}.
  end: null,
  now: 0,
};

export const isOpen = (digest) => digest.phase === "recording" || digest.phase === "committing";
export const nameOf = (digest) => digest.number === null ? digest.id : `snapshot ${digest.number}`;
export const fromText = (digest) => digest.initiators.length > 3
  ? `${digest.initiators.length} nodes` : digest.initiators.join(", ") || "the nodes needed";
export const routeOf = (digest) => digest.number === null ? `#i=${encoded(digest.id)}` : `#s${digest.number}`;
export const newest = () => [...model.snapshots.values()].at(-1) ?? null;
export const alive = () => model.status !== null && model.end === null && model.link !== "refused";

const sameRun = (one, other) => one.name === other.name && one.pid === other.pid;

export function takeStatus(status) {
  const { run } = status;
  if (model.status && !sameRun(model.status.run, run)) {
    model.snapshots.clear();
    model.taken.clear();
    model.handled = [];
  }
  if (!model.status) remember(run);
  model.status = status;
  model.now = run.began + (run.uptime_s ?? 0);
  model.end = run.state === "ended" ? model.end ?? { error: run.error ?? null } : null;
  const before = model.snapshots;
  model.snapshots = new Map();
  for (const digest of status.snapshots) {
    // A server may leave out of a finished one what it has told before.
    const nodes = digest.nodes ?? before.get(digest.id)?.nodes ?? {};
    keep({ ...digest, nodes });
  }
  const last = model.handled.at(-1);
  if (!last || model.now > last[0]) model.handled.push([model.now, status.totals.handled_per_s]);
  while (model.handled.length && model.handled[0][0] < model.now - SPAN_S - 5) model.handled.shift();
  for (const [id, [time]] of model.taken) if (time < model.now - SPAN_S - 5) model.taken.delete(id);
}

// A digest that came by itself. The answer to an order can be older than what the stream has told meanwhile.
export function takeSnapshot(digest) {
  const old = model.snapshots.get(digest.id);
  if (old && ORDER[old.phase] > ORDER[digest.phase]) return old;
  keep({ ...digest, nodes: digest.nodes ?? old?.nodes ?? {} });
  return model.snapshots.get(digest.id);
}

function keep(digest) {
  model.snapshots.set(digest.id, digest);
  if (!isOpen(digest)) model.taken.set(digest.id, [digest.began + (digest.duration_s ?? 0), digest.duration_s, digest.phase]);
}

export function snapshotAt(hash) {
  const number = /^#s(\d+)$/.exec(hash), id = /^#i=(.+)$/.exec(hash);
  if (number) return { number: Number(number[1]), id: null };
  if (!id) return null;
  try {
    return { number: null, id: decodeURIComponent(id[1]) };
  } catch {
    return null;
  }
}

export function digestOf(where) {
  if (where.id !== null) return model.snapshots.get(where.id) ?? null;
  for (const digest of model.snapshots.values()) if (digest.number === where.number) return digest;
  return null;
}

// ---------------------------------------------------------------- the time line outlives a reload

export function forReload() {
  if (!model.status) return;
  const { name, pid } = model.status.run;
  try {
    sessionStorage.setItem(KEPT, JSON.stringify({ name, pid, handled: model.handled, taken: [...model.taken] }));
  } catch {
    // Then it begins anew.
  }
}

function remember(run) {
  try {
    const kept = JSON.parse(sessionStorage.getItem(KEPT));
    if (!kept || !sameRun(kept, run)) return;
    model.handled = kept.handled;
    model.taken = new Map(kept.taken);
  } catch {
    // Nothing that can be used.
  }
}
