// The browser half of PlotlyView: runs once for each widget, as the body of function(element, trigger, props, watch).
const root = element.querySelector('.sf-plot');
const stage = root.querySelector('.sf-plot-stage');
const empty = root.querySelector('.sf-plot-empty');
const spoken = root.querySelector('.sf-visually-hidden');
// Texts are never colours: a task called "var(--x)" stays a text.
const TEXT_KEYS = new Set(['text', 'customdata', 'ticktext', 'name', 'meta', 'hovertemplate', 'hovertext', 'bdata']);
const CONFIG = {displayModeBar: false, displaylogo: false, responsive: false, doubleClick: 'reset', showTips: false};
let dark = isDark();
let listening = false;
let busy = false;
let again = false;
let waiting = false;     // a figure came while the tab was hidden
let cursor = null;
let outline = null;      // the cell clicked here, framed at once; the server need not send the figure again
let ringed = null;       // the point clicked here, as its customdata
let clickedIn = null;    // the value that outline and ringed belong to

function isDark() { return document.body.classList.contains('dark'); }

function figure() {
  const value = props.value;
  if (!value) return null;
  return typeof value === 'string' ? JSON.parse(value) : JSON.parse(JSON.stringify(value));
}

// Replace every "var(--name)" by what it stands for here and now: plotly cannot read CSS variables.
function resolve(node, styles) {
  if (typeof node === 'string') {
    return node.startsWith('var(--') ? styles.getPropertyValue(node.slice(4, -1)).trim() || '#888888' : node;
  }
  if (Array.isArray(node)) {
    // Lists of numbers are long and hold no colours; a colour scale's [0.25, "var(...)"] ends with one.
    return typeof node[node.length - 1] === 'number' ? node : node.map((item) => resolve(item, styles));
  }
  if (node && typeof node === 'object') {
    const out = {};
    for (const [key, item] of Object.entries(node)) out[key] = TEXT_KEYS.has(key) ? item : resolve(item, styles);
    return out;
  }
  return node;
}

function showEmpty() {
  stage.hidden = true;
  root.querySelector('.sf-plot-tools').hidden = true;
  empty.hidden = false;
  empty.style.minHeight = (props.min_plot_height || 240) + 'px';
  empty.querySelector('.sf-empty-title').textContent = props.empty_title || 'Nothing to show yet';
  empty.querySelector('.sf-empty-body').textContent = props.empty_body || '';
}

async function draw() {
  root.setAttribute('aria-label', props.label || 'Plot');
  stage.setAttribute('aria-label', (props.label || 'Plot') + '. Arrow keys walk over the points, Enter chooses one.');
  if (busy) { again = true; return; }
  let shown = null;
  try { shown = figure(); } catch (error) { console.error('PlotlyView: the figure is not valid JSON', error); }
  if (!shown) { showEmpty(); return; }
  busy = true;
  try {
    empty.hidden = true;
    stage.hidden = false;
    root.querySelector('.sf-plot-tools').hidden = false;
    const layout = shown.layout || {};
    stage.style.height = (layout.height || props.min_plot_height || 320) + 'px';
    // In a hidden tab the width is 0; the ResizeObserver calls again when there is room.
    waiting = !stage.offsetWidth;
    if (waiting) return;
    const styles = getComputedStyle(root);
    layout.width = undefined;
    if (clickedIn !== props.value) outline = ringed = null;
    if (outline) layout.shapes = framed(outline);
    await Plotly.react(stage, resolve(shown.data || [], styles), resolve(layout, styles), CONFIG);
    if (ringed) await moveRing();
    drawnWidth = stage.offsetWidth;
    stage.dataset.draws = String(Number(stage.dataset.draws || 0) + 1);
    listen();
  } catch (error) {
    console.error('PlotlyView: drawing failed', error);
  } finally {
    busy = false;
    if (again) { again = false; draw(); }
  }
}

// Dark on light, so that the frame is seen on any colour.
function framed(shape) { return [{...shape, line: {color: 'var(--plot-surface)', width: 6}}, shape]; }

function frameCell(point) {
  const trace = (stage._fullData || [])[point.curveNumber ?? 0];
  const meta = (stage.layout || {}).meta || {};
  if (!trace || trace.type !== 'heatmap' || !('selected' in meta)) return;
  const across = (trace.dx || 1) / 2;
  const down = (trace.dy || 1) / 2;
  outline = {type: 'rect', x0: point.x - across, x1: point.x + across, y0: point.y - down, y1: point.y + down,
    line: {color: 'var(--plot-ink)', width: 2.5}};
  clickedIn = props.value;
  Plotly.relayout(stage, {shapes: resolve(framed(outline), getComputedStyle(root))});
}

function samePoint(one, other) { return Array.from(one || []).join() === Array.from(other || []).join(); }

