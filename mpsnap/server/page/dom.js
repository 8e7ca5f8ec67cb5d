// Elements, text and numbers. Only this file makes elements, and whatever it is given becomes text: names, states,
// messages and errors come from the program that is watched, and nobody vouches for them.

const SVG = "http://www.w3.org/2000/svg";
// What hides, turns round or breaks the text beside it: control characters but for tab and newline, characters without
// width, those that change the direction of writing, and halves of surrogate pairs.
const UNSEEN = new RegExp(
  "[\\u0000-\\u0008\\u000b-\\u001f\\u007f-\\u009f\\u00ad\\u061c\\u180e\\u200b\\u200e\\u200f\\u2028-\\u202e" +
    "\\u2060-\\u206f\\ufeff\\ufff9-\\ufffb]|[\\ud800-\\udbff](?![\\udc00-\\udfff])|(?<![\\ud800-\\udbff])[\\udc00-\\udfff]", "g");

export function visible(value) {
  return String(value).replace(UNSEEN, (character) => {
    const code = character.charCodeAt(0).toString(16);
    return code.length < 3 ? "\\x" + code.padStart(2, "0") : "\\u" + code.padStart(4, "0");
  });
}

// For an address; half a character, which no address can hold, becomes a question mark.
export const encoded = (value) => encodeURIComponent(String(value).replace(/[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]/g, "?"));

export const byId = (id) => document.getElementById(id);

function fill(element, attributes, children) {
  for (const name in attributes) {
    const value = attributes[name];
    if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value === true ? "" : visible(value));
  }
  for (const child of children) {
    if (child !== null && child !== undefined) element.append(child instanceof Node ? child : visible(child));
  }
  return element;
}

export const make = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);
export const draw = (tag, attributes, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);

export function button(words, action, attributes) {
  const made = make("button", { type: "button", ...attributes }, words);
  made.addEventListener("click", action);
  return made;
}

// The next four touch the document only where it changes.
export function put(element, value) {
  const text = visible(value);
  if (element.textContent !== text) element.textContent = text;
}

export function attr(element, name, value) {
  if (value === null || value === undefined || value === false) {
    if (element.hasAttribute(name)) element.removeAttribute(name);
    return;
  }
  const text = value === true ? "" : visible(value);
  if (element.getAttribute(name) !== text) element.setAttribute(name, text);
}

export function show(element, shown) {
  if (element.hidden === shown) element.hidden = !shown;
}

export function enable(control, able) {
  if (control.disabled === able) control.disabled = !able;
}

// One child of `parent` per item, found again by its key. Whoever has the focus keeps it: children are moved only if
// `order` is true, since moving one takes the focus from it.
export function keyed(parent, kept, items, { key, create, update, order = true }) {
  const gone = new Set(kept.keys());
  let before = null;
  for (const item of items) {
    const name = key(item);
    gone.delete(name);
    let row = kept.get(name);
    const fresh = !row;
    if (fresh) kept.set(name, row = create(item));
    update(row, item);
    const place = before ? before.nextSibling : parent.firstChild;
    if (fresh || (order && place !== row.element)) parent.insertBefore(row.element, place);
    before = row.element;
  }
  for (const name of gone) {
    kept.get(name).element.remove();
    kept.delete(name);
  }
}

// ---------------------------------------------------------------- numbers

export const NONE = "\u2013";
const known = (value) => typeof value === "number" && Number.isFinite(value);

export const count = (value) => known(value) ? Math.round(value).toLocaleString("en") : NONE;
export const plural = (value, noun) => `${count(value)} ${noun}${value === 1 ? "" : "s"}`;

function scaled(value, units, step) {
  let at = 0;
  while (Math.abs(value) >= 999.5 && at < units.length - 1) {
    value /= step;
    at++;
  }
  const digits = at === 0 || value >= 99.95 ? 0 : value >= 9.995 ? 1 : 2;
  return value.toFixed(digits) + units[at];
}

