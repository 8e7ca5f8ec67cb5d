// Where nodes and channels go: pure geometry, fitted to the kind of the topology and to the room there is.

const numbered = (name) => /^N\d+$/.test(name);

// In the order in which the topology was written: N10 behind N9.
export function ordered(names) {
  return names.every(numbered) ? [...names].sort((a, b) => a.slice(1) - b.slice(1)) : [...names];
}

// Names of the nodes, channels as pairs of indices, and the topology's name; returns {points, radius, roomy, enough}: each
// point with the place of its label and on which side of it the text stands, and which height would do as well.
export function place(names, channels, topology, width, height) {
  const size = names.length, grid = /^grid:(\d+)x(\d+)$/.exec(topology);
  if (grid && grid[1] * grid[2] === size) return table(rowsOf(size, Number(grid[2])), width, height, true);
  const hub = hubOf(size, channels);
  if (hub !== null) {
    const others = names.map((_, i) => i).filter((i) => i !== hub);
    return circle(others, width, height, hub);
  }
  const layers = layersOf(size, channels);
  if (layers) {
    const narrow = width < 520, most = Math.max(2, Math.floor(width / (narrow ? 70 : 84)));
    if (layers.every((layer) => layer.length === 1)) return table(snake(layers.map(([i]) => i), Math.max(most, Math.ceil(size * 36 / height))), width, height);
    if (layers.length <= most) return columns(layers, width, height);
    if (layers.length <= height / 40) return columns(layers, width, height, true);
  }
  return circle(names.map((_, i) => i), width, height, null);
}

function rowsOf(size, across) {
  const rows = [];
  for (let i = 0; i < size; i += across) rows.push(Array.from({ length: Math.min(across, size - i) }, (_, k) => i + k));
  return rows;
}

// A long line goes to and fro, so that neighbours stay neighbours.
function snake(line, most) {
  const rows = Math.ceil(line.length / most), across = Math.ceil(line.length / rows), folded = [];
  for (let row = 0; row < rows; row++) {
    const part = line.slice(row * across, (row + 1) * across);
    if (row % 2) {
      part.reverse();
      while (part.length < across) part.unshift(null);
    }
    folded.push(part);
  }
  return folded;
}

// The one node through which all channels of a star go.
function hubOf(size, channels) {
  if (size < 4) return null;
  const degree = new Array(size).fill(0), pairs = new Set();
  for (const [src, dst] of channels) {
    const pair = Math.min(src, dst) * size + Math.max(src, dst);
    if (pairs.has(pair)) continue;
    pairs.add(pair);
    degree[src]++;
    degree[dst]++;
  }
  const hub = degree.indexOf(size - 1);
  return hub >= 0 && pairs.size === size - 1 ? hub : null;
}

// Of a graph without cycles: each node one layer behind the last of those that send to it.
function layersOf(size, channels) {
  const inbound = new Array(size).fill(0), outbound = Array.from({ length: size }, () => []), layer = new Array(size).fill(0);
  for (const [src, dst] of channels) {
    inbound[dst]++;
    outbound[src].push(dst);
  }
  const ready = [...inbound.keys()].filter((i) => inbound[i] === 0);
  let seen = 0;
  while (seen < ready.length) {
    const src = ready[seen++];
    for (const dst of outbound[src]) {
      layer[dst] = Math.max(layer[dst], layer[src] + 1);
      if (--inbound[dst] === 0) ready.push(dst);
    }
  }
  if (seen < size || !channels.length) return null;
  const layers = [];
  for (let i = 0; i < size; i++) (layers[layer[i]] ??= []).push(i);
  return layers;
}

// ---------------------------------------------------------------- shapes

const clamp = (value, low, high) => Math.min(high, Math.max(low, value));

// Between the channels that leave to the right and those that leave downward.
function beside(x, y, radius) {
  return { x, y, lx: x + radius * 0.75 + 5, ly: y + radius * 0.75 + 13, anchor: "start" };
}

function below(x, y, radius) {
  return { x, y, lx: x, ly: y + radius + 13, anchor: "middle" };
}

function table(rows, width, height, crossed = false) {
  const across = Math.max(...rows.map((row) => row.length)), dx = width / across, dy = height / rows.length;
  const radius = clamp(Math.min(dx, dy - 26) * 0.26, 5, 24), points = [];
  const lift = dy > 3 * radius + 30 ? 12 : 7;
  rows.forEach((row, r) => row.forEach((i, c) => {
    if (i !== null) points[i] = (crossed ? beside : below)(dx * (c + 0.5), dy * (r + 0.5) - lift, radius);
  }));
  return { points, radius, roomy: dx >= 62 && dy >= 2 * radius + 42, enough: rows.length * 150 };
}