// A figure with rings (markers that wait for a point) has one in each panel; it goes where the panel shows that point.
function moveRing() {
  const full = stage._fullData || [];
  const rings = full.filter((trace) => trace.meta && trace.meta.ring);
  const places = rings.map((ring) => {
    for (const trace of full) {
      if (trace.xaxis !== ring.xaxis || !walkable(trace) || !trace.customdata) continue;
      const i = Array.from(trace.customdata).findIndex((data) => samePoint(data, ringed));
      if (i >= 0) return [trace.x[i], trace.y[i]];
    }
    return [null, null];
  });
  if (!rings.length) return undefined;
  const moved = {x: places.map(([x]) => [x]), y: places.map(([, y]) => [y])};
  return Plotly.restyle(stage, moved, rings.map((ring) => ring.index));
}

function ringPoint(point) {
  if (!isList(point.customdata)) return;
  ringed = Array.from(point.customdata);
  clickedIn = props.value;
  moveRing();
}

// A reduced heatmap's cell stands for a block of features; its customdata says which of them the cell shows.
function features(point) {
  const trace = (stage._fullData || [])[point.curveNumber ?? 0];
  const block = trace && trace.meta && trace.meta.block;
  if (!block) return [point.x, point.y, point.customdata];
  return [point.x + point.customdata % block[1], point.y + Math.floor(point.customdata / block[1]), null];
}

function report(point) {
  const scalar = (item) => (typeof item === 'number' || typeof item === 'string' ? item : null);
  const [x, y, data] = features(point);
  trigger('select', {
    x: scalar(x),
    y: scalar(y),
    customdata: isList(data) ? Array.from(data).map(scalar).slice(0, 16) : scalar(data),
    curve: point.curveNumber ?? 0,
  });
  // After the request has left: framing costs a redraw of its own.
  requestAnimationFrame(() => { frameCell(point); ringPoint(point); });
}

function listen() {
  if (listening) return;
  listening = true;
  stage.on('plotly_click', (event) => { if (event.points && event.points.length) report(event.points[0]); });
}

function isList(value) { return Array.isArray(value) || ArrayBuffer.isView(value); }
function isNumber(value) { return typeof value === 'number' && Number.isFinite(value); }
function short(value) {
  if (typeof value === 'number') return Number.isNaN(value) ? 'no value' : String(Number(value.toPrecision(4)));
  return String(value ?? 'no value');
}
function axisOf(trace, letter) {
  return stage._fullLayout[letter + 'axis' + String(trace[letter + 'axis'] || letter).slice(1)];
}
// A legend may say more than the name.
function seriesOf(trace) { return (trace.meta && trace.meta.series) || trace.name || ''; }
// As the figure gives it: plotly fills in "Click to enter X axis title".
function titleOf(axis) { return (((stage.layout[axis._name] || {}).title || {}).text) || ''; }
function words(text) { return readable(text).trim(); }

// Keyboard: arrows walk over a heatmap's cells, or along a line's points or bars and to the next line or series; Enter
// or Space selects; what the cursor stands on is read out.
const MOVES = {ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0]};
function index0(value, start, step) { return Math.round((value - (start ?? 0)) / (step || 1)); }
function at(list, index, start, step) {
  return list && list.length > index ? list[index] : (start ?? 0) + index * (step ?? 1);
}
function clamp(value, count) { return Math.min(Math.max(value, 0), count - 1); }
function selectedAtFirst() { return ((stage.layout || {}).meta || {}).selected; }

function walkCells(trace, move) {
  // Starts at the framed cell, if there is one.
  const chosen = selectedAtFirst();
  const start = outline ? [(outline.y0 + outline.y1) / 2, (outline.x0 + outline.x1) / 2] : chosen;
  if (!cursor) cursor = start ? [index0(start[0], trace.y0, trace.dy), index0(start[1], trace.x0, trace.dx)] : [0, 0];
  else if (move) cursor = [cursor[0] + move[0], cursor[1] + move[1]];
  cursor = [clamp(cursor[0], trace.z.length), clamp(cursor[1], trace.z[0].length)];
  const [r, c] = cursor;
  const [x, y] = [at(trace.x, c, trace.x0, trace.dx), at(trace.y, r, trace.y0, trace.dy)];
  const inCell = (grid) => grid && grid[r] && grid[r][c];
  const text = inCell(trace.text);
  const point = {x, y, customdata: inCell(trace.customdata), curveNumber: trace.index};
  const [across, down] = features(point);
  const axis = (letter, other) => words(titleOf(axisOf(trace, letter)) || other);
  const place = text ? words(text) : `${axis('y', 'row')} ${down}, ${axis('x', 'column')} ${across}:`;
  const named = String(trace.hovertemplate).startsWith('%{text}<extra>');
  return {
    point,
    exists: isNumber(trace.z[r][c]),
    spoken: named ? place : `${place} ${short(trace.z[r][c])}`,
    hover: {xval: x, yval: y},
    subplot: 'xy',
  };
}

// Some traces only help the eye: marks, bands, rings.
function isAid(trace) { return Boolean(trace.meta && trace.meta.aid); }
function walkable(trace) {
  return trace.visible === true && (trace.type === 'scatter' || trace.type === 'bar') && !isAid(trace);
}
function subplotOf(trace) { return (trace.xaxis || 'x') + (trace.yaxis || 'y'); }
function pointsOf(trace) {
  const places = [];
  for (let i = 0; i < trace.y.length; i++) if (isNumber(trace.x[i]) && isNumber(trace.y[i])) places.push(i);
  return places;
}