export function rate(value) {
  if (!known(value)) return NONE;
  if (value > 0 && value < 9.95) return value.toFixed(1);
  return scaled(value, ["", "k", "M", "G"], 1000);
}

// Of whole things, where there is no room.
export const few = (value) => known(value) ? (value < 1000 ? count(value) : rate(value)) : NONE;

export const bytes = (value) => known(value) ? scaled(value, [" B", " kB", " MB", " GB", " TB"], 1000) : NONE;
export const percent = (value) => known(value) ? `${value >= 9.95 ? Math.round(value) : value.toFixed(1)} %` : NONE;

// Of something that takes moments.
export function brief(seconds) {
  if (!known(seconds)) return NONE;
  if (seconds >= 60) return lasting(seconds);
  const [value, unit] = seconds >= 0.9995 ? [seconds, " s"] : [seconds * 1e3, " ms"];
  return value.toFixed(value >= 99.95 ? 0 : value >= 9.995 ? 1 : 2) + unit;
}

// Of something that takes its time.
export function lasting(seconds) {
  if (!known(seconds)) return NONE;
  const whole = Math.floor(seconds), minutes = Math.floor(whole / 60), hours = Math.floor(minutes / 60);
  if (whole < 60) return `${whole} s`;
  if (minutes < 60) return `${minutes} min ${whole % 60} s`;
  return hours < 48 ? `${hours} h ${minutes % 60} min` : `${Math.floor(hours / 24)} days ${hours % 24} h`;
}

export const clock = (wall) => known(wall) ? new Date(wall * 1000).toLocaleTimeString("en-GB") : NONE;

export const shortened = (text, most) => text.length > most ? text.slice(0, most - 1) + "\u2026" : text;

// ---------------------------------------------------------------- values

const MOST_TEXT = 40_000;

// A value as JSON, what fits a line on one line; and what a server has left out, in words.
export function pretty(value, width = 76) {
  const text = render(value, "", width);
  if (text.length <= MOST_TEXT) return text;
  return `${text.slice(0, MOST_TEXT)}\n\u2026 ${count(text.length - MOST_TEXT)} more characters`;
}

export const line = (value, most = 90) => shortened(render(value, "", Infinity, most * 3), most);

// What a server has left out of a list or a map it tells as the last entry: how much.
export const leftOutOf = (whole) => {
  const more = Array.isArray(whole) ? whole.at(-1)?.$more : whole?.$more;
  return known(more) ? more : 0;
};
export const listed = (list) => list && leftOutOf(list) ? list.slice(0, -1) : list ?? [];
export const entries = (map) => Object.entries(map ?? {}).filter(([key, value]) => key !== "$more" || !known(value));

const leftOut = (value) => isMap(value) && known(value.$more) && Object.keys(value).length === 1;
const isMap = (value) => value !== null && typeof value === "object" && !Array.isArray(value);

function render(value, indent, width, enough = Infinity) {
  if (value === null || typeof value !== "object") return JSON.stringify(value) ?? "null";
  if (isMap(value) && known(value.$size) && Object.keys(value).length === 1) return `(${bytes(value.$size)}, too large to show here)`;
  if (leftOut(value)) return `\u2026 ${count(value.$more)} more`;
  const list = Array.isArray(value), deeper = indent + "  ", parts = [];
  let length = 2;
  for (const key of list ? value.keys() : Object.keys(value)) {
    const more = !list && key === "$more" && known(value.$more);
    const part = more ? `\u2026 ${count(value.$more)} more` : (list ? "" : JSON.stringify(key) + ": ") + render(value[key], deeper, width, enough);
    parts.push(part);
    length += part.length + 2;
    if (length > enough) {
      parts.push("\u2026");
      break;
    }
  }
  const [open, close] = list ? "[]" : "{}";
  if (!parts.length) return open + close;
  if (indent.length + length <= width && !parts.some((part) => part.includes("\n"))) return open + parts.join(", ") + close;
  return `${open}\n${parts.map((part) => deeper + part).join(",\n")}\n${indent}${close}`;
}
