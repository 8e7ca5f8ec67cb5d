// The last five minutes: messages handled per second above, how long each snapshot took below; deaths and recoveries
// through both.

import { attr, brief, count, draw, lasting, make, put, rate, show } from "./dom.js";
import { model, SPAN_S } from "./model.js";

const LEFT = 50, RIGHT = 10, TOP = 18, GAP = 30, BOTTOM = 20, HIGH = 96, LOW = 64;
const HEIGHT = TOP + HIGH + GAP + LOW + BOTTOM, FLOOR = TOP + HIGH, BASE = FLOOR + GAP + LOW;
const round = (x) => Math.round(x * 10) / 10;

// Of a round number the places behind the point say nothing.
const plain = (text) => text.replace(/(\.\d*?)0+(?=\D|$)/, "$1").replace(/\.(?=\D|$)/, "");

// A round number not below, of which the half is one too.
function nice(value) {
  const power = 10 ** Math.floor(Math.log10(value || 1));
  return power * [1, 2, 3, 4, 5, 6, 8, 10].find((factor) => factor * power >= value * 0.999);
}

export class Chart {
  constructor(stage) {
    this.stage = stage;
    this.svg = draw("svg", { role: "img", class: "chart" });
    const [grid, area, flow, marks, recoveries, dots, bad, hover] = ["grid", "area", "flow", "death", "recovery", "dot", "baddot", "hover"].map((kind) => draw("path", { class: kind }));
    Object.assign(this, { grid, area, flow, marks, recoveries, dots, bad, hover });
    this.texts = Object.fromEntries(["handled", "took", "most", "half", "slow", "zero"].map((name) => [name, draw("text", { class: name })]));
    this.times = [5, 4, 3, 2, 1, 0].map((minutes) => draw("text", { "text-anchor": minutes === 5 ? "start" : minutes ? "middle" : "end", y: BASE + 15 }, minutes ? `\u2212${minutes} min` : "now"));
    this.svg.append(grid, area, flow, marks, recoveries, dots, bad, hover, ...Object.values(this.texts), ...this.times);
    this.tip = make("div", { class: "tip", hidden: true, "aria-hidden": "true" });
    stage.append(this.svg, this.tip);
    put(this.texts.handled, "messages handled per second");
    put(this.texts.took, "how long snapshots took");
    for (const [name, x, y, anchor] of [["handled", LEFT, 11, "start"], ["took", LEFT, FLOOR + GAP - 8, "start"], ["most", LEFT - 6, TOP + 4, "end"],
      ["half", LEFT - 6, TOP + HIGH / 2 + 4, "end"], ["slow", LEFT - 6, FLOOR + GAP + 4, "end"], ["zero", LEFT - 6, BASE + 3, "end"]]) {
      attr(this.texts[name], "x", x);
      attr(this.texts[name], "y", y);
      attr(this.texts[name], "text-anchor", anchor);
    }
    put(this.texts.zero, "0");
    this.svg.addEventListener("pointermove", (event) => this.look(event));
    this.svg.addEventListener("pointerleave", () => this.look(null));
    new ResizeObserver(() => {
      const width = Math.round(stage.getBoundingClientRect().width);
      if (!width || width === this.width) return;
      this.width = width;
      attr(this.svg, "viewBox", `0 0 ${width} ${HEIGHT}`);
      attr(this.svg, "height", HEIGHT);
      this.times.forEach((text, i) => attr(text, "x", round(LEFT + (width - LEFT - RIGHT) * i / 5)));
      for (const i of [1, 2, 3, 4]) attr(this.times[i], "display", width < 380 && i % 2 ? "none" : null);
      this.update();
    }).observe(stage);
  }

  x(time) {
    return LEFT + (this.width - LEFT - RIGHT) * (1 - (model.now - time) / SPAN_S);
  }