function walkPoints(lines, move) {
  const sideways = lines[0].orientation === 'h';
  let [line, place] = cursor || [0, 0];
  line = clamp(line, lines.length);
  if (!cursor) {
    // Starts at the ringed point, if there is one.
    const chosen = ringed || selectedAtFirst();
    lines.some((trace, l) => pointsOf(trace).some((i, p) => {
      const found = chosen && trace.customdata && samePoint(trace.customdata[i], chosen);
      if (found) [line, place] = [l, p];
      return found;
    }));
  } else if (move) {
    // Along a series, or to the same x of the next one. Bars that lie run downwards.
    const [across, along] = sideways ? [move[1], move[0]] : move;
    const before = pointsOf(lines[line])[place];
    place += along;
    if (across) {
      const x = lines[line].x[before];
      line = clamp(line + across, lines.length);
      const points = pointsOf(lines[line]);
      const apart = (p) => Math.abs(lines[line].x[points[p]] - x);
      place = sideways ? place : points.reduce((best, _, p) => (apart(p) < apart(best) ? p : best), 0);
    }
  }
  const trace = lines[line];
  const points = pointsOf(trace);
  place = clamp(place, points.length);
  cursor = [line, place];
  const i = points[place];
  const customdata = trace.customdata && trace.customdata[i];
  return {
    point: {x: trace.x[i], y: trace.y[i], customdata, curveNumber: trace.index},
    exists: true,
    spoken: tell(trace, i),
    hover: [{curveNumber: trace.index, pointNumber: i}],
    subplot: subplotOf(trace),
  };
}

// The text of a point apart from its numbers: its own, or that of the stretch that it lies in.
function labelOf(trace, i) {
  if (isList(trace.text)) return trace.text[i] ?? '';
  const spans = (trace.meta && trace.meta.spans) || [];
  return spans.filter(([first, last]) => first <= trace.x[i] && trace.x[i] <= last).map((span) => span[2]).join(', ');
}

function tell(trace, i) {
  if (isList(trace.hovertext)) return words(trace.hovertext[i]);
  const text = words(labelOf(trace, i));
  // The text of a bar is the whole name of its group; the tick may show a part of it.
  const named = trace.type !== 'bar' || !text ? '' : trace.orientation === 'h' ? 'y' : 'x';
  const said = ['x', 'y'].map((letter) => {
    const axis = axisOf(trace, letter);
    const value = trace[letter][i];
    const shown = String(axis.tickformat).endsWith('%') ? `${short(100 * value)} %` : short(tick(axis, value));
    return words(`${titleOf(axis)} ${letter === named ? text : shown}`);
  });
  return [words(seriesOf(trace)), ...said, named ? '' : text].filter(Boolean).join(', ');
}

function walk(move) {
  const full = stage._fullData || [];
  const map = full.find((trace) => trace.type === 'heatmap');
  if (map) return walkCells(map, move);
  const lines = full.filter((trace) => walkable(trace) && pointsOf(trace).length);
  const panel = (trace) => Number(String(trace.xaxis || 'x').slice(1) || 1);
  lines.sort((a, b) => panel(a) - panel(b) || a.index - b.index);
  return lines.length ? walkPoints(lines, move) : null;
}

stage.addEventListener('keydown', (event) => {
  const move = MOVES[event.key];
  if ((!move && event.key !== 'Enter' && event.key !== ' ') || event.ctrlKey || event.metaKey || event.altKey) return;
  const found = walk(move);
  if (!found) return;
  event.preventDefault();
  if (!move) {
    if (found.exists) report(found.point);
    return;
  }
  spoken.textContent = found.spoken;
  Plotly.Fx.hover(stage, found.hover, found.subplot);
});
stage.addEventListener('blur', () => { cursor = null; if (listening) Plotly.Fx.unhover(stage); });

let drawnWidth = 0;
let frame = 0;
const sizes = new ResizeObserver(() => {
  if (!element.isConnected) { sizes.disconnect(); return; }
  cancelAnimationFrame(frame);
  frame = requestAnimationFrame(() => {
    if (stage.hidden || !stage.offsetWidth) return;
    if (waiting || !listening) draw();
    else if (stage.offsetWidth !== drawnWidth) draw(); // whole: a resize alone leaves the legend where it was
  });
});
sizes.observe(root);

const themes = new MutationObserver(() => {
  if (!element.isConnected) { themes.disconnect(); return; }
  if (isDark() !== dark) { dark = isDark(); draw(); }
});
themes.observe(document.body, {attributes: true, attributeFilter: ['class']});

// One answer of the server may change many plots: those in view are drawn and painted first, the others right after.
function drawInOrder() {
  const box = root.getBoundingClientRect();
  if (box.bottom > 0 && box.top < window.innerHeight) draw();
  else setTimeout(draw, 30);
}

watch(['value', 'label', 'empty_title', 'empty_body'], drawInOrder);
draw();