function columns(layers, width, height, downward = false) {
  const deepest = Math.max(...layers.map((layer) => layer.length));
  const [along, over] = downward ? [height, width] : [width, height];
  const step = along / layers.length, gap = over / deepest;
  const [dx, dy] = downward ? [gap, step] : [step, gap];
  const radius = clamp(Math.min(dx, dy - 26) * 0.26, 5, 24), points = [];
  layers.forEach((layer, c) => layer.forEach((i, r) => {
    const a = step * (c + 0.5), b = over * (r + 0.5) / layer.length;
    points[i] = downward ? below(b, a - 10, radius) : below(a, b - 10, radius);
  }));
  return { points, radius, roomy: dx >= 62 && dy >= 2 * radius + 42, enough: downward ? Infinity : deepest * 150 };
}

// On an ellipse at equal distances, the first one at the top, clockwise.
function circle(which, width, height, hub) {
  // Around it stand the labels: of few nodes with a second line.
  const size = which.length, narrow = width < 520, roomy = size <= (narrow ? 8 : 14), largest = narrow ? 17 : 24;
  const side = roomy ? largest + 52 : 46, top = roomy ? largest + 38 : 34;
  const ry = Math.max(40, height / 2 - top), rx = clamp(width / 2 - side, 40, ry * 1.7);
  const cx = width / 2, cy = height / 2, steps = 1440, lengths = [0];
  const at = (k) => [cx + rx * Math.sin(2 * Math.PI * k / steps), cy - ry * Math.cos(2 * Math.PI * k / steps)];
  for (let k = 1; k <= steps; k++) {
    const [x0, y0] = at(k - 1), [x1, y1] = at(k);
    lengths.push(lengths[k - 1] + Math.hypot(x1 - x0, y1 - y0));
  }
  const around = lengths[steps], spacing = around / Math.max(1, size);
  const radius = clamp(Math.min(spacing * 0.3, Math.min(rx, ry) * 0.3), 4, largest), points = [];
  let k = 0;
  which.forEach((i, place) => {
    while (lengths[k] < around * place / size) k++;
    const [x, y] = at(k), angle = 2 * Math.PI * k / steps, sideways = Math.sin(angle), up = Math.cos(angle);
    const far = radius + 11;
    points[i] = {
      x, y, lx: x + sideways * far, ly: y - up * far + 4 - up * (Math.abs(sideways) < 0.5 ? 6 : 3),
      anchor: Math.abs(sideways) < 0.3 ? "middle" : sideways > 0 ? "start" : "end", up: up > 0.5,
    };
  });
  if (hub !== null) points[hub] = below(cx, cy, radius);
  return { points, radius, roomy, hub, enough: Infinity };
}

// ---------------------------------------------------------------- channels

const round = (x) => Math.round(x * 10) / 10;

// From the rim of one node to the rim of another: {d, head(size), at(share)}; bent if there is one the other way too.
export function edge(from, to, radius, bend) {
  const dx = to.x - from.x, dy = to.y - from.y, length = Math.hypot(dx, dy) || 1;
  const off = bend * clamp(length * 0.1, 7, 34);
  const mx = (from.x + to.x) / 2 - dy / length * off, my = (from.y + to.y) / 2 + dx / length * off;
  const toward = (a, bx, by, distance) => {
    const span = Math.hypot(bx - a.x, by - a.y) || 1;
    return [a.x + (bx - a.x) / span * distance, a.y + (by - a.y) / span * distance];
  };
  const [x0, y0] = toward(from, mx, my, radius + 1), [tipX, tipY] = toward(to, mx, my, radius + 2);
  const [x1, y1] = toward(to, mx, my, radius + 5);
  const angle = Math.atan2(tipY - my, tipX - mx);
  return {
    d: off ? `M${round(x0)} ${round(y0)}Q${round(mx)} ${round(my)} ${round(x1)} ${round(y1)}` : `M${round(x0)} ${round(y0)}L${round(x1)} ${round(y1)}`,
    head(size) {
      const back = size * 1.5, wing = size * 0.62, cos = Math.cos(angle), sin = Math.sin(angle);
      const point = (a, b) => `${round(tipX + a * cos - b * sin)} ${round(tipY + a * sin + b * cos)}`;
      return `M${point(0, 0)}L${point(-back, -wing)}L${point(-back, wing)}Z`;
    },
    at(share, beside = 0) {
      const a = (1 - share) ** 2, b = 2 * share * (1 - share), c = share ** 2;
      return [round(a * x0 + b * mx + c * x1 - dy / length * beside), round(a * y0 + b * my + c * y1 + dx / length * beside)];
    },
    length,
  };
}

// Which labels can stand without touching: those first that come first.
export function uncrowded(labels) {
  const taken = [];
  return labels.map(({ x, y, anchor, width, height }) => {
    const left = anchor === "middle" ? x - width / 2 : anchor === "end" ? x - width : x;
    const box = [left - 2, y - height + 2, left + width + 2, y + 2];
    if (taken.some((other) => box[0] < other[2] && other[0] < box[2] && box[1] < other[3] && other[1] < box[3])) return false;
    taken.push(box);
    return true;
  });
}