  update() {
    if (!this.width || !model.status) return;
    const from = model.now - SPAN_S, samples = model.handled.filter(([time]) => time >= from);
    const taken = [...model.taken.values()].filter(([time]) => time >= from);
    const most = nice(Math.max(1, ...samples.map(([, value]) => value ?? 0)));
    const slowest = nice(Math.max(1e-3, ...taken.map(([, seconds]) => seconds ?? 0)));
    this.frame(most, slowest);
    this.line(samples, most);
    const y = (seconds) => BASE - LOW * seconds / slowest;
    const dot = ([time, seconds]) => `M${round(this.x(time) - 2.2)} ${round(y(seconds))}a2.2 2.2 0 1 0 4.4 0a2.2 2.2 0 1 0 -4.4 0Z`;
    const cross = ([time]) => `M${round(this.x(time) - 3)} ${FLOOR + GAP - 1}l6 6m-6 0l6 -6`;
    attr(this.dots, "d", taken.filter(([, seconds, phase]) => phase === "completed" && seconds !== null).map(dot).join(""));
    attr(this.bad, "d", taken.filter(([, , phase]) => phase === "abandoned").map(cross).join(""));
    const rule = ({ time }) => `M${round(this.x(time))} ${TOP}V${FLOOR}m0 ${GAP}V${BASE}`;
    const recent = ({ time }) => time >= from;
    attr(this.marks, "d", model.status.deaths.filter(recent).map((death) => rule(death) + `M${round(this.x(death.time) - 4)} ${TOP - 5}l8 8m-8 0l8 -8`).join(""));
    attr(this.recoveries, "d", model.status.recoveries.filter(recent).map((one) => rule(one) + `M${round(this.x(one.time) - 4)} ${FLOOR + 12}h8m-4 -4v8`).join(""));
    const last = taken.at(-1);
    attr(this.svg, "aria-label", `The last five minutes: ${rate(model.status.totals.handled_per_s)} messages handled per second now, at most ${rate(Math.max(0, ...samples.map(([, value]) => value ?? 0)))}; ` +
      `${count(taken.length)} snapshots${last ? `, the last one took ${brief(last[1])}` : ""}; ${count(model.status.deaths.filter(recent).length)} deaths`);
  }

  frame(most, slowest) {
    const right = this.width - RIGHT;
    attr(this.grid, "d", [TOP, TOP + HIGH / 2, FLOOR, FLOOR + GAP, BASE].map((y) => `M${LEFT} ${y}H${right}`).join(""));
    put(this.texts.most, plain(rate(most)));
    put(this.texts.half, plain(rate(most / 2)));
    put(this.texts.slow, plain(brief(slowest)));
  }

  // Where nothing is known there is no line.
  line(samples, most) {
    let path = "", area = "", start = null, before = null;
    const close = () => {
      if (start !== null) area += `L${round(this.x(before))} ${FLOOR}L${round(start)} ${FLOOR}Z`;
      start = null;
    };
    for (const [time, value] of samples) {
      if (value === null || (before !== null && time - before > 6)) close();
      if (value === null) {
        before = time;
        continue;
      }
      const point = `${round(this.x(time))} ${round(FLOOR - HIGH * Math.min(1, value / most))}`;
      path += (start === null ? "M" : "L") + point;
      area += (start === null ? "M" : "L") + point;
      start ??= this.x(time);
      before = time;
    }
    close();
    attr(this.flow, "d", path);
    attr(this.area, "d", area);
  }

  look(event) {
    const box = this.svg.getBoundingClientRect(), x = event ? event.clientX - box.left : -1;
    const inside = event && this.width && model.status && x >= LEFT && x <= this.width - RIGHT;
    show(this.tip, Boolean(inside));
    attr(this.hover, "d", inside ? `M${round(x)} ${TOP}V${BASE}` : "");
    if (!inside) return;
    const time = model.now - SPAN_S * (1 - (x - LEFT) / (this.width - LEFT - RIGHT));
    const near = (list, at) => list.reduce((best, one) => Math.abs(at(one) - time) < Math.abs((best ? at(best) : Infinity) - time) ? one : best, null);
    const sample = near(model.handled, (one) => one[0]), snapshot = near([...model.taken.values()], (one) => one[0]);
    const words = [`${lasting(model.now - time)} ago`];
    if (sample && Math.abs(sample[0] - time) < 4) words.push(`${rate(sample[1])} handled/s`);
    if (snapshot && Math.abs(snapshot[0] - time) < 4) words.push(snapshot[2] === "abandoned" ? "a snapshot was abandoned" : `a snapshot took ${brief(snapshot[1])}`);
    for (const death of model.status.deaths) if (Math.abs(death.time - time) < 4) words.push(`${death.node} died`);
    for (const recovery of model.status.recoveries) if (Math.abs(recovery.time - time) < 4) words.push("recovered");
    this.tip.replaceChildren(...words.map((word) => make("span", {}, word)));
    this.tip.style.left = x < this.width / 2 ? `${Math.round(x + 12)}px` : "auto";
    this.tip.style.right = x < this.width / 2 ? "auto" : `${Math.round(this.width - x + 12)}px`;
    this.tip.style.top = `${TOP}px`;
  }
}
