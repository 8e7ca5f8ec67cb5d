// The way to the server: the token, questions and orders, and the stream of events with its reconnecting. It knows
// nothing of what the documents say.

import { encoded } from "./dom.js";

const KEY = "mpsnap.token";
const FIRST_PAUSE = 0.5, LONGEST_PAUSE = 15;
// The server writes at least a comment more often than this.
const SILENCE_MS = 30_000;

let token = null;

// The token comes once, in the fragment, which no server sees; from then on it lives in this tab alone. Returns whether
// one came.
export function takeToken() {
  const found = /^#t=([^&]+)/.exec(location.hash);
  try {
    if (found) {
      token = decodeURIComponent(found[1]);
      sessionStorage.setItem(KEY, token);
    } else token ??= sessionStorage.getItem(KEY);
  } catch {
    // A browser that keeps nothing: then the token lasts until the page is left.
  }
  if (found) history.replaceState(null, "", location.pathname + location.search);
  return Boolean(found);
}

export const hasToken = () => token !== null;

export class Problem extends Error {
  constructor({ what, where, try: hint }, status) {
    super(what);
    Object.assign(this, { what, where, hint, status });
  }

  get refused() {
    return this.status === 401 || this.status === 403;
  }
}

export function told(error) {
  if (!error) return "";
  const hint = error.hint ?? error.try;
  return (error.where ? `${error.where}: ` : "") + (error.what ?? String(error)) + (hint ? `; try: ${hint}` : "");
}

const options = (more) => ({ cache: "no-store", credentials: "omit", redirect: "error", referrerPolicy: "no-referrer", ...more });

async function answer(response) {
  let document = null;
  try {
    document = await response.json();
  } catch {
    // Not of this server's making; its status must do.
  }
  if (response.ok && document !== null) return document;
  throw new Problem(document?.error ?? { what: `the server answers ${response.status}` }, response.status);
}

async function request(path, more) {
  let response;
  try {
    response = await fetch(path, options(more));
  } catch {
    throw new Problem({ what: "the server does not answer" }, 0);
  }
  return answer(response);
}

const bearer = () => ({ Authorization: `Bearer ${token ?? ""}` });

export const path = (...parts) => "/api/" + parts.map(encoded).join("/");
export const ask = (where) => request(where, { headers: bearer() });
export const order = (what, body) => request(path(what), {
  method: "POST", headers: { ...bearer(), "Content-Type": "application/json" }, body: JSON.stringify(body),
});

// ---------------------------------------------------------------- events

// Yields [event, data] of a text/event-stream; comments keep it awake and are not told.
async function* messages(body, heard) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "", event = "", data = [];
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    heard();
    text += value;
    const lines = text.split(/\r\n|\n|\r(?!$)/);
    text = lines.pop();
    for (const each of lines) {
      if (each === "") {
        if (data.length) yield [event || "message", data.join("\n")];
        [event, data] = ["", []];
        continue;
      }
      const colon = each.indexOf(":"), field = colon < 0 ? each : each.slice(0, colon);
      const content = colon < 0 ? "" : each.slice(colon + 1).replace(/^ /, "");
      if (field === "event") event = content;
      else if (field === "data") data.push(content);
      else if (field === "retry" && /^\d+$/.test(content)) yield ["retry", content];
    }
  }
}

// Follow the events until the run ends or the token is refused. `changed` is told how it goes: connecting, live,
// reconnecting, resting, ended, refused.
export function follow(take, changed) {
  let abort = null, wake = null, resting = false, over = false, pause = FIRST_PAUSE, first = FIRST_PAUSE;

  async function listen() {
    abort = new AbortController();
    let timer = 0;
    const heard = () => {
      clearTimeout(timer);
      timer = setTimeout(() => abort.abort(), SILENCE_MS);
    };
    heard();
    try {
      const response = await fetch("/api/events", options({ headers: { ...bearer(), Accept: "text/event-stream" }, signal: abort.signal }));
      if (!response.ok) await answer(response);
      for await (const [event, data] of messages(response.body, heard)) {
        if (event === "retry") first = Math.min(LONGEST_PAUSE, Math.max(FIRST_PAUSE, Number(data) / 1000));
        else if (event === "end") {
          over = true;
          changed("ended", JSON.parse(data).error);
          return;
        } else {
          pause = first;
          changed("live");
          take(event, JSON.parse(data));
        }
      }
    } finally {
      clearTimeout(timer);
      abort.abort();
    }
  }

  async function run() {
    changed("connecting");
    while (!over) {
      let problem = null;
      try {
        if (!resting) await listen();
      } catch (error) {
        problem = error;
        if (error instanceof Problem && error.refused) {
          changed("refused", error);
          over = true;
        }
      }
      if (over) return;
      changed(resting ? "resting" : "reconnecting", problem);
      // Not all pages of a server that comes back at the same moment.
      const wait = resting ? null : pause * (0.7 + 0.6 * Math.random());
      pause = Math.min(LONGEST_PAUSE, pause * 2);
      await new Promise((done) => {
        wake = done;
        if (wait !== null) setTimeout(done, wait * 1000);
      });
    }
  }

  run();
  return {
    // Let go of the stream while nobody looks.
    rest() {
      resting = true;
      abort?.abort();
    },
    back() {
      if (!resting) return;
      resting = false;
      pause = first;
      wake?.();
    },
    // Not after the pause, but now; also after the end, for a server that has another run or took another token.
    again() {
      if (over) {
        over = false;
        pause = first;
        resting = false;
        run();
        return;
      }
      resting = false;
      pause = first;
      wake?.();
    },
  };
}
